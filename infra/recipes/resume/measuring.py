"""RR@10 of an index's dev queries among the texts that stand for its documents."""

from __future__ import annotations

from collections.abc import Mapping

from infra.app.home import IndexFolder
from infra.recipes.resume.bi_encoders import VectorIndex, dense_search
from search_env.catalogue.corpora import Qrels, Ranking
from search_env.models.bi_encoder import StaticEncoder
from search_env.queries.intents import load_intents

CUTOFF = 10


def dev_reciprocal_rank(
    index: IndexFolder, encoder: StaticEncoder, texts: Mapping[str, str], *, indexed: VectorIndex | None
) -> float:
    """Return mean RR@10 of an index's dev queries among the texts that stand for its documents.

    indexed: as in `dense_search`.
    """
    queries, qrels = load_intents(index.intents, "dev")
    return reciprocal_rank(dense_search(index, encoder, texts, queries, top=CUTOFF, indexed=indexed), qrels)


def reciprocal_rank(rankings: Mapping[str, Ranking], qrels: Qrels) -> float:
    """Return mean RR@10 over the queries that have a relevant document; 0 if none has."""
    found = []
    for query, grades in qrels.items():
        relevant = {document for document, grade in grades.items() if grade > 0}
        if relevant and query in rankings:
            ids = rankings[query].ids[:CUTOFF]
            found.append(next((1 / rank for rank, key in enumerate(ids, start=1) if key in relevant), 0.0))
    return sum(found) / len(found) if found else 0.0
