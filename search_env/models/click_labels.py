"""Labels of clicked documents, with the bias of positions taken out.

The position-based model (Craswell et al., WSDM 2008) says that a result at rank k is clicked with probability θ_k · α:
its rank is examined, and the document attracts. θ_1 is 1. Counts of clicks alone would teach that whatever stood first
is relevant.

θ is estimated from the traffic by expectation maximization (Wang et al., WSDM 2018, without their regression) if enough
pairs of a query and a document were shown at several ranks; nothing else tells θ and α apart. Otherwise θ_k = k^−η, as
in simulations of the field (Joachims et al., WSDM 2017).

A pair's attraction is then its clicks divided by its examinations, Σ clicks / Σ θ, which is inverse propensity
weighting normalized by itself (Swaminathan and Joachims, NeurIPS 2015). It is drawn to the mean of all pairs by
`PRIOR_EXAMINATIONS`. Where we differ: an attraction is no relevance, so the labels are attractions divided by a high
quantile of all of them, and at most 1.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse

from search_env.clicks.examination import SeenCounts, tell_apart

Doubles = npt.NDArray[np.float64]

RANKS_MAX = 50  # Deeper ranks count as this one: few people see them.
PRIOR_EXAMINATIONS = 5.0
EXAMINATIONS_MIN = 1.0  # A pair that was examined less says nothing.
MOVED_PAIRS_MIN = 50  # Pairs shown at several ranks, for an estimate of θ.
MOVED_PAIRS_MAX = 50_000  # The most shown of them are enough.
QUANTILE = 0.95


class ShownList(NamedTuple):
    """The results of one search. shown: (document id, rank from 1) pairs. clicked: ids of documents."""

    query: str
    shown: Sequence[tuple[str, int]]
    clicked: frozenset[str]


class ClickLabels(NamedTuple):
    """Labels by query and document, and how sure they are.

    labels: {query: {document: (label in [0, 1], confidence in (0, 1))}}. theta: [k] examination by rank.
    estimated: whether theta comes from the traffic. pairs_moved: pairs that were shown at several ranks.
    """

    labels: dict[str, dict[str, tuple[float, float]]]
    theta: Doubles
    estimated: bool
    pairs_moved: int


class _Counts(NamedTuple):
    """Impressions and clicks of each pair at each rank, sparse [P, K], and the pairs in order."""

    shown: sparse.csr_matrix
    clicked: sparse.csr_matrix
    pairs: list[tuple[str, str]]


def click_labels(lists: Iterable[ShownList], *, exponent: float) -> ClickLabels:
    """Return the labels of all documents that were examined at least once, in expectation.

    exponent: η of θ_k = k^−η, used where the lists cannot tell θ. Without a click there are no labels.
    """
    counts = _counted(lists)
    moved = np.flatnonzero(np.diff(counts.shown.indptr) > 1)
    table = np.arange(1, RANKS_MAX + 1, dtype=np.float64) ** -exponent
    estimated = len(moved) >= MOVED_PAIRS_MIN and counts.clicked.sum() > 0
    theta = table
    if estimated:
        most = moved[np.argsort(-counts.shown[moved].sum(axis=1).A1, kind="stable")[:MOVED_PAIRS_MAX]]
        theta = examination(counts.shown[most], counts.clicked[most], table)
    examined = counts.shown @ theta  # [P]
    if not counts.clicked.sum():
        return ClickLabels({}, theta, estimated, len(moved))
    clicks = counts.clicked.sum(axis=1).A1
    mean = clicks.sum() / examined.sum()
    attraction = (clicks + PRIOR_EXAMINATIONS * mean) / (examined + PRIOR_EXAMINATIONS)
    kept = examined >= EXAMINATIONS_MIN
    if not kept.any():
        return ClickLabels({}, theta, estimated, len(moved))
    labels = np.minimum(attraction / np.quantile(attraction[kept], QUANTILE), 1.0)
    confidence = examined / (examined + PRIOR_EXAMINATIONS)
    found: dict[str, dict[str, tuple[float, float]]] = defaultdict(dict)
    for place in np.flatnonzero(kept).tolist():
        query, document = counts.pairs[place]
        found[query][document] = (float(labels[place]), float(confidence[place]))
    return ClickLabels(dict(found), theta, estimated, len(moved))


def examination(shown: sparse.csr_matrix, clicked: sparse.csr_matrix, table: Doubles) -> Doubles:
    """Return [K] the probability that each rank is examined, θ_1 = 1, by expectation maximization.

    shown, clicked: [P, K] counts of each pair at each rank. table: [K] the value of ranks that nobody saw.
    """
    pairs, ranks = shown.nonzero()
    clicks = np.asarray(clicked[pairs, ranks]).ravel()
    counts = np.asarray(shown[pairs, ranks]).ravel()
    seen = SeenCounts(pairs.astype(np.int64), ranks.astype(np.int64), counts, clicks)
    first = int(ranks.min()) if len(ranks) else 0  # The highest rank that anybody saw.
    theta = tell_apart(seen, pairs=shown.shape[0], cells=len(table), first=first).examination
    scaled: Doubles = np.clip(np.where(np.isnan(theta), table, theta), 1e-3, 1.0)
    return scaled


def _counted(lists: Iterable[ShownList]) -> _Counts:
    place_of: dict[tuple[str, str], int] = {}
    cells: dict[tuple[int, int], list[int]] = defaultdict(lambda: [0, 0])
    for each in lists:
        for document, rank in each.shown:
            place = place_of.setdefault((each.query, document), len(place_of))
            cell = cells[place, min(max(rank, 1), RANKS_MAX) - 1]
            cell[0] += 1
            cell[1] += document in each.clicked
    size = (len(place_of), RANKS_MAX)
    rows, ranks = [place for place, _ in cells], [rank for _, rank in cells]
    shown, clicked = (
        sparse.csr_matrix((np.array([cell[of] for cell in cells.values()], dtype=np.float64), (rows, ranks)), size)
        for of in (0, 1)
    )
    return _Counts(shown, clicked, list(place_of))
