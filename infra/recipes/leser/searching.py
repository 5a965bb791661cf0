"""Search as it is served: the raw query, feedback terms, a neighbor look-up, or a policy version.

Each method opens only what it needs: the raw query needs no documents, and feedback terms need no policy.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import msgspec

from infra.app.app import App, OpenEngine
from infra.app.home import IndexFolder
from infra.app.progress import Report
from search_env.catalogue.corpora import Query, Ranking
from search_env.engine.index import IndexingError, load_manifest
from search_env.engine.opening import open_catalogue, open_searcher
from search_env.engine.reranking import rerank, shown_documents
from search_env.engine.searching import ExpandedQuery, RetrievalSettings, Searcher, has_fewer_terms, searched_below
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
    terms_min: int | None = None,
) -> dict[str, Ranking]:
    """Return each query's ranking of at most `top` documents, raw or helped by a method or a policy version.

    policy: "none" (raw), "rm3", "bo1", "minilm" (the catalogue's words nearest by cosine), "knn", "shown" (the prompt's
    words as they stand), "latest" or a version.
    run, temperature: as in `expand_queries`. reranked: the index's cross-encoder reads titles and summaries of so many
    documents of each ranking, and orders them; 0 leaves the ranking as it is.
    terms_min: of a version's results below raw ones, as in `Routes`; None searches as the run does.
    Raises IndexingError if the index has no summaries to rerank with, CrossEncoderError if it has no cross-encoder.
    """
    index_search = IndexSearch(app.home.index(index), app.engine, app.tables(SearchTables), top)
    if reranked:
        index_search.check_summaries()
    texts = [query.text for query in queries]
    if policy == "none":
        rankings = index_search.raw(texts)
    elif policy == "minilm":
        rankings = index_search.with_nearest_terms(texts, report)
    elif method := FEEDBACK.get(policy):
        rankings = index_search.with_feedback(texts, method, report)
    else:
        # Imported here: a policy and the neighbors' encoder bring torch, which takes seconds to import.
        from infra.recipes.leser.expanding import expand_queries, neighbour_words, open_run, shown_words

        opened = open_run(app, index=index, run=run)
        retrieval = searched_below(opened.kept.settings.retrieval, terms_min)
        words: Sequence[tuple[str, ...]]
        if policy == "knn":
            look_up = opened.kept.settings.neighbours
            words = neighbour_words(opened, texts, count=look_up.served_words)
            retrieval = msgspec.structs.replace(retrieval, weight=look_up.served_weight)
        elif policy == "shown":
            words = shown_words(opened, texts, report)
        else:
            expanded = expand_queries(
                app, queries, index=index, policy=policy, run=opened.kept.run, report=report, temperature=temperature
            )
            words = [item.expansions for item in expanded]
        asked = [ExpandedQuery(text, said) for text, said in zip(texts, words, strict=True)]
        rankings = index_search.raw(asked, retrieval)
    if reranked:
        rankings = index_search.reranked(texts, rankings, depth=reranked)
    return {query.id: ranking for query, ranking in zip(queries, rankings, strict=True)}


def search_added(
    app: App,
    queries: Sequence[Query],
    helped: Mapping[str, Ranking],
    *,
    index: str,
    policy: str,
    run: str | None,
    top: int,
    report: Report,
    terms_min: int | None,
    reranked: int = 0,
) -> dict[str, Ranking]:
    """Return a version's rankings for lists with its results below raw ones.

    They are those of `helped`, but for the queries that `terms_min` (see `Routes`) and the run's own limit treat
    differently: these are searched again. reranked: as in `search_queries`.
    """
    if terms_min is None:
        return dict(helped)
    from infra.recipes.leser.expanding import find_run

    elsewhere = find_run(app.home, index=index, run=run).settings.retrieval.expanded_terms_min
    again = [each for each in queries if has_fewer_terms(each.text, terms_min) != has_fewer_terms(each.text, elsewhere)]
    if not again:
        return dict(helped)
    found = search_queries(
        app, again, index=index, policy=policy, run=run, top=top, report=report, reranked=reranked, terms_min=terms_min
    )
    return {**helped, **found}


class IndexSearch(NamedTuple):
    """One index and the ways to search it that need no policy. top: documents in each ranking, at most."""

    folder: IndexFolder
    engine: OpenEngine
    tables: SearchTables
    top: int

    def check_summaries(self) -> None:
        """Raise IndexingError if the index has no summaries to rerank with."""
        if not load_manifest(self.folder).summaries:
            raise IndexingError(
                f"index {self.folder.name!r} has no summaries to rerank with. Run: searchloop summarize --run RUN "
                "--publish"
            )

    def raw(self, asked: Sequence[str | ExpandedQuery], retrieval: RetrievalSettings | None = None) -> list[Ranking]:
        """Return the ranking of each query, with its expansions if it has some. retrieval: those of a run."""
        with self._opened(retrieval or self.tables.retrieval) as searcher:
            return searcher.search_many(asked, size=self.top)

    def with_feedback(self, texts: Sequence[str], method: Feedback, report: Report) -> list[Ranking]:
        """Return each query's ranking after pseudo-relevance feedback."""
        report("reading the documents", 0, 0)
        with self._opened(self.tables.retrieval) as searcher:
            feedback = FeedbackTerms(open_catalogue(searcher.client, self.folder))
            return search_with_feedback(searcher, feedback, method, texts, self.tables.feedback, size=self.top)

    def with_nearest_terms(self, texts: Sequence[str], report: Report) -> list[Ranking]:
        """Return each query's ranking with the catalogue's words that are nearest to it by cosine."""
        report("reading the documents", 0, 0)
        tables = self.tables
        with self._opened(tables.retrieval) as searcher:
            catalogue = open_catalogue(searcher.client, self.folder)
            nearest = NearestTerms(catalogue, tables.nearest_terms, tables.embedding, directory=self.folder.embeddings)
            return search_with_nearest_terms(
                searcher, nearest, texts, tables.nearest_terms, size=self.top, progress=report
            )

    def reranked(self, texts: Sequence[str], rankings: Sequence[Ranking], *, depth: int) -> list[Ranking]:
        """Return the rankings with their first documents in the order of the index's cross-encoder."""
        encoder = load_cross_encoder(self.folder.cross_encoders, self.tables.cross_encoder)
        with contextlib.closing(self.engine()) as client:
            first = [document for ranking in rankings for document in ranking.ids[:depth]]
            shown = shown_documents(client, load_manifest(self.folder).name, first)
        return rerank(texts, rankings, shown, encoder.relevance, depth=depth)

    @contextlib.contextmanager
    def _opened(self, retrieval: RetrievalSettings) -> Iterator[Searcher]:
        with (
            contextlib.closing(self.engine()) as client,
            contextlib.closing(open_searcher(client, self.folder, retrieval)) as searcher,
        ):
            yield searcher
