"""The relevance model of an index: trained if there are judgments or intents to train on, opened where it is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from infra.app.app import App
from infra.app.progress import Report
from search_env.catalogue.corpora import CorpusError, Qrels, Query, Ranking, check_qrels, rank_by_score
from search_env.catalogue.term_matrices import Catalogue
from search_env.engine.index import load_documents, load_manifest
from search_env.models.embeddings import Embedder, embed_documents
from search_env.models.relevance import CosineRelevance, NoisyRelevance, RelevanceModel, load_gbdt, save_gbdt
from search_env.models.relevance_training import train_gbdt
from search_env.queries.intents import load_intents


def train_relevance(
    app: App, *, index: str, judged: tuple[Sequence[Query], Qrels] | None, report: Report
) -> dict[str, Any]:
    """Train gradient-boosted trees, save them, and return the report of the training.

    judged: queries with judgments of documents; None takes the training intents of the index.
    Raises CorpusError if no judgment is about a known query and a known document.
    """
    directory = app.home.index(index)
    documents = load_documents(directory)
    complete = judged is None
    queries: Sequence[Query]
    if judged is None:
        queries, qrels = load_intents(directory.intents, "train")
    else:
        queries, qrels = judged
        unknown = check_qrels(
            qrels,
            query_ids=(query.id for query in queries),
            document_ids=(document.id for document in documents),
            source=f"the judgments for index {index!r}",
        )
        if unknown.judgments:
            report(f"leaving out {unknown.judgments} judgments of unknown ids: {', '.join(unknown.examples)}", 0, 0)
    return _train(app, index, Catalogue(documents), queries, qrels, complete=complete, report=report)


def open_relevance(app: App, *, index: str, catalogue: Catalogue, report: Report) -> RelevanceModel:
    """Return the relevance model of an index; trees that the settings ask for are trained first if they are missing."""
    settings, directory = app.settings.relevance, app.home.index(index)
    trained = directory.relevance / "manifest.json"
    has_intents = (directory.intents / "qrels.train.tsv").is_file()
    model: RelevanceModel
    if settings.model == "cosine" or (settings.model == "auto" and not trained.is_file() and not has_intents):
        embedder = Embedder(app.settings.embedding)
        embeddings = embed_documents(catalogue.documents, embedder, directory.embeddings, report)
        model = CosineRelevance(catalogue, embeddings, embedder)
    else:
        if not trained.is_file():
            train_relevance(app, index=index, judged=None, report=report)
        if app.settings.gbdt.cosine:
            embedder = Embedder(app.settings.embedding)
            embeddings = embed_documents(catalogue.documents, embedder, directory.embeddings, report)
            model = load_gbdt(directory.relevance, catalogue, embeddings=embeddings, embedder=embedder)
        else:
            model = load_gbdt(directory.relevance, catalogue)
    return NoisyRelevance(model, noise_std=settings.noise_std) if settings.noise_std else model


def score_rankings(
    app: App,
    rankings: Sequence[Mapping[str, Ranking]],
    *,
    index: str,
    queries: Sequence[Query],
    top: int,
    report: Report,
) -> dict[str, Ranking]:
    """Rank by the model's score: for each query, every document in the first `top` of any given ranking.

    rankings: each by query id. Raises CorpusError if a ranked query is not among the queries, or a document is not
    indexed.
    """
    texts = {query.id: query.text for query in queries}
    found: dict[str, dict[str, None]] = {}
    for ranking in rankings:
        for query, ranked in ranking.items():
            found.setdefault(query, {}).update(dict.fromkeys(ranked.ids[:top]))
    if strangers := sorted(set(found) - set(texts)):
        raise CorpusError(
            f"expected rankings of the {len(texts)} given queries, got one of {strangers[0]!r}"
            f"{f' and {len(strangers) - 1} others' if strangers[1:] else ''}. Give the queries that were searched"
        )
    catalogue = Catalogue(load_documents(app.home.index(index)))
    model = open_relevance(app, index=index, catalogue=catalogue, report=report)
    report("scoring", 0, len(found))
    scores = model.score_many([(texts[query], list(ids)) for query, ids in found.items()])
    report("scoring", len(found), len(found))
    return {
        query: rank_by_score(list(ids), of.tolist()) for (query, ids), of in zip(found.items(), scores, strict=True)
    }


def _train(
    app: App,
    index: str,
    catalogue: Catalogue,
    queries: Sequence[Query],
    qrels: Qrels,
    *,
    complete: bool,
    report: Report,
) -> dict[str, Any]:
    directory = app.home.index(index)
    embedder, embeddings = None, None
    if app.settings.gbdt.cosine:
        embedder = Embedder(app.settings.embedding)
        embeddings = embed_documents(catalogue.documents, embedder, directory.embeddings, report)
    booster, manifest = train_gbdt(
        catalogue,
        queries,
        qrels,
        app.settings.gbdt,
        corpus_sha256=load_manifest(directory).sha256,
        complete=complete,
        embeddings=embeddings,
        embedder=embedder,
        progress=report,
    )
    save_gbdt(directory.relevance, booster, manifest)
    return {"queries": manifest.queries, "pairs": manifest.pairs, **manifest.report}
