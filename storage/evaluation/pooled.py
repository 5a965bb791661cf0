"""The uncertainty of recall at 90% precision with one threshold for all queries: drawn by query, with runs in pairs.

The statistic is not a mean over queries: a draw of queries moves the threshold. So each draw counts the pairs of a
query as often as the query was drawn, and finds the best threshold anew. Draws depend only on the seed and the number
of queries, so runs that are drawn with the same seed are compared on the same queries. If a few pairs decide the
statistic, it jumps (0.005 in one draw, 0.72 in the next), and the interval of the draws need not contain the value. The
statistic is then no suitable measure of these runs. `storage.evaluation.precision.pooled_recall_at_precision` computes
and defines the value itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from storage.errors import EvaluationError
from storage.evaluation.comparison import Floats, Interval, interval_of

POOLED_RECALL = "R@90P, one threshold"
PRECISION = 0.9
PAIRS_AT_ONCE = 4_000_000


class Drawn(NamedTuple):
    """A statistic over all queries, and its value in each draw of them: [B]."""

    value: float
    draws: Floats


def draw_pooled_recall(
    run: Mapping[str, Mapping[str, float]],
    qrels: Mapping[str, Mapping[str, int]],
    *,
    samples: int,
    seed: int = 0,
    relevant_grade: int = 1,
) -> Drawn:
    """Return the recall at 90% precision over the judged pairs of all queries, and its draws.

    Raises EvaluationError without a judged query.
    """
    if not qrels:
        raise EvaluationError("a pooled recall needs at least one judged query, got none")
    queries = sorted(qrels)
    rows = [
        (score, place, qrels[query][document] >= relevant_grade)
        for place, query in enumerate(queries)
        for document, score in run.get(query, {}).items()
        if document in qrels[query]
    ]
    rows.sort(key=lambda row: -row[0])
    scores = np.array([row[0] for row in rows])
    owners = np.array([row[1] for row in rows], dtype=np.int64)  # [P]
    marks = np.array([row[2] for row in rows], dtype=bool)  # [P]
    ends = np.append(scores[1:] != scores[:-1], True)[: len(rows)]  # [P] A threshold cannot separate equal scores.
    relevant = np.array([sum(grade >= relevant_grade for grade in qrels[query].values()) for query in queries])  # [Q]
    whole = _best(np.ones((1, len(queries)), dtype=np.int64), owners, marks, ends, relevant)
    random, drawn = np.random.default_rng(seed), []
    step = max(1, PAIRS_AT_ONCE // max(len(rows), len(queries)))
    for start in range(0, samples, step):
        picks = random.integers(0, len(queries), size=(min(step, samples - start), len(queries)))
        counts = np.stack([np.bincount(each, minlength=len(queries)) for each in picks])  # [b, Q]
        drawn.append(_best(counts, owners, marks, ends, relevant))
    return Drawn(float(whole[0]), np.concatenate(drawn))


def mean_drawn(of: Sequence[Drawn]) -> Drawn:
    """Return the mean of several runs of one arm, draw by draw."""
    return Drawn(float(np.mean([each.value for each in of])), np.mean([each.draws for each in of], axis=0))


def pooled_interval(of: Drawn) -> Interval:
    """Return the value with its 95% interval."""
    return interval_of(of.value, of.draws, 0.95, test=False)


def compare_pooled(of: Drawn, baseline: Drawn) -> Interval:
    """Return the difference from the baseline, its 95% interval and its p-value; both need draws with the same seed."""
    return interval_of(of.value - baseline.value, of.draws - baseline.draws, 0.95, test=True)


def _best(
    counts: NDArray[np.int64],
    owners: NDArray[np.int64],
    marks: NDArray[np.bool_],
    ends: NDArray[np.bool_],
    relevant: NDArray[np.int64],
) -> Floats:
    """Return the highest recall of each draw, [b]. counts: [b, Q], how often each query was drawn."""
    of_pairs = counts[:, owners]  # [b, P]
    kept, hits = np.cumsum(of_pairs, axis=1), np.cumsum(of_pairs * marks, axis=1)
    good = ends & (hits >= PRECISION * kept - 1e-9)
    best = np.max(np.where(good, hits, 0), axis=1, initial=0)
    total = counts @ relevant
    recall: Floats = np.divide(best, total, out=np.zeros(len(counts)), where=total > 0)
    return recall
