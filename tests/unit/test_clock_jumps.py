"""A clock that jumps: a log whose times go back an hour and ahead a day is shown, and no figure in it is impossible."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from infra.app.home import Home
from infra.monitoring.alert_files import write_silence
from storage.ledger import LEDGER
from storage.log import open_log
from storage.monitor.alert_states import Silence
from storage.monitor.ledger_figures import ledger_figures
from storage.questions.asking import connect_reading
from storage.questions.question import saved_questions
from storage.questions.stream import ends, news
from streams.records import Received
from tests.shown_pages import whole_run, write_run
from tests.stored_events import impression, impression_outcome, record, user_action
from tests.unit.test_ui import get

HOUR_MS, DAY_MS = 3_600_000, 86_400_000
START_MS = 1_700_000_000_000
FAR_MS = 9_223_372_036_854_775_807  # What a broken clock may write.

Jump = Callable[[int], int]

JUMPS: dict[str, Jump] = {
    "back an hour": lambda number: -HOUR_MS if number > 90 else 0,
    "ahead a day": lambda number: DAY_MS if number > 90 else 0,
    "ahead a day, and back": lambda number: DAY_MS if 60 < number < 120 else 0,
    "to the beginning of time": lambda number: -START_MS if number > 90 else 0,
    "to and fro": lambda number: HOUR_MS * (-1) ** number,
}


def jumping(jump: Jump) -> list[Received]:
    """Return a run with clicks, whose records were written by a clock that jumps."""
    clicks = [
        *(record(impression(number), number) for number in range(12)),
        *(record(user_action(number), number) for number in range(12)),
        *(record(impression_outcome(number), number) for number in range(12)),
    ]
    return [
        msgspec.structs.replace(each, timestamp_ms=max(START_MS + 500 * number + jump(number), 0))
        for number, each in enumerate([*whole_run(48), *clicks])
    ]


@pytest.fixture(scope="module", params=JUMPS)
def home(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("home")
    write_run(found, jumping(JUMPS[request.param]))
    return found


def test_every_page_is_answered_and_waits_are_never_negative(home: Path) -> None:
    for name in saved_questions():
        status, found, _ = get(home, f"/api/ask/{name}?run=demo")
        assert status == 200, f"{name}: {found}"
    _, found, _ = get(home, "/api/ask/time_by_stage?run=demo")
    at = found["columns"].index("seconds")
    assert all(row[at] >= 0 for row in found["rows"])
    status, found, _ = get(home, "/api/overview?run=demo")
    assert status == 200 and (found["health"]["updates"], found["health"]["groups"]) == (12, 48)
    shares = found["health"]["limit"]["shares"]
    assert all(0 <= share <= 1 for share in shares.values())
    assert not shares or sum(shares.values()) == pytest.approx(1, abs=1e-4)
    for path in ("/api/people", "/api/ramp"):
        assert get(home, f"{path}?run=demo")[0] == 200


def test_alerts_are_judged_and_a_silence_ends(home: Path) -> None:
    status, found, _ = get(home, "/api/alerts?run=demo")
    assert status == 200 and found["alerts"]
    run = Home(home).run("demo")
    name = found["alerts"][0]["rule"]
    write_silence(run, Silence(rule=name, until_ms=FAR_MS), now_ms=0)
    assert silenced(home) == {name}
    write_silence(run, Silence(rule=name, until_ms=1), now_ms=0)  # Long ago, by the clock of now.
    assert silenced(home) == set()


def silenced(home: Path) -> set[str]:
    return {each["rule"] for each in get(home, "/api/alerts?run=demo")[1]["alerts"] if each["state"] == "silenced"}


def test_a_pause_of_decades_has_few_points(home: Path) -> None:
    with open_log(Home(home).run("demo")) as log:
        figures = ledger_figures(log, staleness_max=4)
    assert all(len(points) <= 3_000 for points in figures.values())
    assert figures["quiet_seconds"][-1].value == 0.0


def test_the_stream_goes_by_offsets_and_by_no_clock(home: Path) -> None:
    with connect_reading(home / "runs" / "demo" / LEDGER) as connection:
        found = news(connection.cursor(), {})
        assert [row["record_offset"] for each in found if each.kind == "rewards" for row in each.rows] == [*range(48)]
        assert found[-1].cursor == ends(connection.cursor())
