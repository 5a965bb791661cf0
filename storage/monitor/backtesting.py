"""The back-test of alert rules: a logged window once more, point by point, and what the rules would have said and when.

Labels say when something was really wrong. With them, a label is a hit if one of its rules fires within it, otherwise a
miss; a rule that fires outside of every label is a false alarm. A rule that fires inside of a label without being one
of the label's rules is neither: one fault often breaks several rules.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from statistics import median

import msgspec

from storage.monitor.alert_states import AlertState, Transition, standing, transitions
from storage.monitor.figures import Figures, Point
from storage.monitor.rules import AlertRule, needed_figures

DAY_MS = 86_400_000


class Label(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A span of time in which something was wrong. rules: those that should fire; empty: any rule will do."""

    fault: str
    from_ms: int
    until_ms: int
    rules: tuple[str, ...] = ()


class LabelResult(msgspec.Struct, frozen=True, kw_only=True):
    """The result for one label. rule: the first right rule to fire, "" if none did. steps: versions until then."""

    label: Label
    rule: str = ""
    seconds: float | None = None
    steps: int | None = None


class Backtest(msgspec.Struct, frozen=True, kw_only=True):
    """What rules would have said of a window. days: of the window outside of all labels."""

    from_ms: int
    until_ms: int
    days: float
    transitions: tuple[Transition, ...]
    last: tuple[AlertState, ...]
    labels: tuple[LabelResult, ...] = ()
    false_alarms: tuple[Transition, ...] = ()

    @property
    def hits(self) -> int:
        """Return the number of labels that a right rule found."""
        return sum(bool(each.rule) for each in self.labels)

    @property
    def false_alarms_a_day(self) -> float | None:
        """Return the false alarms per day without a fault; None if there was no such time."""
        return len(self.false_alarms) / self.days if self.days > 0 else None

    @property
    def seconds_median(self) -> float | None:
        """Return the median time to detection; None if nothing was found."""
        found = [each.seconds for each in self.labels if each.seconds is not None]
        return median(found) if found else None


def backtest(
    figures: Figures,
    rules: Sequence[AlertRule],
    *,
    labels: Sequence[Label] = (),
    from_ms: int | None = None,
    until_ms: int | None = None,
) -> Backtest:
    """Return what these rules would have said of a window of a log, at each time at which a point became known.

    figures: each in the order of its times. from_ms, until_ms: the window; points before it are known, as they were
    then, but only what happens in it counts. None: the whole log.
    """
    versions = figures.get("reward_mean", ())
    figures = {name: points for name, points in figures.items() if name in needed_figures(rules)}
    times = sorted({point.at_ms for points in figures.values() for point in points})
    start = times[0] if from_ms is None and times else from_ms or 0
    end = times[-1] if until_ms is None and times else until_ms or 0
    known = {name: [point.at_ms for point in points] for name, points in figures.items()}
    # Silence before the first point of a window is not judged, but the states at its beginning come from before it.
    states: tuple[AlertState, ...] = ()
    found: list[Transition] = []
    for now_ms in times:
        if now_ms > end:
            break
        so_far = {name: points[: bisect_right(known[name], now_ms)] for name, points in figures.items()}
        now = standing(so_far, states, rules, now_ms=now_ms)
        if now_ms >= start:
            found += transitions(states, now, now_ms=now_ms)
        states = now
    inside = [label for label in labels if label.from_ms <= end and label.until_ms >= start]
    fired = [each for each in found if each.state == "firing"]
    return Backtest(
        from_ms=start,
        until_ms=end,
        days=_days_outside(inside, start, end),
        transitions=tuple(found),
        last=states,
        labels=tuple(_result(label, fired, versions) for label in inside),
        false_alarms=tuple(each for each in fired if not any(_within(each.at_ms, label) for label in inside)),
    )


def _result(label: Label, fired: Iterable[Transition], versions: Sequence[Point]) -> LabelResult:
    for each in fired:
        if _within(each.at_ms, label) and (not label.rules or each.rule in label.rules):
            seconds = (each.at_ms - label.from_ms) / 1000
            steps = _steps(versions, label.from_ms, each.at_ms)
            return LabelResult(label=label, rule=each.rule, seconds=seconds, steps=steps)
    return LabelResult(label=label)


def _steps(points: Sequence[Point], from_ms: int, until_ms: int) -> int | None:
    return sum(from_ms <= point.at_ms <= until_ms for point in points) if points else None


def _within(at_ms: int, label: Label) -> bool:
    return label.from_ms <= at_ms <= label.until_ms


def _days_outside(labels: Sequence[Label], from_ms: int, until_ms: int) -> float:
    """Return the days of a window that no label covers."""
    covered, reached = 0, from_ms
    for label in sorted(labels, key=lambda each: each.from_ms):
        begin, end = max(label.from_ms, reached), min(label.until_ms, until_ms)
        if end > begin:
            covered += end - begin
            reached = end
    return max(until_ms - from_ms - covered, 0) / DAY_MS


def upper_bound(events: int, days: float, *, confidence: float = 0.95) -> float:
    """Return the upper limit of a rate per day, exact for Poisson counts, by bisection on the distribution function."""
    low, high = 0.0, 10.0 + 5.0 * events

    def at_most(mean: float) -> float:
        return math.fsum(math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)) for k in range(events + 1))

    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if at_most(middle) > 1 - confidence else (low, middle)
    return high / days
