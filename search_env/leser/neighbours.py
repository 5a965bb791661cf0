"""The kNN look-up: it expands a query with the words that served the most similar training queries.

It is the mandatory baseline: training and test queries share attribute values, so a part of any gain is memory. It is
also a part of the prompt, so that the policy starts from that memory and need not hold it in its weights. Similarity is
the cosine of MiniLM embeddings.

A training query sees neither its own lesson nor a lesson that names two of its attribute values. On icecat, 9,083 of
17,195 training intents share their pair of values with another intent, which no served query does. For a share of the
training queries, all lessons that name one of their values are hidden. So the policy also learns to answer when the
neighbors know nothing.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Annotated

import msgspec
import numpy as np
import numpy.typing as npt

from search_env.catalogue.analysis import analyze
from search_env.catalogue.attributes import query_attributes
from search_env.catalogue.corpora import Query
from search_env.leser.teachers import Lesson, TeacherError
from search_env.models.embeddings import Embedder
from streams.descriptions import describe

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
BLOCK_QUERIES = 512  # [512, lessons] similarities at a time: 18 MB for 9,000 lessons.


class NeighbourSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The number of neighbors, the weight of their words, and the number of words."""

    neighbours: Annotated[
        int, msgspec.Meta(ge=1, le=1_000), describe("Number of similar training queries that give their words.")
    ] = 20
    words: Annotated[int, msgspec.Meta(ge=1, le=100), describe("Largest number of words that the neighbors give.")] = 20
    sharpness: Annotated[
        float,
        msgspec.Meta(ge=0, le=64),
        describe(
            "Exponent of a neighbor's similarity in the weight of its words. A larger value trusts the nearest "
            "ones more; 0 trusts all equally."
        ),
    ] = 8.0
    position_cost: Annotated[
        float, msgspec.Meta(ge=0, lt=1), describe("Loss of weight from one word of a lesson to the next.")
    ] = 0.05
    hidden_share: Annotated[
        float,
        msgspec.Meta(ge=0, le=1),
        describe("Share of training queries for which the lessons with one of their attribute values are hidden."),
    ] = 0.3
    served_words: Annotated[
        int,
        msgspec.Meta(ge=1, le=100),
        describe("Number of words that the baseline `--policy knn` adds to a query, chosen on `dev`."),
    ] = 20
    served_weight: Annotated[
        float,
        msgspec.Meta(ge=0, le=10),
        describe("Boost of the first word that the baseline `--policy knn` adds, chosen on `dev`."),
    ] = 1.0


class Neighbours:
    """Finds words of similar training queries."""

    def __init__(self, lessons: Sequence[Lesson], embedder: Embedder, settings: NeighbourSettings) -> None:
        """Embed the lessons' queries, which takes about 10 ms each the first time."""
        if not lessons:
            raise TeacherError("expected at least one lesson to look up, got none")
        self.lessons = lessons
        self.settings = settings
        self._embedder = embedder
        self._vectors = embedder.embed([lesson.query for lesson in lessons])  # [L, 384]
        self._row_of = {lesson.query_id: row for row, lesson in enumerate(lessons)}

    def words(self, queries: Sequence[str], *, count: int | None = None) -> list[tuple[str, ...]]:
        """Return, for each query, the best words of its neighbors that it lacks; best first, ties in word order.

        count: largest number of words; None takes the settings' number.
        """
        return self._words(queries, self._embedder.embed_queries(queries), [()] * len(queries), count)

    def words_for_training(self, queries: Sequence[Query], *, count: int | None = None) -> list[tuple[str, ...]]:
        """Return these words for training queries, without the lessons that would reveal the answer.

        Three kinds of lessons are hidden: a query's own lesson; lessons that name two of its attribute values
        (`metadata.attributes`, as `search_env.queries.intents` writes it); and, for a share of queries chosen by hash,
        lessons that name one of them.
        """
        holders: defaultdict[str, set[int]] = defaultdict(set)
        for query in queries:
            if query.id in self._row_of:
                for value in _values(query):
                    holders[value].add(self._row_of[query.id])
        hidden = [self._hidden(query, holders) for query in queries]
        vectors = self._embedder.embed_queries([query.text for query in queries])
        return self._words([query.text for query in queries], vectors, hidden, count)

    def _hidden(self, query: Query, holders: Mapping[str, set[int]]) -> list[int]:
        """Return the rows of the lessons hidden from a training query. holders: lessons by the value they name."""
        shared = Counter(row for value in set(_values(query)) for row in holders.get(value, ()))
        rows = {row for row, values in shared.items() if values >= 2} | holders.get(self._hides(query), set())
        if query.id in self._row_of:
            rows.add(self._row_of[query.id])
        return sorted(rows)

    def _hides(self, query: Query) -> str:
        """Return the attribute value whose lessons are hidden for this query; "" for none."""
        values = _values(query)
        draw = int(hashlib.sha256(f"hide\t{query.id}".encode()).hexdigest()[:12], 16)
        if not values or draw % 10_000 >= 10_000 * self.settings.hidden_share:
            return ""
        return values[draw // 10_000 % len(values)]

    def _words(
        self,
        queries: Sequence[str],
        vectors: Floats,
        hidden: Sequence[Sequence[int]],  # rows, for each query
        count: int | None,
    ) -> list[tuple[str, ...]]:
        settings = self.settings
        kept = min(settings.neighbours, len(self.lessons))
        found: list[tuple[str, ...]] = []
        for start in range(0, len(queries), BLOCK_QUERIES):
            similarities = vectors[start : start + BLOCK_QUERIES] @ self._vectors.T  # [q, L]
            for row, similarity in enumerate(similarities):
                query = queries[start + row]
                similarity[list(hidden[start + row])] = -1.0
                nearest = np.argpartition(-similarity, kept - 1)[:kept]
                votes: defaultdict[str, float] = defaultdict(float)
                asked = set(analyze(query))
                for neighbour in nearest.tolist():
                    weight = max(float(similarity[neighbour]), 0.0) ** settings.sharpness
                    for position, word in enumerate(self.lessons[neighbour].words):
                        votes[word] += weight * (1 - settings.position_cost) ** position
                best = sorted(
                    (word for word in votes if votes[word] > 0 and not asked.intersection(_terms(word))),
                    key=lambda word: (-votes[word], word),
                )
                found.append(tuple(best[: count or settings.words]))
        return found


@lru_cache(maxsize=50_000)
def _terms(word: str) -> tuple[str, ...]:
    return tuple(analyze(word))


def _values(query: Query) -> list[str]:
    return [value for _, value in query_attributes(query)]
