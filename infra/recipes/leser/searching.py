"""Search as it is served: the raw query, feedback terms, a neighbor look-up, or a policy version.

Each method opens only what it needs: the raw query needs no documents, and feedback terms need no policy.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec

from infra.app.app import App
from infra.app.progress import Report
from search_env.catalogue.corpora import Query, Ranking
from search_env.catalogue.term_matrices import Catalogue
from search_env.engine.index import IndexingError, load_documents, load_manifest
from search_env.engine.reranking import rerank, shown_documents
from search_env.engine.searching import ExpandedQuery, RetrievalSettings, Retriever
from search_env.leser.feedback_terms import FeedbackSettings, FeedbackTerms, search_with_feedback
from search_env.leser.nearest_terms import NearestTerms, NearestTermsSettings, search_with_nearest_terms
from search_env.models.crossencoder import CrossEncoderSettings, load_cross_encoder
from search_env.models.embeddings import EmbeddingSettings

Feedback = Literal["bo1", "rm3"]
FEEDBACK: dict[str, Feedback] = {"bo1": "bo1", "rm3": "rm3"}


class SearchTables(msgspec.Struct, frozen=True, kw_only=True):
    """The tables of the settings that a search without a run needs."""

    retrieval: RetrievalSettings = RetrievalSettings()
    feedback: FeedbackSettings = FeedbackSettings()
    nearest_terms: NearestTermsSettings = NearestTermsSettings()
    embedding: EmbeddingSettings = EmbeddingSettings()
    cross_encoder: CrossEncoderSettings = CrossEncoderSettings()


def search_queries(
    app: App,
    queries: Sequence[Query],
    *,
    index: str,
    policy: str,
    run: str | None,
    top: int,
    report: Report,
    temperature: float = 0.0,
    reranked: int = 0,
) -> dict[str, Ranking]:
    """Return each query's ranking of at most `top` documents, raw or helped by a method or a policy version.

    policy: "none" (raw), "rm3", "bo1", "minilm" (the catalogue's words nearest by cosine), "knn", "shown" (the prompt's
    words as they stand), "latest" or a version.
    run, temperature: as in `expand_queries`. reranked: the index's cross-encoder reads titles and summaries of so many
    documents of each ranking, and orders them; 0 leaves the ranking as it is.
    Raises IndexingError if the index has no summaries to rerank with, CrossEncoderError if it has no cross-encoder.
    """
    if reranked and not load_manifest(app.home.index(index)).summaries:
        raise IndexingError(
            f"index '{index}' has no summaries to rerank with. Run: searchloop summarize --run RUN --publish"
        )
    texts = [query.text for query in queries]
    tables = app.tables(SearchTables)
    if policy == "none":
        rankings = _search(app, texts, index=index, retrieval=tables.retrieval, top=top)
    elif policy == "minilm":
        rankings = _search_with_nearest_terms(app, texts, index=index, tables=tables, top=top, report=report)
    elif method := FEEDBACK.get(policy):
        rankings = _search_with_feedback(app, texts, method, index=index, tables=tables, top=top, report=report)
    else:
        # Imported here: a policy and the neighbors' encoder bring torch, which takes seconds to import.
        from infra.recipes.leser.expanding import expand_queries, find_run, neighbour_words, shown_words

        kept = find_run(app, index=index, run=run)
        retrieval = kept.settings.retrieval
        words: Sequence[tuple[str, ...]]
        if policy == "knn":
            look_up = kept.settings.neighbours
            words = neighbour_words(app, texts, kept, count=look_up.served_words)
            retrieval = msgspec.structs.replace(retrieval, weight=look_up.served_weight)
        elif policy == "shown":
            words = shown_words(app, texts, kept, report)
        else:
            expanded = expand_queries(
                app, queries, index=index, policy=policy, run=kept.run, report=report, temperature=temperature
            )
            words = [item.expansions for item in expanded]
        asked = [ExpandedQuery(text, said) for text, said in zip(texts, words, strict=True)]
        rankings = _search(app, asked, index=index, retrieval=retrieval, top=top)
    if reranked:
        rankings = _rerank(app, texts, rankings, index=index, settings=tables.cross_encoder, depth=reranked)
    return {query.id: ranking for query, ranking in zip(queries, rankings, strict=True)}


def _rerank(
    app: App,
    texts: Sequence[str],
    rankings: Sequence[Ranking],
    *,
    index: str,
    settings: CrossEncoderSettings,
    depth: int,
) -> list[Ranking]:
    directory = app.home.index(index)
    encoder = load_cross_encoder(directory.cross_encoders, settings)
    with contextlib.closing(app.engine()) as client:
        first = [document for ranking in rankings for document in ranking.ids[:depth]]
        shown = shown_documents(client, load_manifest(directory).name, first)
    return rerank(texts, rankings, shown, encoder.relevance, depth=depth)


@contextlib.contextmanager
def _open_retriever(app: App, index: str, retrieval: RetrievalSettings) -> Iterator[Retriever]:
    version = load_manifest(app.home.index(index))
    with (
        contextlib.closing(app.engine()) as client,
        contextlib.closing(Retriever(client, version.name, retrieval)) as retriever,
    ):
        yield retriever


def _search(
    app: App, asked: Sequence[str | ExpandedQuery], *, index: str, retrieval: RetrievalSettings, top: int
) -> list[Ranking]:
    with _open_retriever(app, index, retrieval) as retriever:
        return retriever.search_many(asked, size=top)


def _search_with_feedback(
    app: App,
    texts: Sequence[str],
    method: Feedback,
    *,
    index: str,
    tables: SearchTables,
    top: int,
    report: Report,
) -> list[Ranking]:
    report("reading the documents", 0, 0)
    feedback = FeedbackTerms(Catalogue(load_documents(app.home.index(index))))
    with _open_retriever(app, index, tables.retrieval) as retriever:
        return search_with_feedback(retriever, feedback, method, texts, tables.feedback, size=top)


def _search_with_nearest_terms(
    app: App, texts: Sequence[str], *, index: str, tables: SearchTables, top: int, report: Report
) -> list[Ranking]:
    directory = app.home.index(index)
    report("reading the documents", 0, 0)
    catalogue = Catalogue(load_documents(directory))
    nearest = NearestTerms(catalogue, tables.nearest_terms, tables.embedding, directory=directory.embeddings)
    with _open_retriever(app, index, tables.retrieval) as retriever:
        return search_with_nearest_terms(retriever, nearest, texts, tables.nearest_terms, size=top, progress=report)
