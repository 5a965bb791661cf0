"""RR@10 of an index's dev queries among the texts that stand for its documents."""

from __future__ import annotations

from collections.abc import Mapping

from infra.app.app import App
from infra.recipes.resume.bi_encoders import dense_search, open_encoder
from search_env.catalogue.corpora import Qrels, Ranking
from search_env.queries.intents import load_intents

CUTOFF = 10


def dev_reciprocal_rank(app: App, index: str, retriever: str, texts: Mapping[str, str], *, alias: str) -> float:
    """Return mean RR@10 of an index's dev queries among the texts that stand for its documents.

    alias: of the vectors' index.
    """
    queries, qrels = load_intents(app.home.index(index).intents, "dev")
    rankings = dense_search(
        app,
        open_encoder(app, index, retriever),
        texts,
        queries,
        index=index,
        alias=alias,
        top=CUTOFF,
        settings=app.settings.vectors,
    )
    return reciprocal_rank(rankings, qrels)


def reciprocal_rank(rankings: Mapping[str, Ranking], qrels: Qrels) -> float:
    """Return mean RR@10 over the queries that have a relevant document; 0 if none has."""
    found = []
    for query, grades in qrels.items():
        relevant = {document for document, grade in grades.items() if grade > 0}
        if relevant and query in rankings:
            ids = rankings[query].ids[:CUTOFF]
            found.append(next((1 / rank for rank, key in enumerate(ids, start=1) if key in relevant), 0.0))
    return sum(found) / len(found) if found else 0.0
