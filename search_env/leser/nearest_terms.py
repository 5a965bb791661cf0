"""The catalogue's words nearest to a query by MiniLM's cosine: expansion without feedback, judgments or learning.

Every learned expansion has to beat this baseline. Its weakness is known: words near in meaning need not occur in
relevant documents. As with feedback terms, the query and its words are one search,
`Σ_query BM25 + weight · Σ_t w(t) · BM25(t)`, with w(t) the cosine, scaled so that the best word has 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from search_env.catalogue.analysis import analyze
from search_env.catalogue.corpora import Ranking
from search_env.catalogue.term_matrices import Catalogue
from search_env.engine.searching import Searcher
from search_env.leser.feedback_terms import WeightedTerm, boosted
from search_env.models.embeddings import EmbeddingSettings, KeptEmbedder, Progress
from streams.descriptions import describe


class NearestTermsSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings for choosing and searching the nearest words."""

    terms: Annotated[int, msgspec.Meta(ge=1, le=200), describe("Number of words that are added to a query.")] = 15
    weight: Annotated[
        float, msgspec.Meta(ge=0, le=10), describe("Boost of the added words beside the query, which has 1.")
    ] = 0.3
    documents_min: Annotated[
        int,
        msgspec.Meta(ge=1),
        describe("Least number of documents that contain a word. Rarer words are model numbers or typing errors."),
    ] = 3


class NearestTerms:
    """The nearest words of one catalogue; its words are embedded once and kept in a file."""

    def __init__(
        self, catalogue: Catalogue, settings: NearestTermsSettings, embedding: EmbeddingSettings, *, directory: Path
    ) -> None:
        """directory: the folder that keeps the words' vectors."""
        words, frequencies = catalogue.surface_forms, catalogue.contents.frequencies.tolist()
        self._settings = settings
        # Terms that occur only in attributes have no column in the contents, and no word either.
        self._columns = [
            column for column, held in enumerate(frequencies) if words[column] and held >= settings.documents_min
        ]
        self._words = [words[column] for column in self._columns]
        self._catalogue = catalogue
        self._embedder = KeptEmbedder(embedding, kept=self._words, directory=directory)

    def terms(self, queries: Sequence[str], progress: Progress | None = None) -> list[list[WeightedTerm]]:
        """Return each query's nearest words, best first, without its own words and words with a cosine of 0 or less."""
        if not self._words:
            return [[] for _ in queries]
        cosines = self._embedder.embed_queries(queries) @ self._embedder.embed(self._words, progress).T  # [Q, W]
        place = {column: position for position, column in enumerate(self._columns)}
        found = []
        for query, row in zip(queries, cosines, strict=True):
            for column in self._catalogue.vocabulary.known(analyze(query)):
                if column in place:
                    row[place[column]] = -1.0
            order = np.argsort(-row, kind="stable")[: self._settings.terms]
            best = float(row[order[0]])
            found.append([WeightedTerm(self._words[at], float(row[at]) / best) for at in order if row[at] > 0])
        return found


def search_with_nearest_terms(
    searcher: Searcher,
    nearest: NearestTerms,
    queries: Sequence[str],
    settings: NearestTermsSettings,
    *,
    size: int,
    progress: Progress | None = None,
) -> list[Ranking]:
    """Return the rankings of the baseline. Raises RetrievalError as `Searcher.search_many` does."""
    whole = searcher.settings.whole_boost
    return searcher.search_bodies(
        [
            searcher.form.body(query, boosted(terms, weight=settings.weight), whole_boost=whole, size=size)
            for query, terms in zip(queries, nearest.terms(queries, progress), strict=True)
        ]
    )
