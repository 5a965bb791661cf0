"""Alerts on their way to people: a real webhook that is slow, fails and recovers, and a monitor that starts anew."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import infra.monitoring.delivering
from infra.app.home import RunFolder
from infra.monitoring.alert_files import read_transitions, write_silence
from infra.monitoring.alert_settings import AlertSettings
from infra.monitoring.alerting import AlertDesk
from infra.monitoring.delivering import Webhook
from storage.monitor.alert_states import Silence, Transition
from storage.monitor.figures import Point
from tests.webhook_receiver import WAIT_SECONDS, Receiver, until

SECRET = "hush-hush-hush"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


def settings(receiver: Receiver, **other: Any) -> AlertSettings:
    given = {"webhook_pause_seconds": 0.01, "webhook_timeout_seconds": 20.0, "webhook_attempts": 4} | other
    return AlertSettings(webhook=f"{receiver.url}/hook", webhook_secret=SECRET, **given)


def change(number: int = 0, *, state: Any = "firing") -> Transition:
    return Transition(
        at_ms=number, rule="format", severity="critical", before="ok", state=state, says="50% <b>", sql="S"
    )


@pytest.fixture
def webhook(receiver: Receiver) -> Iterator[Callable[..., Webhook]]:
    made: list[Webhook] = []

    def start(**other: Any) -> Webhook:
        made.append(Webhook(settings(receiver, **other), run="shop-0", jitter=lambda: 0.0))
        return made[-1]

    yield start
    for each in made:
        each.close()


def test_a_change_is_posted_with_its_id_its_rows_and_the_secret(
    receiver: Receiver, webhook: Callable[..., Webhook]
) -> None:
    hook = webhook()
    hook.tell([change(7), change(8, state="ok"), change(9, state="no data")])
    until(lambda: hook.delivered == 1 and hook.waiting == 0)
    (body,) = receiver.bodies
    assert (body["event"], body["id"], body["run"]) == ("alert/1", "shop-0/format/7/firing", "shop-0")
    assert (body["change"]["rule"], body["change"]["says"], body["change"]["sql"]) == ("format", "50% <b>", "S")
    assert receiver.headers["Authorization"] == f"Bearer {SECRET}"
    assert receiver.headers["Content-Type"] == "application/json"


def test_a_webhook_that_fails_and_recovers_gets_every_change_in_order(
    receiver: Receiver, webhook: Callable[..., Webhook]
) -> None:
    receiver.statuses = [500, 429, 503]
    hook = webhook()
    hook.tell([change(1), change(2, state="recovered")])
    until(lambda: hook.delivered == 2)
    assert [body["change"]["at_ms"] for body in receiver.bodies] == [1, 1, 1, 1, 2]
    assert len({body["id"] for body in receiver.bodies}) == 2
    assert hook.given_up == 0


def test_a_webhook_that_always_fails_is_given_up_after_the_attempts_and_named_without_the_secret(
    receiver: Receiver, webhook: Callable[..., Webhook], caplog: pytest.LogCaptureFixture
) -> None:
    receiver.statuses = [500] * 4
    hook = webhook()
    with caplog.at_level(logging.WARNING):
        hook.tell([change(1)])
        until(lambda: hook.given_up == 1)
    assert len(receiver.bodies) == 4
    assert "was not delivered after 4 posts: the webhook answered 500" in caplog.text
    assert SECRET not in caplog.text
    hook.tell([change(2)])
    until(lambda: hook.delivered == 1)


@pytest.mark.parametrize("status", [400, 401, 404, 301, 302, 307, 308])
def test_a_refusal_and_a_redirect_are_not_tried_again_and_no_redirect_is_followed(
    status: int, receiver: Receiver, webhook: Callable[..., Webhook]
) -> None:
    receiver.statuses = [status]
    hook = webhook()
    hook.tell([change(1)])
    until(lambda: hook.given_up == 1)
    assert receiver.paths == ["/hook"]


def test_whoever_tells_a_slow_webhook_does_not_wait(receiver: Receiver, webhook: Callable[..., Webhook]) -> None:
    receiver.held.clear()
    hook = webhook()
    hook.tell([change(number) for number in range(50)])
    assert (hook.waiting, receiver.bodies) == (50, []), "all wait, and the caller does not"
    receiver.held.set()
    until(lambda: hook.delivered == 50)


def test_an_answer_that_never_comes_ends_at_the_timeout(receiver: Receiver, webhook: Callable[..., Webhook]) -> None:
    receiver.held.clear()
    hook = webhook(webhook_timeout_seconds=0.05, webhook_attempts=2)
    hook.tell([change(1)])
    until(lambda: hook.given_up == 1)
    assert (hook.delivered, hook.waiting) == (0, 0)


def test_a_full_queue_drops_the_oldest(
    receiver: Receiver, webhook: Callable[..., Webhook], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(infra.monitoring.delivering, "QUEUE_MAX", 3)
    receiver.held.clear()
    hook = webhook()
    hook.tell([change(0)])
    until(lambda: not hook._queue)
    hook.tell([change(number) for number in range(1, 7)])
    receiver.held.set()
    until(lambda: hook.delivered == 4)
    assert [body["change"]["at_ms"] for body in receiver.bodies] == [0, 4, 5, 6]


def test_a_webhook_that_is_away_does_not_hold_the_end(receiver: Receiver, webhook: Callable[..., Webhook]) -> None:
    receiver.statuses = [503] * 100
    hook = webhook(webhook_pause_seconds=600.0)
    hook.tell([change(1)])
    until(lambda: len(receiver.bodies) == 1)
    hook.close(seconds=WAIT_SECONDS)
    assert not hook._thread.is_alive()


def figures(valid: float | None) -> dict[str, list[Point]]:
    return {} if valid is None else {"valid_share": [Point(value=valid, step=3)]}


@pytest.fixture
def desk(receiver: Receiver, tmp_path: Path) -> Iterator[Callable[[], AlertDesk]]:
    made: list[AlertDesk] = []

    def start() -> AlertDesk:
        made.append(AlertDesk(RunFolder(tmp_path), settings(receiver), keeps=True))
        return made[-1]

    yield start
    for each in made:
        each.close()


def seen(receiver: Receiver) -> list[str]:
    return [body["change"]["state"] for body in receiver.bodies]


def test_a_new_monitor_goes_on_where_the_last_one_ended(
    receiver: Receiver, tmp_path: Path, desk: Callable[[], AlertDesk]
) -> None:
    first = desk()
    first.look(figures(0.999), now_ms=1)
    first.look(figures(0.5), now_ms=2)
    until(lambda: seen(receiver) == ["firing"])
    second = desk()
    second.look(figures(None), now_ms=3)
    second.look(figures(0.955), now_ms=4)
    assert {each.rule: each.state for each in second.look(figures(0.955), now_ms=5)}["format"] == "firing"
    second.look(figures(0.999), now_ms=6)
    until(lambda: seen(receiver) == ["firing", "recovered"])
    kept = [(each.before, each.state) for each in read_transitions(tmp_path) if each.rule == "format"]
    assert kept == [
        ("no data", "ok"), ("ok", "firing"), ("firing", "no data"), ("no data", "firing"), ("firing", "recovered"),
    ]  # fmt: skip


def test_a_record_of_changes_that_a_crash_has_cut_loses_only_that_line(
    tmp_path: Path, desk: Callable[[], AlertDesk]
) -> None:
    desk().look(figures(0.5), now_ms=1)
    path = tmp_path / "alerts" / "transitions.jsonl"
    path.write_bytes(path.read_bytes() + b'{"at_ms": 3, "ru')
    assert [each.state for each in read_transitions(tmp_path)] == ["firing"]
    desk().look(figures(0.999), now_ms=4)
    assert [each.state for each in read_transitions(tmp_path)] == ["firing", "recovered"]


def test_a_silenced_rule_tells_nobody_and_tells_when_the_silence_ends(
    receiver: Receiver, tmp_path: Path, desk: Callable[[], AlertDesk]
) -> None:
    watching = desk()
    write_silence(tmp_path, Silence(rule="format", until_ms=10), now_ms=1)
    watching.look(figures(0.5), now_ms=2)
    watching.look(figures(0.5), now_ms=9)
    assert [each.state for each in read_transitions(tmp_path)] == ["silenced"]
    watching.look(figures(0.5), now_ms=11)
    until(lambda: seen(receiver) == ["firing"])


def test_a_watcher_that_only_shows_keeps_and_sends_nothing(receiver: Receiver, tmp_path: Path) -> None:
    shown = AlertDesk(RunFolder(tmp_path), settings(receiver), keeps=False)
    states = {each.rule: each.state for each in shown.look(figures(0.5), now_ms=1)}
    shown.close()
    assert states["format"] == "firing"
    assert list(tmp_path.iterdir()) == []
