"""The states of alert rules over time: hysteresis, recovery, missing data, silences, and the records of changes."""

from __future__ import annotations

import math
from typing import Any

import pytest

from storage.monitor.alert_states import RECOVERED_SECONDS, AlertState, Silence, Transition, standing, transitions
from storage.monitor.figures import Point
from storage.monitor.judging import judge, stability_index
from storage.monitor.rules import AlertRule, built_in_rules, rules_from

MINUTE_MS = 60_000


def one_rule(**fields: Any) -> list[AlertRule]:
    condition = {
        "kind": "limit", "value": "failed_share", "newest": 1, "above": 0.5, "clear_by": 0.1, "says": "{value:.2f}",
    }  # fmt: skip
    return list(rules_from([("test", {"rules": {"x": {"hint": "h", "when": {"a": condition}, **fields}}})]))


class History:
    """One rule watched over values, a minute apart; None is a minute without data."""

    def __init__(self, rules: list[AlertRule]) -> None:
        self.rules, self.now_ms = rules, 0
        self.silences: list[Silence] = []
        self.states: tuple[AlertState, ...] = ()
        self.changes: list[Transition] = []

    def see(self, *values: float | None) -> list[str]:
        seen = []
        for value in values:
            self.now_ms += MINUTE_MS
            figures = {} if value is None else {"failed_share": [Point(value=value, at_ms=self.now_ms, step=7)]}
            now = standing(figures, self.states, self.rules, self.silences, now_ms=self.now_ms)
            self.changes += transitions(self.states, now, now_ms=self.now_ms)
            self.states = now
            seen.append(now[0].state)
        return seen


def test_a_value_about_the_limit_fires_once() -> None:
    history = History(one_rule())
    assert history.see(0.49, 0.51) == ["ok", "firing"]
    assert set(history.see(*[0.49, 0.51, 0.45, 0.41] * 5)) == {"firing"}
    assert history.see(0.4, 0.51) == ["recovered", "firing"]
    assert [each.state for each in history.changes] == ["ok", "firing", "recovered", "firing"]


def test_a_recovered_rule_is_ok_after_an_hour() -> None:
    history = History(one_rule())
    states = history.see(0.6, *[0.0] * (RECOVERED_SECONDS // 60 + 2))
    assert states == ["firing", *["recovered"] * (RECOVERED_SECONDS // 60), "ok", "ok"]


def test_a_rule_with_durations_fires_and_recovers_only_after_them() -> None:
    history = History(one_rule(fire_seconds=120, clear_seconds=120))
    assert history.see(0.6, 0.6, 0.3) == ["ok"] * 3, "two minutes were not reached"
    assert history.see(0.6, 0.6, 0.6) == ["ok", "ok", "firing"]
    assert history.see(0.3, 0.3, 0.45, 0.3, 0.3, 0.3) == ["firing"] * 5 + ["recovered"]


def test_missing_data_is_a_state_and_does_not_end_an_alert() -> None:
    history = History(one_rule())
    assert history.see(None) == ["no data"]
    assert history.states[0].says == "no failed_share yet"
    assert history.changes == []
    assert history.see(0.6, None, 0.45, 0.1) == ["firing", "no data", "firing", "recovered"]


def test_a_silenced_rule_is_judged_and_shows_again_when_the_silence_ends() -> None:
    history = History(one_rule())
    history.silences = [Silence(rule="x", until_ms=3 * MINUTE_MS), Silence(rule="other", until_ms=9 * MINUTE_MS)]
    assert history.see(0.6, 0.6) == ["silenced", "silenced"]
    assert (history.states[0].beneath, history.states[0].until_ms) == ("firing", 3 * MINUTE_MS)
    assert history.see(0.6) == ["firing"]
    assert [(each.before, each.state) for each in history.changes] == [("no data", "silenced"), ("silenced", "firing")]


def test_a_change_names_time_rule_value_limit_and_the_rows_behind_it() -> None:
    history = History(one_rule(severity="critical"))
    history.see(0.2, 0.6)
    assert history.changes[1] == Transition(
        at_ms=2 * MINUTE_MS,
        rule="x",
        severity="critical",
        before="ok",
        state="firing",
        condition="a",
        value=0.6,
        limit=0.5,
        says="0.60",
        hint="h",
        sql="SELECT * FROM first_outcomes WHERE (lineage, step) IN (('', 7)) AND status = 'failed'",
    )


def test_hostile_names_of_lineages_stay_texts_in_the_query() -> None:
    evil = "a') OR 1=1; DROP TABLE rewards --"
    (rule,) = one_rule()
    found = judge("a", rule.when["a"], {"failed_share": [Point(value=0.9, lineage=evil, step=1)]})
    assert "('a'') OR 1=1; DROP TABLE rewards --', 1)" in found.sql


def test_the_stability_index_is_that_of_its_formula() -> None:
    from collections import Counter

    before, now = Counter(a=500, b=300, c=200), Counter(a=300, b=300, c=400)
    plain = sum((p - q) * math.log(p / q) for p, q in ((0.5, 0.3), (0.3, 0.3), (0.2, 0.4)))
    assert stability_index(before, now) == pytest.approx(plain, rel=0.01)
    assert stability_index(before, before) == 0
    assert math.isfinite(stability_index(Counter(a=10), Counter(b=10)))


def test_every_built_in_rule_is_without_data_before_the_first_record() -> None:
    states = standing({}, (), built_in_rules(), now_ms=5)
    assert {each.state for each in states} == {"no data"}
    assert transitions((), states, now_ms=5) == ()
