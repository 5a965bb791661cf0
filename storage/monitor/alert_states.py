"""The state of each alert rule, from the figures of the moment and its state before. Pure: nothing asks a clock.

- *ok*, *firing*: with hysteresis. A rule that fires stays so until its condition is clear, `clear_by` within the limit,
  for `clear_seconds`. A value that hovers about the limit therefore fires once.
- *recovered*: it fired, and is clear since less than `RECOVERED_SECONDS`; then ok.
- *no data*: none of its conditions has enough points. A rule that fired goes on as firing when its data returns.
- *silenced*: somebody asked for quiet until some time. The rule is judged as ever, and tells nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec

from storage.monitor.figures import Figures
from storage.monitor.judging import Judgement, judge
from storage.monitor.rules import AlertRule

RECOVERED_SECONDS = 3600
StateName = Literal["ok", "firing", "recovered", "no data", "silenced"]


class Silence(msgspec.Struct, frozen=True, kw_only=True):
    """A rule that tells nobody until a time."""

    rule: str
    until_ms: int


class AlertState(msgspec.Struct, frozen=True, kw_only=True):
    """One rule of a run now.

    state: shown; `beneath` is the same without silences. since_ms: begin of the shown state. condition, value, limit,
    says: of the condition that broke, or of the first one with data. sql: the query, on the run's ledger, for the rows
    behind a rule that fires or has recovered; else empty. until_ms: the end of a silence. fired: the rule fires, or did
    when its data ended. broken_since_ms, clear_since_ms: since when a condition is broken, or all are clear.
    """

    rule: str
    severity: str
    state: StateName
    beneath: StateName
    since_ms: int
    hint: str = ""
    condition: str = ""
    value: float | None = None
    limit: float | None = None
    says: str = ""
    sql: str = ""
    until_ms: int | None = None
    fired: bool = False
    broken_since_ms: int | None = None
    clear_since_ms: int | None = None


class Transition(msgspec.Struct, frozen=True, kw_only=True):
    """The record of a change of state: when, of which rule, and what was seen. before: the state before."""

    at_ms: int
    rule: str
    severity: str
    before: StateName
    state: StateName
    condition: str = ""
    value: float | None = None
    limit: float | None = None
    says: str = ""
    hint: str = ""
    sql: str = ""


def standing(
    figures: Figures,
    history: Mapping[str, AlertState] | Iterable[AlertState],
    rules: Sequence[AlertRule],
    silences: Iterable[Silence] = (),
    *,
    now_ms: int,
) -> tuple[AlertState, ...]:
    """Return the state of each rule, in the order of the rules.

    history: what the last call returned, as it is or by rule; empty at first.
    """
    before = history if isinstance(history, Mapping) else {each.rule: each for each in history}
    until: dict[str, int] = {}
    for silence in silences:
        if silence.until_ms > now_ms:
            until[silence.rule] = max(silence.until_ms, until.get(silence.rule, 0))
    return tuple(_state(rule, figures, before.get(rule.name), until.get(rule.name), now_ms) for rule in rules)


def transitions(
    before: Mapping[str, AlertState] | Iterable[AlertState], now: Iterable[AlertState], *, now_ms: int
) -> tuple[Transition, ...]:
    """Return the records of all changes between two standings. A rule that was never seen before was "no data"."""
    known = before if isinstance(before, Mapping) else {each.rule: each for each in before}
    found = []
    for each in now:
        was: StateName = known[each.rule].state if each.rule in known else "no data"
        if was != each.state:
            found.append(
                Transition(
                    at_ms=now_ms,
                    rule=each.rule,
                    severity=each.severity,
                    before=was,
                    state=each.state,
                    condition=each.condition,
                    value=each.value,
                    limit=each.limit,
                    says=each.says,
                    hint=each.hint if each.state == "firing" else "",
                    sql=each.sql,
                )
            )
    return tuple(found)


def _state(
    rule: AlertRule, figures: Figures, before: AlertState | None, silenced_until_ms: int | None, now_ms: int
) -> AlertState:
    judged = [judge(name, condition, figures) for name, condition in rule.when.items()]
    with_data = [each for each in judged if each.broken is not None]
    broken = next((each for each in with_data if each.broken), None)
    shown = broken or next(iter(with_data), judged[0])
    fired = before is not None and before.fired
    broken_since = _since(broken is not None, before.broken_since_ms if before else None, now_ms)
    clear = bool(with_data) and all(each.clear for each in with_data)
    clear_since = _since(clear, before.clear_since_ms if before else None, now_ms)
    if not with_data:
        beneath: StateName = "no data"
    elif fired:
        fired = clear_since is None or now_ms - clear_since < rule.clear_seconds * 1000
        beneath = "firing" if fired else "recovered"
    elif broken_since is not None and now_ms - broken_since >= rule.fire_seconds * 1000:
        fired, beneath = True, "firing"
    else:
        beneath = "recovered" if before is not None and _still_recovered(before, now_ms) else "ok"
    state: StateName = "silenced" if silenced_until_ms is not None else beneath
    same = before is not None and before.state == state
    if before is not None and beneath == before.beneath == "firing" and broken is None:
        shown = next((each for each in with_data if each.name == before.condition), shown)
    return AlertState(
        rule=rule.name,
        severity=rule.severity,
        state=state,
        beneath=beneath,
        since_ms=before.since_ms if before is not None and same else now_ms,
        hint=rule.hint,
        condition=shown.name,
        value=shown.measured.value if shown.measured else None,
        limit=shown.measured.limit if shown.measured else None,
        says=_says(shown, beneath, judged),
        sql=shown.sql if beneath in ("firing", "recovered") else "",
        until_ms=silenced_until_ms,
        fired=fired,
        broken_since_ms=broken_since,
        clear_since_ms=clear_since,
    )


def _still_recovered(before: AlertState, now_ms: int) -> bool:
    """Return whether a rule that had recovered is still shown so; under a silence the begin of `clear` tells."""
    began = before.clear_since_ms if before.clear_since_ms is not None else before.since_ms
    return before.beneath == "recovered" and now_ms - began < RECOVERED_SECONDS * 1000


def _since(holds: bool, since_ms: int | None, now_ms: int) -> int | None:
    if not holds:
        return None
    return now_ms if since_ms is None else since_ms


def _says(shown: Judgement, beneath: StateName, judged: Sequence[Judgement]) -> str:
    """Return the sentence of a state: its condition's if it fires, otherwise the plain value, or the missing data."""
    if beneath == "no data":
        return "; ".join(dict.fromkeys(each.says for each in judged))
    return shown.says if beneath == "firing" else shown.plain
