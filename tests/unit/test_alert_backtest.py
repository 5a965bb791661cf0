"""The back-test of alert rules, small: faults are found, clean runs are quiet, and the page shows the kept results."""

from __future__ import annotations

import math

import pytest

from storage.monitor.backtesting import Label, backtest, upper_bound
from storage.monitor.figures import Point
from storage.monitor.rules import built_in_rules
from tests.backtest.base import BY_VERSION, real_runs
from tests.backtest.faults import FAULTS
from tests.backtest.score import SETS, clean, faulty, score_clean, score_fault
from tests.backtest.table import PAGE, kept_results, with_tables

RULES = built_in_rules()
SEED = 5_000_000  # Of neither set.
DAY_MS = 86_400_000


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault: str) -> None:
    score = score_fault(RULES, faulty(fault, SEED, 3))
    assert (score.hits, score.strongest_missed) == (3, [])


def test_clean_runs_are_quiet() -> None:
    assert score_clean(RULES, clean("training", SEED, 3)).alarms == {}
    assert score_clean(RULES, clean("live", SEED, 2)).alarms == {}


def test_the_same_seed_makes_the_same_run_and_another_seed_another() -> None:
    first, again, other = (faulty("format collapse", seed, 1)[0] for seed in (SEED, SEED, SEED + 1))
    assert (first.label, first.figures) == (again.label, again.figures)
    assert first.figures != other.figures


def test_clean_runs_have_the_levels_of_the_real_ones() -> None:
    real = real_runs()
    for figures in clean("training", SEED, 4):
        for name in set(BY_VERSION) - {"lag_seconds", "reward_peak"}:
            values = [value for run in real for value in run.figures[name]]
            spread = max(values) - min(values)
            mine = [point.value for point in figures[name]]
            assert min(values) - spread / 2 <= min(mine) <= max(mine) <= max(values) + spread / 2, name


def test_the_kept_results_reach_the_goal_on_seeds_that_chose_nothing() -> None:
    results = kept_results()
    judged = results.sets["judged on"]
    assert judged.first_seed != results.sets["chosen on"].first_seed
    assert list(judged.faults) == list(FAULTS)
    assert all(score.runs >= 20 for score in judged.faults.values())
    assert sum(score.hits for score in judged.faults.values()) / sum(s.runs for s in judged.faults.values()) >= 0.95
    assert judged.training.a_day <= 0.1
    assert judged.live.a_day <= 0.1
    assert set(SETS) == set(results.sets)


def test_the_page_shows_the_tables_of_the_code_and_of_the_kept_results() -> None:
    page = PAGE.read_text()
    assert with_tables(page) == page


def valid(*values: float) -> dict[str, list[Point]]:
    return {"valid_share": [Point(at_ms=DAY_MS * number, value=value) for number, value in enumerate(values)]}


def test_a_page_worked_by_hand() -> None:
    figures = valid(1.0, 1.0, 0.2, 0.2, *[1.0] * 10, 0.1, *[1.0] * 5)
    labels = [
        Label(fault="broke", from_ms=DAY_MS * 2, until_ms=DAY_MS * 4, rules=("format",)),
        Label(fault="quiet", from_ms=DAY_MS * 10, until_ms=DAY_MS * 11),
    ]
    found = backtest(figures, RULES, labels=labels)
    fired = [each.at_ms // DAY_MS for each in found.transitions if each.state == "firing"]
    assert fired == [2, 14]
    assert [(each.rule, each.seconds) for each in found.labels] == [("format", 0.0), ("", None)]
    assert [each.at_ms // DAY_MS for each in found.false_alarms] == [14]
    assert (found.hits, found.days, found.seconds_median) == (1, 19 - 3, 0.0)
    assert found.false_alarms_a_day == pytest.approx(1 / 16)


def test_a_rule_of_another_fault_is_neither_hit_nor_false_alarm() -> None:
    label = Label(fault="slow", from_ms=0, until_ms=DAY_MS * 9, rules=("search",))
    found = backtest(valid(1.0, 0.2), RULES, labels=[label])
    assert (found.hits, found.false_alarms) == (0, ())


def test_overlapping_labels_cover_their_time_once() -> None:
    labels = [Label(fault=str(n), from_ms=DAY_MS * n, until_ms=DAY_MS * (n + 2)) for n in (1, 2)]
    assert backtest(valid(*[1.0] * 11), RULES, labels=labels).days == pytest.approx(10 - 3)


def test_an_empty_log_gives_an_empty_backtest() -> None:
    found = backtest({}, RULES)
    assert (found.transitions, found.days, found.false_alarms_a_day) == ((), 0.0, None)


def test_the_upper_bound_of_no_event_is_that_of_the_rule_of_three() -> None:
    assert upper_bound(0, 10.0) == pytest.approx(-math.log(0.05) / 10)
    assert upper_bound(3, 1.0) == pytest.approx(7.754, abs=1e-3), "the Poisson table"
