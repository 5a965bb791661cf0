"""An index as LESER sees it, and the context that the policy sees: relevance feedback and neighbors' words."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from infra.app.app import OpenEngine
from infra.app.home import IndexFolder
from infra.app.progress import Report
from infra.app.settings import Settings
from infra.recipes.leser.relevance import open_relevance
from learner.prompts import with_choices
from search_env.engine.index import IndexVersion, load_manifest
from search_env.engine.opening import open_catalogue, open_searcher
from search_env.leser.context import ContextBuilder, with_neighbours
from search_env.leser.neighbours import Neighbours
from search_env.leser.teachers import Lesson
from search_env.models.embeddings import KeptEmbedder
from search_env.models.relevance import RelevanceModel
from streams.events import Context


class LeserIndex:
    """An opened index: its documents, searcher, relevance model and context builder. Close it after use."""

    def __init__(self, folder: IndexFolder, settings: Settings, engine: OpenEngine, report: Report) -> None:
        self.settings = settings
        self.directory = folder
        self.version: IndexVersion = load_manifest(self.directory)
        self.client = engine()
        self.catalogue = open_catalogue(self.client, self.directory)
        self.searcher = open_searcher(self.client, self.directory, settings.retrieval)
        self.relevance: RelevanceModel = open_relevance(folder, settings, catalogue=self.catalogue, report=report)
        self.builder = ContextBuilder(self.catalogue, self.searcher, self.relevance, settings.context)

    def contexts(self, queries: Sequence[str], neighbours: Sequence[tuple[str, ...]] | None = None) -> list[Context]:
        """Return the context that the policy sees for each query, with these neighbors' words, if any."""
        contexts = self.builder.build_contexts(queries)
        if neighbours is not None:
            contexts = [with_neighbours(context, words) for context, words in zip(contexts, neighbours, strict=True)]
        return [with_choices(context, self.settings.prompts) for context in contexts]

    def no_context(self) -> Context:
        """Return the context of a query that finds no document."""
        return with_choices(Context(), self.settings.prompts)

    def close(self) -> None:
        """Close the searcher's threads and the client's connections."""
        self.searcher.close()
        self.client.close()


@contextlib.contextmanager
def open_leser_index(
    folder: IndexFolder, settings: Settings, engine: OpenEngine, report: Report
) -> Iterator[LeserIndex]:
    """Yield an opened index, and close it after."""
    opened = LeserIndex(folder, settings, engine, report)
    try:
        yield opened
    finally:
        opened.close()


def open_neighbours(opened: LeserIndex, lessons: Sequence[Lesson]) -> Neighbours | None:
    """Return the look-up of words that helped similar queries; None if prompts show none, or no lesson has words."""
    if not opened.settings.prompts.neighbours or not any(lesson.words for lesson in lessons):
        return None
    return neighbours_of(opened.directory, opened.settings, lessons)


def neighbours_of(folder: IndexFolder, settings: Settings, lessons: Sequence[Lesson]) -> Neighbours:
    """Return the look-up in these lessons.

    The vectors of their queries lie beside the index, for every run that has these lessons.
    """
    embedder = KeptEmbedder(settings.embedding, kept=[lesson.query for lesson in lessons], directory=folder.embeddings)
    return Neighbours(lessons, embedder, settings.neighbours)
