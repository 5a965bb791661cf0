"""Fitting click models to logged sessions: expectation-maximization for PBM and UBM, counts for cascade and DBN.

The attraction of a result belongs to its query and its document, and examination to places of the list. A pair that was
shown rarely is drawn towards the mean by a prior of a few impressions. The DBN takes attraction and satisfaction from
counts above the last click (its simplified form; Chapelle and Zhang, WWW 2009) and chooses γ by likelihood.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
import numpy.typing as npt

from search_env.clicks.examination import count_seen, tell_apart
from search_env.clicks.models import (
    Cascade,
    ClickModel,
    Clicks,
    DynamicBayesian,
    Floats,
    PositionBased,
    UserBrowsing,
    click_probabilities,
    perplexity,
)

Integers = npt.NDArray[np.int64]

PRIOR_IMPRESSIONS = 2.0
GOING_ON = tuple(np.round(np.arange(0.5, 1.0001, 0.05), 2))


class Sessions(msgspec.Struct, frozen=True, kw_only=True):
    """Logged sessions of S searches with at most K results.

    pairs: [S, K], number of the query-document pair at each rank, -1 without a result. clicks: [S, K]. size: number of
    pairs.
    """

    pairs: Integers
    clicks: Clicks
    size: int

    @property
    def shown(self) -> Clicks:
        """True where there is a result, [S, K]."""
        return self.pairs >= 0


class Fitted(msgspec.Struct, frozen=True, kw_only=True):
    """A fitted model, the attraction of each pair, [size], and of a pair that was never shown."""

    model: ClickModel
    attraction: Floats
    unseen: float

    def attraction_of(self, sessions: Sessions) -> Floats:
        """Return the attraction of what was shown, [S, K]; NaN without a result."""
        known = np.append(self.attraction, np.nan)  # -1 reads the NaN.
        return np.where(sessions.shown, np.where(np.isnan(known), self.unseen, known)[sessions.pairs], np.nan)

    def perplexity(self, sessions: Sessions) -> float:
        """Return how badly the model foretells these sessions: 1 is perfect."""
        attraction = self.attraction_of(sessions)
        return perplexity(click_probabilities(self.model, attraction, sessions.clicks), sessions.clicks)


def fit_positions(sessions: Sessions) -> Fitted:
    """Fit click rates by rank alone: every result is equally attractive. It is the baseline of the other models."""
    shown, clicks = sessions.shown, sessions.clicks & sessions.shown
    rates = clicks.sum(axis=0) / np.maximum(shown.sum(axis=0), 1)
    return Fitted(
        model=PositionBased(examination=tuple(map(float, rates)), name="positions alone"),
        attraction=np.ones(sessions.size),
        unseen=1.0,
    )


def fit_position_based(sessions: Sessions) -> Fitted:
    """Fit the PBM; the first rank is always examined."""
    ranks = sessions.pairs.shape[1]
    cells = np.broadcast_to(np.arange(ranks), sessions.pairs.shape)
    attraction, unseen, examination = _examine(sessions, cells, ranks, first=0)
    return Fitted(model=PositionBased(examination=tuple(map(float, examination))), attraction=attraction, unseen=unseen)


def fit_user_browsing(sessions: Sessions) -> Fitted:
    """Fit the UBM; the first rank is always examined."""
    ranks = sessions.pairs.shape[1]
    places = np.arange(ranks)
    clicked = np.where(sessions.clicks, places + 1, 0)
    last = np.concatenate(
        [np.zeros((len(clicked), 1), dtype=np.int64), np.maximum.accumulate(clicked, axis=1)[:, :-1]], axis=1
    )
    cells = places * ranks + (places - last)
    attraction, unseen, flat = _examine(sessions, cells, ranks * ranks, first=0)
    table = flat.reshape(ranks, ranks)
    rows = tuple(tuple(map(float, table[rank, : rank + 1])) for rank in range(ranks))
    return Fitted(model=UserBrowsing(examination=rows), attraction=attraction, unseen=unseen)


def fit_cascade(sessions: Sessions) -> Fitted:
    """Fit the cascade model: a result was examined if nothing was clicked above it."""
    before: Integers = np.cumsum(sessions.clicks, axis=1) - sessions.clicks
    attraction, unseen = _rates(sessions, sessions.clicks, sessions.shown & (before == 0))
    return Fitted(model=Cascade(), attraction=attraction, unseen=unseen)


def fit_dynamic_bayesian(sessions: Sessions) -> Fitted:
    """Fit the DBN: counts down to the last click give attraction and satisfaction, and the likelihood gives γ."""
    ranks = np.arange(sessions.pairs.shape[1])
    last = np.where(sessions.clicks.any(axis=1), np.where(sessions.clicks, ranks, -1).max(axis=1), len(ranks))
    examined = sessions.shown & (ranks <= last[:, None])
    attraction, unseen = _rates(sessions, sessions.clicks, examined)
    clicks = int(sessions.clicks.sum())
    ended = int(sessions.clicks.any(axis=1).sum())
    satisfaction = ended / clicks if clicks else 0.0
    found = [
        Fitted(
            model=DynamicBayesian(going_on=float(going_on), satisfaction=satisfaction),
            attraction=attraction,
            unseen=unseen,
        )
        for going_on in GOING_ON
    ]
    return min(found, key=lambda each: each.perplexity(sessions))


FITS: dict[str, Callable[[Sessions], Fitted]] = {
    "positions alone": fit_positions,
    "PBM": fit_position_based,
    "UBM": fit_user_browsing,
    "cascade": fit_cascade,
    "DBN": fit_dynamic_bayesian,
}


def _examine(
    sessions: Sessions, cells: npt.NDArray[np.integer], size: int, *, first: int
) -> tuple[Floats, float, Floats]:
    """Return attraction by pair, that of an unseen pair, and examination by cell; 0 for a cell that nobody saw.

    cells: [S, K], number of the cell of examination at each rank. first: the cell whose examination is 1.
    """
    shown = sessions.shown
    seen = count_seen(sessions.pairs[shown], cells[shown].astype(np.int64), sessions.clicks[shown], cells_max=size)
    told = tell_apart(seen, pairs=sessions.size, cells=size, first=first, prior=PRIOR_IMPRESSIONS)
    return told.attraction, told.unseen, np.nan_to_num(told.examination)


def _rates(sessions: Sessions, clicks: Clicks, examined: Clicks) -> tuple[Floats, float]:
    """Return clicks over examinations by pair, and over all pairs."""
    pair = sessions.pairs[examined]
    clicked = clicks[examined]
    unseen = float(clicked.mean()) if len(clicked) else 0.0
    sums = np.bincount(pair, weights=clicked, minlength=sessions.size)
    counts = np.bincount(pair, minlength=sessions.size)
    return (sums + PRIOR_IMPRESSIONS * unseen) / (counts + PRIOR_IMPRESSIONS), unseen
