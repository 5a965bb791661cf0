"""The two ends of a long log: alert rules compare a figure's newest points with its first ones, and see no others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from storage.monitor.figures import Point
from storage.monitor.rules import AlertRule

WIDER = 4

PointLists = dict[str, list[Point]]


class SeenEnds(msgspec.Struct, frozen=True, kw_only=True):
    """How many points of a figure somebody looks at: the first ones and the newest ones."""

    first: int
    newest: int


def reach_of(rules: Iterable[AlertRule]) -> SeenEnds:
    """Return how far the conditions of these rules look, at most."""
    first = newest = 1
    for rule in rules:
        for each in rule.when.values():
            first = max(first, getattr(each, "first", 0))
            newest = max(newest, each.newest, getattr(each, "needs", 0), getattr(each, "beside_newest", 0) + 1)
    return SeenEnds(first=first, newest=newest)


def figures_at_ends(count: int, reach: SeenEnds, read: Callable[[int, int], PointLists]) -> PointLists:
    """Return figures that have at least the reach's points at both ends, or all of their points.

    count: of the rows that may give points, oldest first. read: gives the figures of the rows from one number up to
    another. Some rows give no point of some figure, so more rows are read until there are enough.
    """
    first, newest = reach.first, reach.newest
    head: PointLists | None = None
    tail: PointLists | None = None
    while first + newest < count:
        head = read(0, first) if head is None else head
        tail = read(count - newest, count) if tail is None else tail
        if any(len(points) < reach.first for points in head.values()):
            first, head = WIDER * first, None
        if any(len(points) < reach.newest for points in tail.values()):
            newest, tail = WIDER * newest, None
        if head is not None and tail is not None:
            return {name: [*points, *tail[name]] for name, points in head.items()}
    return read(0, count)


def versions_in(rows: Sequence[dict[str, Any]]) -> str:
    """Return the condition that a row belongs to one of these versions, which all have a lineage and a step."""
    named = ", ".join(f"({_quoted(row['lineage'])}, {int(row['step'])})" for row in rows)
    return f"(lineage, step) IN ({named})"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
