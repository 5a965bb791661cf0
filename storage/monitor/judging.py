"""The judgement of one condition on a run's figures: broken, clear, in between, or without data. Only arithmetic."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import msgspec

from storage.monitor.figures import KINDS, Figures, Point, Unit, rows_query
from storage.monitor.rules import (
    ApartCondition,
    ChangeCondition,
    Condition,
    DriftCondition,
    ExplainedCondition,
    LimitCondition,
    RisingCondition,
    direction_of,
)

ROUNDING = 1e-9  # 0.4 - 0.5 is -0.09999999999999998.
PSI_FLOOR = 0.5  # Added to each count, so that an empty one gives no infinity.


class MeasuredCondition(msgspec.Struct, frozen=True, kw_only=True):
    """A condition's value with its limit. over: how far the value is beyond the limit; ≤ 0 if it is not.

    first: the value that it is compared with, for the sentence. unit: of value and limit, if not that of the figure.
    """

    value: float
    limit: float
    over: float
    first: float | None = None
    unit: Unit | None = None


class Judgement(msgspec.Struct, frozen=True, kw_only=True):
    """What a condition says of a run now. Its texts are made when somebody asks for them.

    name: of the condition, in its rule. broken: the value is beyond the limit; None without data. clear: it is back by
    `clear_by`; a value that is neither broken nor clear changes nothing. missing: the data that it lacks. points: what
    the value was computed from.
    """

    name: str
    condition: Condition
    broken: bool | None
    clear: bool = False
    measured: MeasuredCondition | None = None
    missing: str = ""
    points: Sequence[Point] = ()

    @property
    def says(self) -> str:
        """Return the sentence about a broken condition, or the data that is missing."""
        return self._text(self.condition.says)

    @property
    def plain(self) -> str:
        """Return the value and the limit, without a claim, or the data that is missing."""
        return self._text(_plain(self.condition))

    @property
    def sql(self) -> str:
        """Return the query, on the run's ledger, for the rows behind the judgement; "" without data."""
        return "" if self.measured is None else rows_query(self.condition.value, self.points)

    def _text(self, text: str) -> str:
        if self.measured is None:
            return self.missing
        return text.format(**_shown(self.condition, self.measured, self.points))


def judge(name: str, condition: Condition, figures: Figures) -> Judgement:
    """Return what a condition, under its name in the rule, says of these figures."""
    points = figures.get(condition.value, ())
    measured = _measure(condition, points, figures)
    if isinstance(measured, str):
        return Judgement(name=name, condition=condition, broken=None, missing=measured)
    return Judgement(
        name=name,
        condition=condition,
        broken=measured.over > 0,
        clear=measured.over <= ROUNDING - condition.clear_by,
        measured=measured,
        points=points[-condition.newest :],
    )


def _measure(condition: Condition, points: Sequence[Point], figures: Figures) -> MeasuredCondition | str:
    """Return a condition's value and limit, or in words the data that it lacks."""
    if not points:
        return f"no {condition.value} yet"
    match condition:
        case LimitCondition():
            return _limit(condition, points)
        case ChangeCondition():
            return _change(condition, points)
        case RisingCondition():
            return _rising(condition, points)
        case ApartCondition():
            return _apart(condition, points, figures)
        case ExplainedCondition():
            return _explained(condition, points, figures)
        case DriftCondition():
            return measure_drift(condition, points)


def _limit(condition: LimitCondition, points: Sequence[Point]) -> MeasuredCondition | str:
    newest = points[-condition.newest :]
    if len(newest) < condition.needs:
        return f"{condition.value}: {len(newest)} of {condition.needs} points yet"
    weight = sum(point.weight for point in newest)
    if weight < condition.weight_min:
        return f"{condition.value}: {weight:g} of {condition.weight_min:g} counted yet"
    values = [point.value for point in newest]
    match condition.aggregate:
        case "mean":
            value = mean(newest)
        case "least":
            value = min(values)
        case "most":
            value = max(values)
        case "last":
            value = values[-1]
    if value is None:
        return f"{condition.value}: nothing counted yet"
    side, limit = direction_of(condition)
    over = value - limit if side == "above" else limit - value
    return MeasuredCondition(value=value, limit=limit, over=over, unit=KINDS[condition.value].unit)


def _change(condition: ChangeCondition, points: Sequence[Point]) -> MeasuredCondition | str:
    if len(points) <= condition.first:
        return f"{condition.value}: {len(points)} points; needs more than the first {condition.first} to compare with"
    now, first = mean(points[-condition.newest :]), mean(points[: condition.first])
    if now is None or first is None:
        return f"{condition.value}: nothing counted yet"
    side, limit = direction_of(condition)
    if condition.by == "difference":
        over = now - first - limit
    elif first <= 0:
        return f"{condition.value}: {first:.3g} at first, so nothing to compare with"
    else:
        # Both sides times `first`: a quotient would round at the limit itself.
        over = (now - limit * first) / first if now != limit * first else 0.0
    over = over if side == "above" else -over
    return MeasuredCondition(value=now, first=first, limit=limit, over=over)


def _rising(condition: RisingCondition, points: Sequence[Point]) -> MeasuredCondition | str:
    newest = points[-condition.newest :]
    half = len(newest) // 2
    now, early, late = mean(newest), mean(newest[:half]), mean(newest[half:])
    if len(newest) < condition.newest or now is None or early is None or late is None:
        return f"{condition.value}: {len(newest)} of {condition.newest} points yet"
    over = now - condition.above
    # A value that stays high rises no more, but it has not recovered either.
    if over > 0 and late <= early * (1 + condition.rise):
        over = -condition.clear_by / 2 if condition.clear_by else 0.0
    return MeasuredCondition(value=now, first=early, limit=condition.above, over=over)


def _apart(condition: ApartCondition, points: Sequence[Point], figures: Figures) -> MeasuredCondition | str:
    beside, scale = figures.get(condition.beside, ()), mean(figures.get(condition.scale, ())[: condition.first])
    if len(points) <= condition.first or not scale:
        return f"{condition.value}: {len(points)} points; needs more than the first {condition.first} to compare with"
    if len(beside) < 1 + condition.beside_newest:
        return f"{condition.beside}: {len(beside)} of {1 + condition.beside_newest} points yet"
    now, first = mean(points[-condition.newest :]), mean(points[: condition.first])
    other = mean(beside[-condition.beside_newest :])
    if now is None or first is None or other is None:
        return f"{condition.value}: nothing counted yet"
    gain, lag = (now - first) / scale, beside[0].value + condition.gain - other
    over = gain - condition.above
    if over > 0 and lag < 0:
        over = -condition.clear_by  # The other figure has risen with it.
    return MeasuredCondition(value=gain, first=lag, limit=condition.above, over=over)


def _explained(condition: ExplainedCondition, points: Sequence[Point], figures: Figures) -> MeasuredCondition | str:
    by, slopes = figures.get(condition.by, ()), figures.get(condition.slope, ())
    scale = mean(figures.get(condition.scale, ())[: condition.first])
    if len(points) <= condition.first or len(by) <= condition.first or not slopes or not scale:
        return f"{condition.value}, {condition.by}: needs more than the first {condition.first} points to compare with"
    now, first = mean(points[-condition.newest :]), mean(points[: condition.first])
    size, size_first = mean(by[-condition.newest :]), mean(by[: condition.first])
    slope = mean([*slopes[: condition.first], *slopes[-condition.newest :]])
    if now is None or first is None or size is None or size_first is None or slope is None:
        return f"{condition.value}: nothing counted yet"
    gain = now - first
    if gain < condition.rise * scale:
        return MeasuredCondition(value=0.0, limit=condition.above, over=-condition.above, unit="share")
    share = slope * (size - size_first) / gain
    return MeasuredCondition(value=share, first=gain, limit=condition.above, over=share - condition.above, unit="share")


def measure_drift(condition: DriftCondition, points: Sequence[Point]) -> MeasuredCondition | str:
    """Return how far the newest points differ from the first ones, or why that is not known yet."""
    if len(points) < condition.first + condition.newest:
        return f"{condition.value}: {len(points)} of {condition.first + condition.newest} points yet"
    now, first = _sum(points[-condition.newest :]), _sum(points[: condition.first])
    counted = min(now.total(), first.total())
    if counted < condition.counts_min:
        return f"{condition.value}: {counted} of {condition.counts_min} counted yet"
    # Two samples of one distribution differ too: their index is about (k - 1) · (1/n + 1/m) on average.
    chance = (len({*first, *now}) - 1) * (1 / first.total() + 1 / now.total())
    value = stability_index(first, now) - chance
    return MeasuredCondition(value=value, limit=condition.above, over=value - condition.above, unit="number")


def stability_index(before: Counter[str], now: Counter[str]) -> float:
    """Return the population stability index of two distributions: Σ (p − q) · ln(p / q), each count plus a half."""
    names = sorted({*before, *now})
    totals = [counts.total() + PSI_FLOOR * len(names) for counts in (before, now)]
    shares = [((before[name] + PSI_FLOOR) / totals[0], (now[name] + PSI_FLOOR) / totals[1]) for name in names]
    return math.fsum((p - q) * math.log(p / q) for p, q in shares)


def mean(points: Sequence[Point]) -> float | None:
    """Return the weighted mean of points; None if they weigh nothing."""
    weight = sum(point.weight for point in points)
    return sum(point.value * point.weight for point in points) / weight if weight else None


def _sum(points: Sequence[Point]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for point in points:
        counts.update(point.counts)
    return counts


def _plain(condition: Condition) -> str:
    """Return the sentence about a condition that is not broken, with placeholders."""
    match condition:
        case ChangeCondition():
            of_what = "of it" if condition.by == "ratio" else "more"
            return f"{condition.value} {{value}}, at first {{first}} (limit {{limit}} {of_what})"
        case ApartCondition():
            return f"{condition.value} rose by {{value:.2f}} of its spread (limit {{limit}} without {condition.beside})"
        case ExplainedCondition():
            return f"{condition.by} explains {{value}} of the gain of {condition.value} (limit {{limit}})"
        case DriftCondition():
            return f"{condition.value}: PSI {{value:.3f}} (limit {{limit}})"
        case _:
            return f"{condition.value} {{value}} (limit {{limit}})"


def _shown(condition: Condition, measured: MeasuredCondition, newest: Sequence[Point]) -> dict[str, object]:
    """Return the values of a sentence's placeholders. One without a form takes that of the figure's unit."""
    unit = measured.unit or KINDS[condition.value].unit
    if isinstance(condition, ApartCondition):
        unit = "number"
    limit: Unit = "share" if isinstance(condition, ChangeCondition) and condition.by == "ratio" else unit
    return {
        "value": ShownNumber(measured.value, unit),
        "first": ShownNumber(measured.first, unit),
        "limit": ShownNumber(measured.limit, limit),
        "rest": ShownNumber(1 - measured.value, unit),
        "newest": ShownNumber(float(condition.newest), "number"),
        "note": newest[-1].note if newest else "",
    }


class ShownNumber:
    """A number that a text shows in its own form, or in the form of its unit."""

    def __init__(self, value: float | None, unit: Unit) -> None:
        self._value = value
        self._unit = unit

    def __format__(self, form: str) -> str:
        """Return the number; "?" if there is none."""
        if self._value is None:
            return "?"
        if form:
            return format(self._value, form)
        if self._unit == "share":
            return f"{100 * self._value:.3g}%"
        if self._unit == "seconds":
            return f"{self._value:.0f} s"
        return f"{self._value:.3g}"
