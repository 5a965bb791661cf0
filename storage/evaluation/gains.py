"""Retrieval gain and relevance gain, two measures of LESER: how much more one run finds than another.

The paper names both and defines neither. Here both are ratios of sums over queries, minus 1. A query for which the
baseline finds nothing therefore still counts; a mean of ratios would divide by zero.
"""

from __future__ import annotations

from collections.abc import Mapping

from storage.errors import EvaluationError
from storage.evaluation.measures import Qrels, Run, Values, ranked


def relevant_retrieved(run: Run, qrels: Qrels, *, depth: int = 100, relevant_grade: int = 1) -> Values:
    """Return the number of different relevant documents that each judged query finds within `depth`.

    The relative gain in its sum is the *retrieval gain*: relative gain in unique relevant products retrieved.
    """
    found = {}
    for query in sorted(qrels):
        grades = qrels[query]
        top = ranked(run.get(query, {}))[:depth]
        found[query] = float(sum(grades.get(document, 0) >= relevant_grade for document in top))
    return found


def mean_relevance(run: Run, relevance: Mapping[str, Mapping[str, float]], *, depth: int = 10) -> Values:
    """Return the mean relevance-model score of each query's first `depth` documents.

    If a query has fewer documents, the mean is over these; without any, it is 0.
    relevance: {query id: {document id: score in [0, 1]}}; the result covers exactly its queries.
    The relative gain in its sum is the *relevance gain*: relative gain in mean relevance-model score of the top-k.
    Raises EvaluationError if a document in the top has no score.
    """
    means = {}
    for query in sorted(relevance):
        top = ranked(run.get(query, {}))[:depth]
        if missing := [document for document in top if document not in relevance[query]]:
            raise EvaluationError(
                f"query '{query}': expected a relevance score for each of its first {depth} documents, "
                f"got none for '{missing[0]}' and {len(missing) - 1} more; score the top of every run that is compared"
            )
        means[query] = sum(relevance[query][document] for document in top) / len(top) if top else 0.0
    return means


def relative_gain(values: Mapping[str, float], baseline: Mapping[str, float]) -> float | None:
    """Return sum(values) / sum(baseline) - 1 over the queries; None if the baseline's sum is 0."""
    before = sum(baseline[query] for query in sorted(baseline))
    return sum(values[query] for query in sorted(values)) / before - 1 if before > 0 else None
