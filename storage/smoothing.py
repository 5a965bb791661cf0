"""Smoothed and thinned lines for charts: pure functions of points."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

Point = tuple[float, float]

SMOOTHED_MIN = 12  # Fewer points show their course without help.
WINDOW_SHARE = 0.1
WINDOW_MIN, WINDOW_MAX = 5, 101


def window_of(count: int) -> int:
    """Return the length of the smoothing window for so many points: odd, about a tenth of them, 5 to 101.

    Returns 1, which smooths nothing, for fewer than `SMOOTHED_MIN` points.
    """
    if count < SMOOTHED_MIN:
        return 1
    return min(max(WINDOW_MIN, round(count * WINDOW_SHARE) // 2 * 2 + 1), WINDOW_MAX)


def moving_mean(points: Sequence[Point], window: int) -> tuple[Point, ...]:
    """Return the centred moving mean: each point's mean over itself and up to window // 2 neighbours on each side.

    window: an odd number of points. At both ends only the neighbours that exist count, so an end is a mean of
    (window + 1) / 2 points. Distances in x do not count. Raises ValueError for an even window or one below 1.
    """
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window: expected an odd number from 1 on, got {window}")
    half, values = window // 2, [y for _, y in points]
    means = [math.fsum(near) / len(near) for near in _near(values, half, range(min(half, len(values))))]
    if len(values) >= window:
        means += sliding_window_view(np.array(values), window).mean(axis=1).tolist()
    means += [math.fsum(near) / len(near) for near in _near(values, half, range(len(means), len(values)))]
    return tuple((x, mean) for (x, _), mean in zip(points, means, strict=True))


def _near(values: Sequence[float], half: int, places: range) -> Iterator[Sequence[float]]:
    return (values[max(0, at - half) : at + half + 1] for at in places)


def thinned(points: Sequence[Point], count: int) -> tuple[Point, ...]:
    """Return at most `count` points that keep the line's shape.

    The points are cut into equal runs, and of each run the lowest and the highest are kept, so that no peak is lost.
    The first and the last point are kept as well. count: at least 4. Raises ValueError for less.
    """
    if count < 4:
        raise ValueError(f"count: expected at least 4, got {count}")
    if len(points) <= count:
        return tuple(points)
    runs = (count - 2) // 2
    inner = range(1, len(points) - 1)
    kept = {0, len(points) - 1}
    for run in range(runs):
        part = inner[run * len(inner) // runs : (run + 1) * len(inner) // runs]
        kept |= {min(part, key=lambda at: points[at][1]), max(part, key=lambda at: points[at][1])}
    return tuple(points[at] for at in sorted(kept))


def finite(points: Sequence[tuple[float, float | None]]) -> tuple[Point, ...]:
    """Return the points whose value is a finite number."""
    return tuple((x, y) for x, y in points if y is not None and math.isfinite(y))
