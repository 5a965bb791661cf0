"""The charts: smoothing worked by hand, labels that do not overlap, and colours that everybody can tell apart."""

from __future__ import annotations

import math
import re
from importlib import resources
from itertools import pairwise

import pytest

from storage.charts import LABEL_PIXELS, LINES_MAX, POINTS_MAX, Panel, Series, chart, line_chart, spread_out, tick_text
from storage.smoothing import finite, moving_mean, thinned, window_of

STYLE = resources.files("storage").joinpath("pages.css").read_text(encoding="utf-8")


def line(*values: float, name: str = "a") -> Series:
    return Series(name=name, points=tuple((float(at), value) for at, value in enumerate(values)))


def test_the_moving_mean_of_a_page_worked_by_hand() -> None:
    points = [(0.0, 3.0), (1.0, 6.0), (5.0, 0.0), (6.0, 9.0), (7.0, 12.0)]
    # Three points each; the two ends have one neighbour: (3+6)/2, (3+6+0)/3, (6+0+9)/3, (0+9+12)/3, (9+12)/2.
    assert moving_mean(points, 3) == ((0.0, 4.5), (1.0, 3.0), (5.0, 5.0), (6.0, 7.0), (7.0, 10.5))
    assert moving_mean(points, 1) == tuple(points)
    assert moving_mean([], 5) == ()


def test_a_constant_stays_and_a_window_wider_than_the_line_gives_means_of_what_is_there() -> None:
    assert moving_mean([(float(x), 0.5) for x in range(20)], 7) == tuple((float(x), 0.5) for x in range(20))
    assert moving_mean([(0.0, 1.0), (1.0, 2.0)], 99) == ((0.0, 1.5), (1.0, 1.5))


@pytest.mark.parametrize("window", [0, 2, -3])
def test_a_window_without_a_middle_is_refused(window: int) -> None:
    with pytest.raises(ValueError, match="odd number"):
        moving_mean([(0.0, 1.0)], window)


def test_the_window_is_a_tenth_of_the_points_odd_and_from_5_to_101() -> None:
    assert [window_of(count) for count in (1, 11, 12, 60, 120, 10_000)] == [1, 1, 5, 7, 13, 101]


def test_thinning_keeps_peaks_ends_and_order() -> None:
    points = [(float(x), math.sin(x / 40)) for x in range(5000)]
    points[1234] = (1234.0, 99.0)
    points[4321] = (4321.0, -99.0)
    kept = thinned(points, 100)
    assert len(kept) <= 100 and kept[0] == points[0] and kept[-1] == points[-1]
    assert (1234.0, 99.0) in kept and (4321.0, -99.0) in kept
    assert list(kept) == sorted(kept)
    assert thinned(points[:50], 100) == tuple(points[:50])


def test_points_without_a_number_are_left_out() -> None:
    assert finite([(0.0, None), (1.0, math.nan), (2.0, math.inf), (3.0, 4.0)]) == ((3.0, 4.0),)
    drawn = line_chart("t", [line(1.0, math.nan, math.inf, 2.0), line(math.nan, name="b")], x_label="x")
    assert "nan" not in drawn and "inf" not in drawn and ">b<" not in drawn
    assert line_chart("t", [line(math.nan)], x_label="x") == ""


def test_labels_of_lines_that_end_at_one_place_do_not_overlap() -> None:
    places = spread_out({0: 50.0, 1: 50.0, 2: 51.0, 3: 180.0}, distance=17, low=0, high=190)
    assert places == {0: 50.0, 1: 67.0, 2: 84.0, 3: 180.0}
    low = spread_out({0: 190.0, 1: 190.0, 2: 190.0}, distance=17, low=0, high=190)
    assert low == {0: 156.0, 1: 173.0, 2: 190.0}
    drawn = chart("t", [Panel(series=tuple(line(1.0, 2.0, name=f"n{n}") for n in range(5)))], x_label="x")
    tops = sorted(float(top) for top in re.findall(r'<span class="s\d" style="top:(\d+)px"', drawn))
    assert len(tops) == 5 and all(b - a >= LABEL_PIXELS for a, b in pairwise(tops))


def test_a_long_line_is_smoothed_with_every_peak_of_the_raw_line_behind() -> None:
    drawn = line_chart("t", [line(*(float(x % 7) for x in range(1000)))], x_label="step")
    assert drawn.count('class="line s0"') == drawn.count('class="raw s0"') == 1
    assert "thick: moving mean of 101, thin: each point" in drawn
    for points in re.findall('points="([^"]*)"', drawn):
        assert len(points.split()) <= POINTS_MAX
    short = line_chart("t", [line(1.0, 2.0, 3.0)], x_label="step")
    assert 'class="raw' not in short and "moving mean" not in short and short.count('class="dot s0"') == 3


def test_a_chart_says_in_words_what_it_shows() -> None:
    drawn = chart("Reward", [Panel(series=(line(0.5, 0.1, 0.75),), label="Points")], x_label="step", how="Up is good.")
    assert 'role="img" aria-label="Reward: Points"' in drawn
    assert "<desc>a: 0.5 at step 0, 0.75 at 2; lowest 0.1, highest 0.75.</desc>" in drawn
    assert '<p class="how">Up is good.</p>' in drawn


def test_a_chart_has_no_more_lines_than_it_has_colours_and_dashes() -> None:
    drawn = chart("t", [Panel(series=tuple(line(1.0, name=f"n{n}") for n in range(20)))], x_label="x")
    assert drawn.count('class="line s') == LINES_MAX
    dashes = re.findall(r"\.line\.s(\d) \{ stroke-dasharray: ([^;]+);", STYLE)
    assert [int(number) for number, _ in dashes] == list(range(1, LINES_MAX))  # Line 0 is solid.
    assert len({dash for _, dash in dashes}) == LINES_MAX - 1


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb, as in WCAG 2.2."""
    full = colour if len(colour) == 7 else "#" + "".join(c * 2 for c in colour[1:])
    parts = [int(full[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_every_text_and_line_passes_contrast_on_both_backgrounds(theme: int) -> None:
    block = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)[theme]
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]+)", block))
    assert {f"s{number}" for number in range(LINES_MAX)} <= colours.keys()
    for name in ("ink", "quiet", "good", "bad", "note", *(f"s{number}" for number in range(LINES_MAX))):
        for under in ("paper", "card"):
            light, dark = sorted((luminance(colours[name]), luminance(colours[under])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (name, under)


@pytest.mark.parametrize(
    ("step", "values", "texts"),
    [
        (0.25, (0.0, 0.25, 1.0), ["0.00", "0.25", "1.00"]),
        (0.0001, (1.0, 1.0001), ["1.0000", "1.0001"]),
        (0.2, (-0.2, -1e-17), ["-0.2", "0.0"]),
        (2.5, (2.5, 10.0), ["2.5", "10.0"]),
        (50.0, (50.0, 99_950.0), ["50", "99950"]),
        (1e299, (1e300,), ["1e+300"]),
        (1e-9, (3e-9,), ["3e-09"]),
    ],
)
def test_ticks_differ_from_their_neighbours(step: float, values: tuple[float, ...], texts: list[str]) -> None:
    assert [tick_text(value, step=step) for value in values] == texts
