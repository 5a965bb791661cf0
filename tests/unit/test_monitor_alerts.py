"""What the windows warn of: each rule on both sides of its limit, and how versions are put together."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from infra.commands.watch import render
from storage.monitor.view import View, build_view
from streams.events import MonitorState, PolicyRef, StageWindow, VersionWindow, WindowEvent

DEAD_GROUPS_UPDATES = 20
GOOD = {
    "groups": 100,
    "measured": 100,
    "flat": 10,
    "candidates": 1000,
    "scored": 1000,
    "failed": 0,
    "valid": 1000,
    "unchanged": 10,
    "reward_mean": 0.5,
    "reward_std": 0.1,
    "words": 1000,
    "repeated": 100,
    "fates": {"trained": 90, "flat": 10},
    "staleness": {0: 50, 1: 50},
}


def window(step: int, *, start_ms: int = 0, lineage: str = "a", **other: object) -> VersionWindow:
    values = {**GOOD, **other}
    return VersionWindow(
        run="r", lineage=lineage, step=step, start_ms=start_ms, end_ms=start_ms + 60_000, closed=False, **values
    )


def letters(count: int) -> StageWindow:
    return StageWindow(run="r", stage="learner", start_ms=0, end_ms=60_000, closed=True, dead_letters=count)


def view_of(*events: WindowEvent, staleness_max: int = 4) -> View:
    return build_view("r", events, updates_wanted=9, staleness_max=staleness_max)


def names(*events: WindowEvent, staleness_max: int = 4) -> list[str]:
    return [alert.name for alert in view_of(*events, staleness_max=staleness_max).alerts]


@pytest.mark.parametrize(
    ("name", "fine", "broken"),
    [
        ("format", {"valid": 950}, {"valid": 949}),
        ("no-op collapse", {"unchanged": 500}, {"unchanged": 501}),
        ("keyword stuffing", {"repeated": 400}, {"repeated": 401}),
        ("failed outcomes", {"scored": 990, "failed": 10, "valid": 990}, {"scored": 989, "failed": 11, "valid": 989}),
        ("staleness", {"staleness": {3: 100}}, {"staleness": {3: 94, 4: 6}}),
        ("drops", {"fates": {"trained": 99, "expired": 1}}, {"fates": {"trained": 98, "expired": 2}}),
    ],
)
def test_a_rule_warns_beyond_its_limit_and_not_before(
    name: str, fine: dict[str, object], broken: dict[str, object]
) -> None:
    assert names(window(0, **fine)) == []
    assert names(window(0, **broken)) == [name]


def test_dead_groups_are_warned_of_after_twenty_versions_of_them() -> None:
    dead = [window(step, flat=61) for step in range(DEAD_GROUPS_UPDATES)]
    assert names(*dead[1:]) == []
    assert names(*dead) == ["dead groups"]
    assert names(*dead, window(20, flat=60)) == []


def test_words_that_repeat_more_than_at_first_are_warned_of() -> None:
    first = [window(step) for step in range(5)]
    assert names(*first, *(window(step, repeated=250) for step in range(5, 10))) == []
    stuffed = view_of(*first, *(window(step, repeated=251) for step in range(5, 10)))
    assert [(alert.name, alert.what) for alert in stuffed.alerts] == [
        (
            "keyword stuffing",
            "25% of the words repeat earlier words of their answer, 10% at first; type/token ratio 0.75",
        )
    ]
    assert names(window(0, words=0, repeated=0)) == []


def test_rewards_without_spread_are_warned_of_once_they_had_some() -> None:
    first = [window(step) for step in range(5)]
    assert names(*first, *(window(step, reward_std=0.025) for step in range(5, 10))) == []
    assert names(*first, *(window(step, reward_std=0.0249) for step in range(5, 10))) == ["low advantage"]
    assert names(*(window(step, reward_std=0.0001) for step in range(5))) == [], "there is nothing to compare with yet"


def test_a_format_that_was_better_at_first_is_warned_of() -> None:
    first = [window(step) for step in range(5)]
    assert names(*first, *(window(step, valid=951) for step in range(5, 10))) == []
    slipping = [window(step, valid=949) for step in range(5, 10)]
    assert names(*first, *slipping) == ["format"]


def test_dead_letters_are_compared_with_the_groups_beside_them() -> None:
    assert names(*(window(step) for step in range(10)), letters(1)) == []
    assert names(*(window(step) for step in range(10)), letters(2)) == ["dead letters"]


def test_a_staleness_limit_below_two_is_never_near() -> None:
    assert names(window(0, staleness={1: 100}), staleness_max=1) == []


def test_windows_of_one_version_make_one_line_weighted_by_their_groups() -> None:
    early = window(3, reward_mean=0.2, reward_std=0.4, measured=30)
    late = window(
        3, start_ms=60_000, reward_mean=0.6, reward_std=0.0, measured=10, fates={"expired": 1}, staleness={5: 1}
    )
    empty = window(4, start_ms=60_000, measured=0, scored=0, reward_mean=None, reward_std=None, fates={}, staleness={})
    state = MonitorState(run="r", policy=PolicyRef(lineage="a", step=6, sha256=""), updates=6)
    view = view_of(late, empty, early, state)
    third, fourth = view.versions
    assert (third.groups, third.reward_mean, third.reward_std) == (200, pytest.approx(0.3), pytest.approx(0.3))
    assert (third.taken, third.expired, third.staleness_p95) == (101, 1, 1)
    assert (fourth.reward_mean, fourth.valid_share, fourth.staleness_mean) == (None, None, None)
    assert (view.updates_done, view.policy_lag) == (6, 2)


def test_a_run_without_windows_is_shown_too() -> None:
    assert view_of().policy_lag is None
    assert shown(view_of()).startswith("run r: 0 of 9 updates")


def test_names_from_the_log_are_shown_as_they_are() -> None:
    evil = "[bold red]x[/nope]\x1b[31m"
    view = view_of(
        window(1, lineage=evil), StageWindow(run="r", stage=evil, start_ms=0, end_ms=1, closed=False, dead_letters=1)
    )
    text = shown(view)
    assert text.count("[bold red]x[/nope]") == 2
    assert "\x1b" not in text


def shown(view: View) -> str:
    """Return the view as a terminal without colours prints it."""
    console = Console(file=io.StringIO(), width=200, force_terminal=False)
    console.print(render(view))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()
