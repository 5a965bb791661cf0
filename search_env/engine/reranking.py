"""Reranking: a cross-encoder reads query, title and summary of a ranking's first documents together.

Summaries are written offline and indexed beside the titles (`build_index`). So a search reads a short text and needs no
generation, as in ReLSum's deployment (arXiv:2508.08404). `CrossEncoder.relevance` weighs the texts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from elastic_transport import TransportError
from elasticsearch import ApiError, Elasticsearch

from search_env.catalogue.corpora import Ranking
from search_env.engine.index import IndexingError, explain
from search_env.models.crossencoder import CrossEncoderError, ReadTexts

FETCHED_AT_ONCE = 500

Probabilities = Callable[[Sequence[ReadTexts]], npt.NDArray[np.float64]]
"""A function of readings that returns the probability in [0, 1] that each product is relevant to its query."""


class ShownTexts(NamedTuple):
    """The texts of a document that an index gives to a reranker. summary: "" if it has none."""

    title: str
    summary: str = ""


def rerank(
    queries: Sequence[str],
    rankings: Sequence[Ranking],
    shown: Mapping[str, ShownTexts],
    probabilities: Probabilities,
    *,
    depth: int,
) -> list[Ranking]:
    """Return each ranking with its first `depth` documents in the order of their probability, the others behind them.

    shown: by document id, for all documents that are reranked. Scores are 1 + probability for the first documents and
    1 / (1 + rank) for the others, so that a sort by score gives this order; ties are broken by document id.
    Raises CrossEncoderError if a probability is not in [0, 1].
    """
    readings = [
        ReadTexts(query, *shown[document])
        for query, ranking in zip(queries, rankings, strict=True)
        for document in ranking.ids[:depth]
    ]
    found = probabilities(readings) if readings else np.zeros(0)
    if not ((found >= 0) & (found <= 1)).all():
        raise CrossEncoderError("reranking: expected probabilities in [0, 1], got others; its weights are damaged")
    reranked, at = [], 0
    for ranking in rankings:
        first = ranking.ids[:depth]
        scores = (1 + found[at : at + len(first)]).tolist()
        at += len(first)
        reranked.append(reordered(ranking, scores))
    return reranked


def reordered(ranking: Ranking, scores: Sequence[float]) -> Ranking:
    """Return a ranking with its first documents in the order of their scores, the others behind them.

    scores: above or equal to 1, for as many first documents as there are scores. The scores of the others are
    1 / (1 + rank), so that a sort by score gives this order; ties are broken by document id.
    """
    first, others = ranking.ids[: len(scores)], ranking.ids[len(scores) :]
    order = sorted(range(len(first)), key=lambda place: (-scores[place], first[place]))
    return Ranking(
        [*(first[place] for place in order), *others],
        [*(scores[place] for place in order), *(1 / (1 + len(first) + rank) for rank in range(1, len(others) + 1))],
    )


def shown_documents(client: Elasticsearch, index: str, ids: Sequence[str]) -> dict[str, ShownTexts]:
    """Return title and summary of these documents, as they are stored in an index version.

    Raises IndexingError if a document is missing or Elasticsearch does not answer.
    """
    wanted = list(dict.fromkeys(ids))
    shown: dict[str, ShownTexts] = {}
    try:
        for start in range(0, len(wanted), FETCHED_AT_ONCE):
            answer = client.mget(
                index=index, ids=wanted[start : start + FETCHED_AT_ONCE], source_includes=["title", "summary"]
            )
            for each in answer["docs"]:
                if not each.get("found"):
                    raise IndexingError(f"index '{index}': document '{each['_id']}' was found but cannot be read")
                source: dict[str, Any] = each["_source"]
                shown[each["_id"]] = ShownTexts(source["title"], source.get("summary", ""))
    except ApiError as error:
        raise IndexingError(f"index '{index}': Elasticsearch refused: {explain(error)}") from error
    except TransportError as error:
        raise IndexingError(
            f"index '{index}': Elasticsearch did not answer: {explain(error)}. Look with: searchloop status"
        ) from error
    return shown
