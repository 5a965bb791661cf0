"""The figures of alert rules by SQL: equal to those of the windows, and each fault in a log shows in its figure."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pytest

from storage.ledger import build_batch, store_batch
from storage.log import Log
from storage.monitor.alert_states import standing
from storage.monitor.alerts import alerts_of
from storage.monitor.edges import SeenEnds, reach_of
from storage.monitor.figures import KINDS, Point, rows_query, window_figures
from storage.monitor.ledger_figures import DAY_MS, HOUR_MS, ledger_figures
from storage.monitor.rules import built_in_rules
from storage.monitor.view import build_view
from storage.monitor.windows import MonitorSettings, Windows
from storage.schema import migrate
from streams.events import Outcome, Reward
from streams.records import Received
from streams.traffic_events import ImpressionOutcome
from tests.monitored_log import messy_log
from tests.stored_events import (
    RUN,
    dev_score,
    generation,
    impression_outcome,
    policy,
    record,
    reward,
    small_run,
    update,
)

replace = msgspec.structs.replace


def log_of(records: Sequence[Received]) -> Log:
    connection = duckdb.connect(":memory:")
    migrate(connection)
    store_batch(connection, build_batch(records))
    return Log(connection, Path("none"), live=False)


def figures_of(*records: Received) -> dict[str, list[Point]]:
    with log_of(records) as log:
        return ledger_figures(log, staleness_max=4)


def fired(figures: dict[str, list[Point]]) -> set[str]:
    return {alert.name for alert in alerts_of(figures, built_in_rules())}


@pytest.mark.parametrize("seed", range(3))
def test_the_ledger_gives_the_figures_that_the_windows_give(seed: int) -> None:
    records = messy_log(seed=seed)
    windows = Windows(RUN, MonitorSettings(late_seconds=604_800), ends={})
    for each in records:
        windows.add(each.position, each.value, timestamp_ms=each.timestamp_ms, now_ms=2_000_000_000_000)
    events = [event for event in windows.changes().values() if event is not None]
    view = build_view(RUN, events, updates_wanted=0, staleness_max=4)
    expected = window_figures(view.versions, dead_letters=0, staleness_max=4)
    with log_of(records) as log:
        found = ledger_figures(log, staleness_max=4)
    for name in set(expected) - {"dead_letter_share"}:
        wanted = {(point.lineage, point.step): pytest.approx(point.value, abs=1e-9) for point in expected[name]}
        assert {(point.lineage, point.step): point.value for point in found[name]} == wanted, name


def test_every_figure_of_a_log_has_a_kind_a_rising_time_and_a_query_that_runs() -> None:
    records = [
        *small_run(),
        *(record(impression_outcome(number), number) for number in range(30)),
        record(dev_score(1), 0),
    ]
    with log_of(records) as log:
        figures = ledger_figures(log, staleness_max=4)
        assert set(KINDS) - set(figures) == {"stall_seconds"}
        assert {point.weight for point in figures["size_slope"]} == {0.0}, "all answers are equally long"
        for name, points in figures.items():
            times = [point.at_ms for point in points]
            assert times == sorted(times), name
            log.rows(rows_query(name, points))
        log.rows(rows_query("stall_seconds", [Point(value=1.0)]))


def test_an_empty_ledger_has_no_figures() -> None:
    assert figures_of() == {}


def test_the_rows_behind_an_alert_are_those_that_broke_the_rule() -> None:
    bad = [replace(_told(number), outcomes=(_invalid(number), *_told(number).outcomes[1:])) for number in range(4)]
    with log_of([record(each, number) for number, each in enumerate(bad)]) as log:
        (alert,) = alerts_of(ledger_figures(log, staleness_max=4), built_in_rules())
        assert alert.name == "format"
        rows = log.rows(alert.sql)
    assert {(row["group_id"], row["candidate"]) for row in rows} == {(each.group_id, 0) for each in bad}


def _told(number: int) -> Reward:
    return reward(number, step=1)


def _invalid(number: int) -> Outcome:
    return replace(_told(number).outcomes[0], valid=False, reward=0.0, expansions=(), hits=())


def test_size_that_pays_shows_in_the_slope() -> None:
    def sized(number: int) -> Reward:
        made = reward(number, step=1)
        texts = (tuple("wort" for _ in range(size)) for size in range(1, 9))
        outcomes = tuple(
            replace(outcome, expansions=words, reward=0.25 * len(words) + number)
            for outcome, words in zip(made.outcomes, texts, strict=True)
        )
        return replace(made, outcomes=outcomes)

    (slope,) = figures_of(*(record(sized(number), number) for number in range(3)))["size_slope"]
    assert slope.value == pytest.approx(0.25)


def test_refused_groups_and_rewards_that_cannot_be_read_count_once() -> None:
    made = update(1, range(6))
    made = replace(made, trained=made.trained[:4], rejected={made.trained[4]: "out of bounds"},
                   disputed={made.trained[5]: "other weights"})  # fmt: skip
    (refused,) = figures_of(*(record(reward(number), number) for number in range(6)), record(made, 0))["refused_share"]
    assert (refused.value, refused.weight) == (pytest.approx(2 / 6), 6)


def test_a_slow_environment_and_a_pause_show_in_seconds() -> None:
    records = []
    for number in range(60):
        at_ms = 1_700_000_000_000 + number * 4_000 + (600_000 if number >= 30 else 0)
        records += [
            replace(record(generation(number), number), timestamp_ms=at_ms),
            replace(record(reward(number), number), timestamp_ms=at_ms + 3_000),
        ]
    figures = figures_of(*records)
    assert {point.value for point in figures["search_seconds"]} == {3.0}
    assert max(point.value for point in figures["quiet_seconds"]) == 600.0
    assert figures["quiet_seconds"][-1].value == 0.0
    assert "search" in fired(figures)


def test_a_group_that_trained_twice_and_a_lost_row_are_a_residual() -> None:
    first, second = update(1, range(4)), update(2, range(3, 8), parent=policy(1))
    records = [record(generation(number), number) for number in range(8)]
    records += [record(reward(number), number) for number in range(8)]
    figures = figures_of(*records, record(first, 0), record(second, 1))
    assert figures["residual"][0].value == 8, "each of the group's candidates gave two gradients"
    with log_of(small_run()) as log:
        assert ledger_figures(log, staleness_max=4)["residual"][0].value == 0
        log.connection.execute("DELETE FROM rewards WHERE record_offset = 3")
        assert ledger_figures(log, staleness_max=4)["residual"][0].value == 1


def _seen(number: int, *, client: str, at_ms: int, rank: int) -> Any:
    made = impression_outcome(number)
    (action,) = made.actions
    shown = replace(made.impression, client=client, at_ms=at_ms)
    return record(
        ImpressionOutcome(
            impression=shown, actions=(replace(action, document_id=f"d{rank}", at_ms=at_ms),), final=True, made_at_ms=3
        ),
        number,
    )


def test_one_busy_client_and_clicks_at_other_ranks_show_in_the_figures_of_clicks() -> None:
    begin = 1_700_000_000_000 // DAY_MS * DAY_MS
    quiet = [
        _seen(number, client=f"c{number % 50}", at_ms=begin + number % 24 * HOUR_MS, rank=1) for number in range(480)
    ]
    later = [
        _seen(number, client=f"c{number % 50}", at_ms=begin + DAY_MS + number % 24 * HOUR_MS, rank=2)
        for number in range(480, 960)
    ]
    figures = figures_of(*quiet, *later)
    assert max(point.value for point in figures["client_share"] if point.weight >= 400) < 0.05
    assert sum(figures["click_ranks"][0].counts.values()) == 20
    busy = [_seen(number, client="bot", at_ms=begin + 30 * HOUR_MS, rank=1) for number in range(960, 1000)]
    assert {"click fraud"} <= fired(figures_of(*quiet, *later, *busy))


def long_log(seed: int, versions: int) -> list[Received]:
    """Return a log in which each version writes some groups, and some of their texts are not valid."""
    random_ = random.Random(seed)
    records, taken, number = [], 0, 0
    for step in range(versions):
        for _ in range(random_.randint(1, 3)):
            made = reward(number, step=step)
            if random_.random() < 0.4 or step < 10:
                made = replace(made, outcomes=tuple(_no_text(each, random_) for each in made.outcomes))
            at_ms = 1_700_000_000_000 + 700 * number + random_.randint(0, 5_000)
            records.append(replace(record(made, number), timestamp_ms=at_ms))
            number += 1
        while number - taken >= 4:
            learned = update(step + 1, range(taken, taken + 4), parent=policy(step))
            at_ms = 1_700_000_000_000 + 700 * number + random_.randint(0, 3_000)
            records.append(replace(record(learned, taken // 4), timestamp_ms=at_ms))
            taken += 4
    return records


def _no_text(outcome: Outcome, random_: random.Random) -> Outcome:
    return replace(outcome, valid=random_.random() < 0.3, reward=random_.random())


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("repeated", "staleness_max"), [(False, 4), (True, 4), (False, 1)])
def test_figures_at_both_ends_of_a_log_are_those_of_the_whole_log(
    seed: int, repeated: bool, staleness_max: int
) -> None:
    records = long_log(seed, versions=300)
    if repeated:  # A group that stands twice in the log: the first one counts.
        records += [replace(records[5], position=replace(records[5].position, offset=9_000))]
    rules = built_in_rules()
    reach = reach_of(rules)
    assert reach.first + reach.newest < 100, "the ends overlap, so nothing is left out"
    with log_of(records) as log:
        whole = ledger_figures(log, staleness_max=staleness_max)
        ends = ledger_figures(log, staleness_max=staleness_max, reach=reach)
    assert set(ends) == set(whole)
    for name in ("reward_mean", "expired_share", "entropy"):
        assert len(ends[name]) < len(whole[name]), name
    for name, points in whole.items():
        assert plain(ends[name][: reach.first]) == plain(points[: reach.first]), name
        assert plain(ends[name][-reach.newest :]) == plain(points[-reach.newest :]), name
    found, expected = (
        [(each.rule, each.state, each.says, each.sql) for each in standing(figures, (), rules, now_ms=0)]
        for figures in (ends, whole)
    )
    assert found == expected


def plain(points: Sequence[Point]) -> list[Point]:
    """Return points without the last digits, which depend on the order of a sum."""
    return [replace(point, value=round(point.value, 9), weight=round(point.weight, 9)) for point in points]


def test_a_figure_with_few_points_is_read_until_it_has_enough() -> None:
    records = []
    for step in range(200):  # Only the versions from 120 on keep the format.
        made = reward(step, step=step)
        bad = tuple(replace(each, valid=False, expansions=()) for each in made.outcomes)
        records.append(record(made if step >= 120 else replace(made, outcomes=bad), step))
    reach = SeenEnds(first=5, newest=5)
    with log_of(records) as log:
        whole = ledger_figures(log, staleness_max=4)
        ends = ledger_figures(log, staleness_max=4, reach=reach)
    assert [point.step for point in ends["text_size"][:5]] == [point.step for point in whole["text_size"][:5]]
    assert whole["text_size"][0].step == 120
