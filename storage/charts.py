"""Line charts as HTML and SVG text: no library, no script, no requests; every text in them is escaped.

A chart is a figure with a title, a line on how to read it, and one or more panels that share the horizontal axis. Lines
of many points are smoothed (`smoothing.moving_mean`), with the raw line behind. Each line has its own dashes and its
label beside its end, so that nobody needs the colours. The plot stretches with the page, the texts keep their size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec

from storage.pages import clean
from storage.smoothing import Point, moving_mean, thinned, window_of

WIDTH = 1000  # Of the plot in its own units; the page stretches it.
HEIGHT = 190
TICKS = 4
POINTS_MARKED_MAX = 40  # More dots than this hide the line.
POINTS_MAX = 300  # Of a line; more would only make the page larger.
LINES_MAX = 8
LABEL_PIXELS = 17
VALUE_MAX = 1e300  # Beyond it sums overflow.


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """One line: (x, y) points in the order of x. errors: half the height of the band around each point."""

    name: str
    points: tuple[Point, ...]
    errors: tuple[float, ...] = ()


class Panel(msgspec.Struct, frozen=True, kw_only=True):
    """One plot. label: what its values are, with their unit. percent: values are shares, shown from 0 to 100%."""

    series: tuple[Series, ...]
    label: str = ""
    percent: bool = False
    height: int = HEIGHT


class _Line(msgspec.Struct, frozen=True, kw_only=True):
    """A series as it is drawn: `smooth` in front, `raw` behind if it was smoothed."""

    number: int
    name: str
    smooth: tuple[Point, ...]
    raw: tuple[Point, ...] = ()
    errors: tuple[float, ...] = ()
    points: tuple[Point, ...]


def line_chart(title: str, series: Sequence[Series], *, x_label: str, percent: bool = False, how: str = "") -> str:
    """Return a figure with one panel. See `chart`."""
    return chart(title, [Panel(series=tuple(series), percent=percent)], x_label=x_label, how=how)


def chart(title: str, panels: Sequence[Panel], *, x_label: str, how: str = "") -> str:
    """Return a figure with panels below each other; what has no points is left out.

    how: one line on how to read it. Points that are not finite are left out. Returns "" if there is nothing to draw.
    """
    drawn = [(panel, lines) for panel in panels if (lines := _lines(panel))]
    if not drawn:
        return ""
    xs = [x for _, lines in drawn for line in lines for x, _ in line.points]
    left, right = min(xs), max(xs)
    smoothed = max((window_of(len(line.points)) for _, lines in drawn for line in lines), default=1)
    note = f'<p class="how">{clean(how)}</p>' if how else ""
    foot = f"{x_label}; thick: moving mean of {smoothed}, thin: each point" if smoothed > 1 else x_label
    plots = [_plot(title, panel, lines, left, right, x_label) for panel, lines in drawn]
    return (
        f'<figure class="chart"><figcaption><h3>{clean(title)}</h3>{note}</figcaption>{"".join(plots)}'
        f"{_x_axis(left, right, foot)}</figure>"
    )


def _lines(panel: Panel) -> list[_Line]:
    found: list[_Line] = []
    for series in panel.series:
        errors = series.errors or (0.0,) * len(series.points)
        kept = [
            (point, error)
            for point, error in zip(series.points, errors, strict=True)
            if abs(point[1]) <= VALUE_MAX and abs(error) <= VALUE_MAX  # False for NaN too.
        ]
        if not kept or len(found) == LINES_MAX:
            continue
        points = tuple(point for point, _ in kept)
        window = window_of(len(points))
        band = moving_mean([(x, error) for (x, _), error in kept], window) if series.errors else ()
        found.append(
            _Line(
                number=len(found),
                name=series.name,
                smooth=moving_mean(points, window),
                raw=points if window > 1 else (),
                errors=tuple(error for _, error in band),
                points=points,
            )
        )
    return found


def _plot(title: str, panel: Panel, lines: Sequence[_Line], left: float, right: float, x_label: str) -> str:
    bottom, top = (0.0, 1.0) if panel.percent else _range_of(lines)
    height = panel.height
    if left == right:
        left, right = left - 0.5, right + 0.5

    def across(x: float) -> float:
        return (x - left) / (right - left) * WIDTH

    def down(y: float) -> float:
        return min(max((top - y) / (top - bottom), 0.0), 1.0) * height

    def path(points: Sequence[Point]) -> str:
        return " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in points)

    parts = []
    ticks = []
    for tick in range(TICKS + 1):
        at = height * tick / TICKS
        parts.append(f'<line class="grid" x1="0" y1="{at:g}" x2="{WIDTH}" y2="{at:g}"/>')
        value = tick_text(top - (top - bottom) * tick / TICKS, step=(top - bottom) / TICKS, percent=panel.percent)
        ticks.append(f'<span style="top:{at:g}px">{value}</span>')
    for line in lines:
        if line.errors:
            wide = [*zip(line.smooth, line.errors, strict=True)]
            if len(wide) > POINTS_MAX:
                wide = wide[:: -(-len(wide) // POINTS_MAX)]
            edge = [(x, y + error) for (x, y), error in wide] + [(x, y - error) for (x, y), error in reversed(wide)]
            parts.append(f'<polygon class="band s{line.number}" points="{path(edge)}"/>')
    for line in lines:
        if line.raw:
            parts.append(f'<polyline class="raw s{line.number}" points="{path(thinned(line.raw, POINTS_MAX))}"/>')
    for line in lines:
        points = thinned(line.smooth, POINTS_MAX)
        parts.append(f'<polyline class="line s{line.number}" points="{path(points)}"/>')
        if len(line.points) <= POINTS_MARKED_MAX:
            parts += [
                f'<path class="dot s{line.number}" d="M{across(x):.1f} {down(y):.1f}h.01"><title>{clean(line.name)}, '
                f"{clean(x_label)} {x:g}: {_number(y, panel.percent)}</title></path>"
                for x, y in line.points
            ]
    labels, leads = _labels(lines, panel, down)
    name = f"{title}: {panel.label}" if panel.label else title
    label = f'<p class="unit">{clean(panel.label)}</p>' if panel.label else ""
    size = f'style="height:{height}px"'
    return (
        f'{label}<div class="plot"><div class="ticks" aria-hidden="true" {size}>{"".join(ticks)}</div>'
        f'<svg class="lines" {size} viewBox="0 0 {WIDTH} {height}" preserveAspectRatio="none" role="img" '
        f'aria-label="{clean(name)}"><desc>{clean(_described(lines, panel, x_label))}</desc>{"".join(parts)}</svg>'
        f'<svg class="leads" {size} viewBox="0 0 12 {height}" preserveAspectRatio="none" aria-hidden="true">{leads}'
        f'</svg><div class="labels" aria-hidden="true" {size}>{labels}</div></div>'
    )


def _labels(lines: Sequence[_Line], panel: Panel, down: Callable[[float], float]) -> tuple[str, str]:
    """Return the labels at the lines' ends, moved apart until none overlaps, and the strokes that lead to them."""
    ends = {line.number: down(line.smooth[-1][1]) for line in lines}
    places = spread_out(ends, distance=LABEL_PIXELS, low=0, high=panel.height)
    labels, leads = [], []
    for line in lines:
        value = _number(line.smooth[-1][1], panel.percent)
        labels.append(
            f'<span class="s{line.number}" style="top:{places[line.number]:.0f}px"><b>{value}</b> '
            f"<bdi>{clean(line.name)}</bdi></span>"
        )
        leads.append(f'<path class="lead s{line.number}" d="M0 {ends[line.number]:.1f}L12 {places[line.number]:.1f}"/>')
    return "".join(labels), "".join(leads)


def spread_out(wanted: dict[int, float], *, distance: float, low: float, high: float) -> dict[int, float]:
    """Return places near the wanted ones, in the same order, each at least `distance` from the next.

    They stay between low and high as long as there is room for all.
    """
    order = sorted(wanted, key=lambda name: (wanted[name], name))
    places: dict[int, float] = {}
    least = low
    for name in order:
        places[name] = max(wanted[name], least)
        least = places[name] + distance
    most = max(high, low + distance * (len(order) - 1))
    for name in reversed(order):
        places[name] = min(places[name], most)
        most = places[name] - distance
    return places


def _described(lines: Sequence[_Line], panel: Panel, x_label: str) -> str:
    """Return what a person who cannot see the chart needs: where each line starts and ends, and its extremes."""

    def said(value: float) -> str:
        return _number(value, panel.percent)

    found = []
    for line in lines:
        (first_x, first), (last_x, last) = line.points[0], line.points[-1]
        low, high = min(y for _, y in line.points), max(y for _, y in line.points)
        if len(line.points) == 1:
            found.append(f"{line.name}: {said(first)} at {x_label} {first_x:g}.")
            continue
        found.append(
            f"{line.name}: {said(first)} at {x_label} {first_x:g}, {said(last)} at {last_x:g}; lowest {said(low)}, "
            f"highest {said(high)}."
        )
    return " ".join(found)


def _x_axis(left: float, right: float, x_label: str) -> str:
    marks = [left] if left == right else _x_ticks(left, right)
    spans = []
    for x in marks:
        at = 50.0 if left == right else (x - left) / (right - left) * 100
        spans.append(f'<span style="left:{at:.1f}%">{x:g}</span>')
    return (
        f'<div class="x-axis" aria-hidden="true"><div><div class="x-ticks">{"".join(spans)}</div>'
        f'<p class="x-label">{clean(x_label)}</p></div></div>'
    )


def _x_ticks(left: float, right: float) -> list[float]:
    """Return round numbers inside the axis, at most six."""
    step = _round_step((right - left) / 5)
    if float(left).is_integer() and float(right).is_integer():
        step = max(step, 1.0)
    first = math.ceil(left / step - 1e-9)
    last = math.floor(right / step + 1e-9)
    return [number * step for number in range(first, last + 1)] or [left]


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def _range_of(lines: Sequence[_Line]) -> tuple[float, float]:
    lows, highs = [], []
    for line in lines:
        errors = line.errors or (0.0,) * len(line.smooth)
        drawn = [*line.raw, *line.smooth]
        lows += [y for _, y in drawn] + [y - error for (_, y), error in zip(line.smooth, errors, strict=True)]
        highs += [y for _, y in drawn] + [y + error for (_, y), error in zip(line.smooth, errors, strict=True)]
    return _nice_range(min(lows), max(highs))


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


def tick_text(value: float, *, step: float, percent: bool = False) -> str:
    """Return a tick's number with as many decimals as tell it from its neighbours, `step` away."""
    if percent:
        return f"{value:.0%}"
    power = math.floor(math.log10(step))
    decimals = max(0, -power + (not math.isclose(step / 10.0**power, round(step / 10.0**power), rel_tol=1e-6)))
    if decimals > 6 or abs(value) >= 1e5:
        return f"{value + 0.0:.3g}"
    return f"{round(value, decimals) + 0.0:.{decimals}f}"


def _number(value: float, percent: bool) -> str:
    return f"{value:.0%}" if percent else f"{value + 0.0:.3g}"
