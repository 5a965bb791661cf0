"""The alerts of the monitor's windows: the built-in rules on the figures of the moment. Alerts warn, and stop nothing.

`storage.monitor.alert_states` adds what a single look cannot know: hysteresis, recovery, silences.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from storage.monitor.alert_states import AlertState
from storage.monitor.figures import Figures, Line, window_figures
from storage.monitor.judging import Judgement, judge
from storage.monitor.rules import AlertRule, built_in_rules
from storage.monitor.stalls import RunState


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """One rule that a run breaks now. what: the value, and the limit that it passed. sql: the rows behind it."""

    name: str
    what: str
    severity: str = "warning"
    hint: str = ""
    sql: str = ""


def alerts(
    lines: Sequence[Line],
    *,
    dead_letters: int,
    staleness_max: int,
    state: RunState | None = None,
    rules: Sequence[AlertRule] | None = None,
) -> tuple[Alert, ...]:
    """Return the alerts for a run's policy versions, oldest first, and for its state.

    dead_letters: of the whole run. staleness_max: the run's limit. rules: None stands for the built-in ones.
    """
    figures = window_figures(lines, dead_letters=dead_letters, staleness_max=staleness_max, state=state)
    return alerts_of(figures, built_in_rules() if rules is None else rules)


def firing(states: Iterable[AlertState]) -> tuple[Alert, ...]:
    """Return the alerts of the rules that fire, without the silenced ones."""
    return tuple(
        Alert(name=each.rule, what=each.says, severity=each.severity, hint=each.hint, sql=each.sql)
        for each in states
        if each.state == "firing"
    )


def alerts_of(figures: Figures, rules: Sequence[AlertRule]) -> tuple[Alert, ...]:
    """Return one alert for each rule that these figures break."""
    found = []
    for rule in rules:
        if (broken := broken_condition(rule, figures)) is not None:
            alert = Alert(name=rule.name, what=broken.says, severity=rule.severity, hint=rule.hint, sql=broken.sql)
            found.append(alert)
    return tuple(found)


def broken_condition(rule: AlertRule, figures: Figures) -> Judgement | None:
    """Return the first condition of a rule that these figures break, None if they break none."""
    judged = (judge(name, condition, figures) for name, condition in rule.when.items())
    return next((each for each in judged if each.broken), None)
