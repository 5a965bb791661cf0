"""The drift of feedback over time: at each hour, how far clicks differ from the first ones, as the rules see it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from storage.monitor.figures import Figures
from storage.monitor.judging import measure_drift
from storage.monitor.rules import AlertRule, DriftCondition

HOURS_MAX = 24 * 60


class DriftLine(msgspec.Struct, frozen=True, kw_only=True):
    """One condition of a rule over time. points: (milliseconds, index); limit: beyond which the rule fires.

    says: why the newest value is not known; "" if it is.
    """

    rule: str
    figure: str
    limit: float
    points: list[tuple[int, float]]
    says: str = ""


def drift_lines(figures: Figures, rules: Sequence[AlertRule]) -> list[DriftLine]:
    """Return each drift condition of the rules that are on, over the newest `HOURS_MAX` points of its figure."""
    found = []
    for rule in rules:
        for condition in rule.when.values():
            if isinstance(condition, DriftCondition) and not rule.off:
                found.append(_line(rule.name, condition, figures))
    return found


def _line(rule: str, condition: DriftCondition, figures: Figures) -> DriftLine:
    points = figures.get(condition.value, ())
    measured: list[tuple[int, float]] = []
    said = ""
    for end in range(max(len(points) - HOURS_MAX, 0), len(points)):
        seen = measure_drift(condition, points[: end + 1])
        said = seen if isinstance(seen, str) else ""
        if not isinstance(seen, str):
            measured.append((points[end].at_ms, seen.value))
    if not points:
        said = f"{condition.value}: no point yet"
    return DriftLine(rule=rule, figure=condition.value, limit=condition.above, points=measured, says=said)
