"""Labels of clicked documents, with the bias of positions taken out.

The position-based model (Craswell et al., WSDM 2008) says that a result at rank k is clicked with probability θ_k · α:
its rank is examined, and the document attracts. θ_1 is 1. Counts of clicks alone would teach that whatever stood first
is relevant. The user browsing model (Dupret and Piwowarski, SIGIR 2008) lets θ depend on the last click above, too, and
the simplified dynamic Bayesian network (Chapelle and Zhang, WWW 2009) takes everything down to the last click as
examined. `clicked_lists` has their cells. The model "none" counts each impression as examined; it is there to compare.

θ is estimated from the traffic by expectation maximization (Wang et al., WSDM 2018, without their regression) if enough
pairs of a query and a document were shown at several ranks; nothing else tells θ and α apart. Otherwise θ_k = k^−η, as
in simulations of the field (Joachims et al., WSDM 2017).

A pair's attraction is then its clicks divided by its examinations, Σ clicks / Σ θ, which is inverse propensity
weighting normalized by itself (Swaminathan and Joachims, NeurIPS 2015). It is drawn to the mean of all pairs by
`PRIOR_EXAMINATIONS`. Where we differ: an attraction is no relevance, so the labels are attractions divided by a high
quantile of all of them, and at most 1.

Where clicks alone train the model (`alone`), nothing else says what an unclicked document is, and a label that is drawn
to the mean would say that it is half relevant. The label is then C / max(Θ, C), for C clicks and Θ examinations, and it
weighs max(Θ, C): the cross-entropy is C log p + max(Θ − C, 0) log(1 − p), the position-based model's unbiased loss
times Θ with its negative part cut. Weights saturate at `WEIGHT_MAX`, so that no pair outweighs many others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse

from search_env.clicks.examination import SeenCounts, tell_apart
from search_env.models.clicked_lists import (
    CELLS,
    RANKS_MAX,
    BiasModel,
    ClientBounds,
    CountedClicks,
    ShownList,
    count_pairs,
)

Doubles = npt.NDArray[np.float64]

PRIOR_EXAMINATIONS = 5.0
EXAMINATIONS_MIN = 1.0  # A pair that was examined less says nothing.
MOVED_PAIRS_MIN = 50  # Pairs shown at several ranks, for an estimate of θ.
MOVED_PAIRS_MAX = 50_000  # The most shown of them are enough.
# Each pair has an attraction of its own, and pairs with few impressions drown θ in these: on 200,000 simulated searches
# with clients bounded, all 38,695 moved pairs gave θ_3 = .20, the 3,000 most shown .76, and .71 was planted.
IMPRESSIONS_MIN = 20
QUANTILE = 0.95
WEIGHT_MAX = 20.0


class ClickLabels(NamedTuple):
    """Labels by query and document, and how sure they are.

    labels: {query: {document: (label in [0, 1], confidence in (0, 1))}}. theta: [k] examination by rank; of a model
    with more cells than ranks, their mean over the impressions of the rank.
    estimated: whether theta comes from the traffic. pairs_moved: pairs that were shown at several ranks. told: the
    lists' numbers.
    """

    labels: dict[str, dict[str, tuple[float, float]]]
    theta: Doubles
    estimated: bool
    pairs_moved: int
    told: CountedClicks


def click_labels(
    lists: Iterable[ShownList],
    *,
    exponent: float,
    model: BiasModel = "pbm",
    bounds: ClientBounds | None = None,
    alone: bool = False,
) -> ClickLabels:
    """Return the labels of all documents that were examined at least once, in expectation; alone: of all shown ones.

    exponent: η of θ_k = k^−η, used where the lists cannot tell θ. model: how people examine. bounds: how much one
    client may count. alone: clicks alone train the model, as above; a confidence is then a weight of at most
    `WEIGHT_MAX`. Without a click there are no labels.
    """
    counts = count_pairs(lists, model, bounds)
    moved = np.flatnonzero(counts.ranks > 1)
    table = _table(model, exponent)
    estimated = model in ("pbm", "ubm") and len(moved) >= MOVED_PAIRS_MIN and counts.told.clicks > 0
    by_cell = table
    if estimated:
        impressions = counts.shown[moved].sum(axis=1).A1
        often = max(int((impressions >= IMPRESSIONS_MIN).sum()), MOVED_PAIRS_MIN)
        most = moved[np.argsort(-impressions, kind="stable")[: min(often, MOVED_PAIRS_MAX)]]
        by_cell = examination(counts.shown[most], counts.clicked[most], table)
    theta = by_cell
    if model != "pbm":  # The mean over the impressions of each rank; ranks that nobody saw keep the table's value.
        at_rank = counts.rank_cells.sum(axis=1).A1
        with np.errstate(invalid="ignore", divide="ignore"):
            theta = np.where(at_rank > 0, counts.rank_cells @ by_cell / at_rank, _table("pbm", exponent))
    nothing = ClickLabels({}, theta, estimated, len(moved), counts.told)
    examined = counts.shown @ by_cell  # [P]
    clicks = counts.clicked.sum(axis=1).A1
    kept = examined >= EXAMINATIONS_MIN
    if not clicks.sum() or not (alone or kept.any()):
        return nothing
    if alone:
        kept = examined > 0
        weight = np.maximum(np.maximum(examined, clicks), 1e-9)
        labels, confidence = clicks / weight, weight / (1 + weight / WEIGHT_MAX)
    else:
        mean = clicks.sum() / examined.sum()
        attraction = (clicks + PRIOR_EXAMINATIONS * mean) / (examined + PRIOR_EXAMINATIONS)
        labels = np.minimum(attraction / np.quantile(attraction[kept], QUANTILE), 1.0)
        confidence = examined / (examined + PRIOR_EXAMINATIONS)
    found: dict[str, dict[str, tuple[float, float]]] = defaultdict(dict)
    for place in np.flatnonzero(kept).tolist():
        query, document = counts.pairs[place]
        found[query][document] = (float(labels[place]), float(confidence[place]))
    return nothing._replace(labels=dict(found))


def examination(shown: sparse.csr_matrix, clicked: sparse.csr_matrix, table: Doubles) -> Doubles:
    """Return [C] the probability that each cell is examined, 1 for the first, by expectation maximization.

    shown, clicked: [P, C] counts of each pair in each cell. table: [C] the value of cells that nobody saw.
    """
    pairs, cells = shown.nonzero()
    clicks = np.asarray(clicked[pairs, cells]).ravel()
    counts = np.asarray(shown[pairs, cells]).ravel()
    seen = SeenCounts(pairs.astype(np.int64), cells.astype(np.int64), counts, clicks)
    first = int(cells.min()) if len(cells) else 0  # The highest place that anybody saw.
    theta = tell_apart(seen, pairs=shown.shape[0], cells=len(table), first=first).examination
    scaled: Doubles = np.clip(np.where(np.isnan(theta), table, theta), 1e-3, 1.0)
    return scaled


def _table(model: BiasModel, exponent: float) -> Doubles:
    """Return [C] the examination of each cell without an estimate."""
    if model == "none":
        return np.ones(CELLS[model])
    if model == "dbn":
        return np.array([1.0, 0.0])
    by_rank = np.arange(1, RANKS_MAX + 1, dtype=np.float64) ** -exponent
    return by_rank if model == "pbm" else np.repeat(by_rank, RANKS_MAX)
