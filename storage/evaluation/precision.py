"""Recall at a fixed precision: the share of the relevant documents that can be shown before one result in ten is wrong.

ReLSum (a cross-encoder's summaries, trained against its relevance scores) reports "R@90P" without defining it. Here, a
threshold on the score keeps the documents that score at least as much. The value is the highest recall of all
thresholds whose kept documents are at least 90% relevant. A threshold cannot separate equal scores. If no threshold
qualifies, the value is 0. The recall's denominator is every relevant judged document, retrieved or not. If all
documents are scored, this is the best point of scikit-learn's `precision_recall_curve`.

Per query, the threshold may differ from query to query. Pooled, one threshold serves all queries, as a classifier of
(query, document) pairs needs it. ReLSum uses the pooled form, which needs scores with the same meaning for every query.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby


def recall_at_precision(
    scores: Mapping[str, float], grades: Mapping[str, int], *, precision: float = 0.9, relevant_grade: int = 1
) -> float:
    """Return one query's recall at this precision, in [0, 1]; an unjudged document counts as not relevant."""
    relevant = {document for document, grade in grades.items() if grade >= relevant_grade}
    pairs = ((score, document in relevant) for document, score in scores.items())
    return _highest_recall(pairs, len(relevant), precision)


def pooled_recall_at_precision(
    run: Mapping[str, Mapping[str, float]],
    qrels: Mapping[str, Mapping[str, int]],
    *,
    precision: float = 0.9,
    relevant_grade: int = 1,
) -> float:
    """Return the recall at this precision over the judged pairs of all queries, with one threshold for all."""
    pairs = [
        (score, qrels[query][document] >= relevant_grade)
        for query, scores in run.items()
        for document, score in scores.items()
        if document in qrels.get(query, {})
    ]
    relevant = sum(grade >= relevant_grade for grades in qrels.values() for grade in grades.values())
    return _highest_recall(pairs, relevant, precision)


def _highest_recall(pairs: Iterable[tuple[float, bool]], relevant: int, precision: float) -> float:
    kept = hits = best = 0
    ordered = sorted(pairs, key=lambda pair: -pair[0])
    for _, tied in groupby(ordered, key=lambda pair: pair[0]):
        marks = [mark for _, mark in tied]
        kept += len(marks)
        hits += sum(marks)
        # Compare without dividing: 9 of 10 is 90%, whatever the last bit of 0.9 says.
        if hits >= precision * kept - 1e-9:
            best = hits
    return best / relevant if relevant else 0.0
