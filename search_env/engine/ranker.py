"""A ranker behind the retrieval: it orders the first documents of a search by the index's relevance model.

A shop rarely shows what its retrieval found in that order: a ranker stands behind it. An expansion then helps if it
brings relevant documents into the ranker's reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec

from search_env.catalogue.corpora import Ranking
from search_env.engine.reranking import reordered
from search_env.models.relevance import RelevanceModel
from streams.descriptions import describe

BEHIND = " behind the ranker"
"""The end of a set's name whose rankings a ranker ordered."""


class RankerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A ranker behind the retrieval, for result tables: the relevance model of the index."""

    depth: Annotated[
        int,
        msgspec.Meta(ge=0, le=1_000),
        describe(
            "Number of documents that a ranker gets, in a further table of each result. Versions are then chosen "
            "behind the ranker. 0: no ranker."
        ),
    ] = 0


def behind_ranker(
    queries: Sequence[str], rankings: Sequence[Ranking], model: RelevanceModel, *, depth: int
) -> list[Ranking]:
    """Return each query's ranking with its first `depth` documents in the model's order, ties by document id."""
    pairs = [(query, ranking.ids[:depth]) for query, ranking in zip(queries, rankings, strict=True)]
    scores = model.score_many(pairs)
    return [
        reordered(ranking, [1.0 + score for score in of.tolist()]) for ranking, of in zip(rankings, scores, strict=True)
    ]
