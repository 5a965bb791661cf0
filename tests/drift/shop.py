"""One day of the world in Elasticsearch, and the prompts of its searches."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np

from infra.app.app import App
from infra.simulating.world import Day
from learner.prompts import with_choices
from search_env.catalogue.corpora import Query
from search_env.catalogue.term_matrices import Catalogue
from search_env.engine.index import build_index
from search_env.engine.searching import Searcher
from search_env.leser.context import ContextBuilder, with_neighbours
from search_env.leser.neighbours import Neighbours
from search_env.models.embeddings import Embedder, EmbeddingSettings, Floats
from streams.events import Context, Request


class NoRelevance:
    """Gives every document the same relevance: nothing but clicks teaches here."""

    name = "none"

    def score(self, query: str, ids: Sequence[str]) -> Floats:
        """Return 1 for every document."""
        return np.ones(len(ids), dtype=np.float32)

    def score_many(self, pairs: Sequence[tuple[str, Sequence[str]]]) -> list[Floats]:
        """Return 1 for every document of each query."""
        return [self.score(query, ids) for query, ids in pairs]


class Remembering(Embedder):
    """An embedder that never embeds a text twice."""

    def __init__(self, settings: EmbeddingSettings) -> None:
        super().__init__(settings)
        self._known: dict[str, Floats] = {}

    def embed(self, texts: Sequence[str], progress: object = None) -> Floats:
        """Return [n, 384] unit vectors."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            self._known |= dict(zip(new, super().embed(new), strict=True))
        return np.stack([self._known[text] for text in texts])

    def embed_queries(self, queries: Sequence[str]) -> Floats:
        """Return [n, 384] unit vectors."""
        return self.embed(queries)


class Shop:
    """The catalogue of a day, searched by Elasticsearch, and the contexts of queries."""

    def __init__(self, app: App, day: Day, searcher: Searcher) -> None:
        self.day = day
        self.searcher = searcher
        self._prompts = app.settings.prompts
        self.catalogue = Catalogue(day.documents)
        self._builder = ContextBuilder(
            self.catalogue,
            searcher,
            NoRelevance(),
            app.settings.context,
        )
        self._contexts: dict[str, Context] = {}

    def requests(
        self, run: str, queries: Sequence[Query], memory: Neighbours | None, *, hide_own: bool = False
    ) -> list[Request]:
        """Return what a policy is asked for each query, with the words that the memory gives.

        hide_own: hides from each query the lessons that would reveal its answer, as training does.
        """
        texts = [query.text for query in queries]
        if new := [text for text in dict.fromkeys(texts) if text not in self._contexts]:
            self._contexts |= dict(zip(new, self._builder.build_contexts(new), strict=True))
        contexts = [self._contexts[text] for text in texts]
        if memory is not None:
            said = memory.words_for_training(queries) if hide_own else memory.words(texts)
            contexts = [with_neighbours(context, words) for context, words in zip(contexts, said, strict=True)]
        return [
            Request(
                request_id="",
                run=run,
                query_id=query.id,
                query=query.text,
                index=self.searcher.index,
                context=with_choices(context, self._prompts),
            )
            for query, context in zip(queries, contexts, strict=True)
        ]


@contextlib.contextmanager
def opened(app: App, name: str, day: Day) -> Iterator[Shop]:
    """Give the day's shop, and delete its index after."""
    with contextlib.closing(app.engine()) as client:
        version = build_index(client, name, day.documents, installation=app.installation)
        try:
            with contextlib.closing(Searcher(client, version.name, app.settings.retrieval)) as searcher:
                yield Shop(app, day, searcher)
        finally:
            client.indices.delete(index=version.name)
