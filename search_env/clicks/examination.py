"""Telling examination and attraction apart by expectation maximization, from counts.

P(click) = γ_cell · α_pair: the place was examined, and the result attracts. A cell is a rank (PBM), or a rank with the
distance to the last click (UBM). EM: Chuklin, Markov and de Rijke, "Click Models for Web Search" (2015), chapter 4.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

ROUNDS_MAX = 400
TOLERANCE = 1e-4  # Largest relative change of an examination in a round, at the end.


class SeenCounts(NamedTuple):
    """Counts by pair and cell, [N] each; a pair and a cell come together at most once.

    pairs, cells: numbers from 0. shown, clicked: how often.
    """

    pairs: Integers
    cells: Integers
    shown: Floats
    clicked: Floats


class Separated(NamedTuple):
    """attraction: by pair. unseen: of a pair that was never shown. examination: by cell, NaN for an unseen cell."""

    attraction: Floats
    unseen: float
    examination: Floats


def count_seen(pairs: Integers, cells: Integers, clicked: npt.NDArray[np.bool_], *, cells_max: int) -> SeenCounts:
    """Return the counts of single impressions, [M] each."""
    keys, places = np.unique(pairs * cells_max + cells, return_inverse=True)
    return SeenCounts(
        pairs=keys // cells_max,
        cells=keys % cells_max,
        shown=np.bincount(places, minlength=len(keys)).astype(np.float64),
        clicked=np.bincount(places, weights=clicked, minlength=len(keys)).astype(np.float64),
    )


def tell_apart(seen: SeenCounts, *, pairs: int, cells: int, first: int = 0, prior: float = 0.0) -> Separated:
    """Return what pairs attract and cells are examined.

    pairs, cells: their numbers. first: the cell whose examination is 1; the others are relative to it. prior: number of
    impressions by which each pair is drawn towards the mean.
    """
    shown_of = np.bincount(seen.pairs, weights=seen.shown, minlength=pairs)
    cell_shown = np.bincount(seen.cells, weights=seen.shown, minlength=cells)
    total = max(float(seen.shown.sum()), 1.0)
    unseen = min(max(float(seen.clicked.sum()) / total, 1e-6), 0.5)
    attraction, examination = np.full(pairs, unseen), np.full(cells, 0.5)
    unclicked = seen.shown - seen.clicked
    below = np.maximum(cell_shown, 1.0)
    for _ in range(ROUNDS_MAX):
        attractive, examined = attraction[seen.pairs], examination[seen.cells]
        neither = np.maximum(1 - attractive * examined, 1e-12)
        was_attractive = seen.clicked + unclicked * attractive * (1 - examined) / neither
        was_examined = seen.clicked + unclicked * examined * (1 - attractive) / neither
        sums = np.bincount(seen.pairs, weights=was_attractive, minlength=pairs)
        unseen = float(was_attractive.sum()) / total
        attraction = (sums + prior * unseen) / np.maximum(shown_of + prior, 1e-12)
        before = examination
        examination = np.bincount(seen.cells, weights=was_examined, minlength=cells) / below
        if np.all(np.abs(examination - before) <= TOLERANCE * before):
            break
    # Clicks tell the product alone. EM finds the ratios sooner than a scale that is held fast, so that comes last.
    scale = max(float(examination[first]), 1e-12)
    examination = np.where(cell_shown > 0, examination / scale, np.nan)
    return Separated(attraction * scale, unseen * scale, examination)
