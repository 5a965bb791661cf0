"""COEC: clicks over expected clicks, an estimate of relevance that takes ranks into account by click rates alone.

COEC of a pair is its clicks, divided by the clicks that an average result would have got at the ranks where the pair
was shown (Zhang and Jones, WWW 2007, "Comparing click logs and editorial labels for training query rewriting"). 1 is an
average result. It needs no model of people, but it believes that every rank shows results that are equally good on
average. Where good results stand high, it underrates them; `fitting` tells examination and attraction apart instead.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from search_env.clicks.fitting import Sessions

Floats = npt.NDArray[np.float64]


def clicks_over_expected(sessions: Sessions, *, prior: float = 0.0) -> Floats:
    """Return the COEC of each pair, [size]; NaN for a pair that was never shown where anything was clicked.

    prior: expected clicks by which each pair is drawn towards 1. It makes rarely shown pairs comparable.
    """
    shown = sessions.shown
    clicks = sessions.clicks & shown
    rates = clicks.sum(axis=0) / np.maximum(shown.sum(axis=0), 1)
    pairs = sessions.pairs[shown]
    expected = np.bincount(pairs, weights=np.broadcast_to(rates, shown.shape)[shown], minlength=sessions.size)
    clicked = np.bincount(pairs, weights=clicks[shown], minlength=sessions.size)
    below = expected + prior
    found: Floats = np.divide(clicked + prior, below, out=np.full(sessions.size, np.nan), where=below > 0)
    return found
