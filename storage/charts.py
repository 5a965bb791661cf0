"""Line charts as SVG text: no library, no script, no requests; every text in them is escaped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import msgspec

WIDTH, HEIGHT = 560, 240
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 36
TICKS = 4
POINTS_MARKED_MAX = 60  # More dots than this hide the line.


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """One line: (x, y) points in the order of x. errors: half the height of the band around each point."""

    name: str
    points: tuple[tuple[float, float], ...]
    errors: tuple[float, ...] = ()


def line_chart(title: str, series: Sequence[Series], *, x_label: str, percent: bool = False) -> str:
    """Return a figure with one line per series; series without points are left out.

    percent: values are shares; the axis runs from 0 to 100%. Returns "" if there is nothing to draw.
    """
    drawn = [line for line in series if line.points]
    if not drawn:
        return ""
    xs = [x for line in drawn for x, _ in line.points]
    lows, highs = [], []
    for line in drawn:
        errors = line.errors or (0.0,) * len(line.points)
        lows += [y - error for (_, y), error in zip(line.points, errors, strict=True)]
        highs += [y + error for (_, y), error in zip(line.points, errors, strict=True)]
    bottom, top = (0.0, 1.0) if percent else _nice_range(min(lows), max(highs))
    left, right = min(xs), max(xs)
    if left == right:
        left, right = left - 0.5, right + 0.5

    def at(x: float, y: float) -> str:
        across = LEFT + (x - left) / (right - left) * (WIDTH - LEFT - RIGHT)
        down = TOP + (top - y) / (top - bottom) * (HEIGHT - TOP - BOTTOM)
        return f"{across:.1f},{down:.1f}"

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    for tick in range(TICKS + 1):
        y = bottom + (top - bottom) * tick / TICKS
        x_left, y_at = at(left, y).split(",")
        x_right = at(right, y).split(",")[0]
        parts.append(f'<line class="grid" x1="{x_left}" y1="{y_at}" x2="{x_right}" y2="{y_at}"/>')
        parts.append(
            f'<text class="tick" x="{LEFT - 6}" y="{y_at}" dy=".32em" text-anchor="end">{_number(y, percent)}</text>'
        )
    for x in sorted({min(xs), max(xs)}):
        across = at(x, bottom).split(",")[0]
        parts.append(f'<text class="tick" x="{across}" y="{HEIGHT - 20}" text-anchor="middle">{x:g}</text>')
    parts.append(
        f'<text class="tick" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">'
        f"{escape(x_label)}</text>"
    )
    for number, line in enumerate(drawn):
        colour = f"series-{number % 6}"
        if line.errors:
            above = [at(x, y + error) for (x, y), error in zip(line.points, line.errors, strict=True)]
            below = [at(x, y - error) for (x, y), error in zip(line.points, line.errors, strict=True)]
            parts.append(f'<polygon class="band {colour}" points="{" ".join(above + below[::-1])}"/>')
        parts.append(f'<polyline class="line {colour}" points="{" ".join(at(x, y) for x, y in line.points)}"/>')
        if len(line.points) <= POINTS_MARKED_MAX:
            for x, y in line.points:
                across, down = at(x, y).split(",")
                parts.append(
                    f'<circle class="dot {colour}" cx="{across}" cy="{down}" r="2.5"><title>{escape(line.name)}, '
                    f"{escape(x_label)} {x:g}: {_number(y, percent)}</title></circle>"
                )
    parts.append("</svg>")
    legend = "".join(
        f'<span class="key series-{number % 6}">{escape(line.name)}</span>' for number, line in enumerate(drawn)
    )
    return f"<figure><figcaption>{escape(title)} {legend}</figcaption>{''.join(parts)}</figure>"


def _nice_range(low: float, high: float) -> tuple[float, float]:
    """Return bounds around the values that have round numbers as ticks."""
    if high - low < 1e-12:
        pad = abs(high) * 0.1 or 1.0
        low, high = low - pad, high + pad
    rough = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    for factor in (1, 2, 2.5, 5, 10, 20):
        step = factor * power
        bottom = math.floor(low / step) * step
        if bottom + TICKS * step >= high - 1e-12:
            return bottom, bottom + TICKS * step
    return low, high


def _number(value: float, percent: bool) -> str:
    return f"{value:.0%}" if percent else f"{value:.3g}"
