"""Teacher sets: for a training query, the few words with the best measured reward.

There are two rounds. In `teach`, the candidates are the words that the policy is shown (feedback terms, attribute
values) and the words of the query's relevant documents, which are known for a training query. `neighbours` looks up
these lessons. As answers they cannot be learned: they have 3,237 distinct words for 8,634 queries and a dev loss of
2.94 nats per token, and the policy never ended its list. In `choose`, the candidates are the neighbors' words in the
prompt, without the harmful ones. These are the warm-up's answers. The two or three words that would be best of all (dev
nDCG@10 .25 → .59) are a matter of chance. A policy that was taught to add them one by one did worse than the neighbors'
first words unchanged. Removal decides each word by itself, and greedy decoding then keeps the words that are more
likely to help than not.

`choice_gain_min = -1` keeps every word: a warm-up that only repeats its prompt begins higher, but GRPO gains nothing on
it (`infra/LOG.md`).

The weighted search adds scores over words, so each candidate's column of BM25 scores is computed once. Words are
measured at their serving weight, because a word's gain depends on its boost, and so on the number of words before it.

The scores come from the catalogue's own matrices, which differ from Lucene's by the rounding of document lengths (above
40 terms); `measure` gives a set's value in the index itself. Results are cached by the hash of all their inputs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from search_env.catalogue.analysis import analyze
from search_env.catalogue.corpora import CorpusError, Query, write_whole
from search_env.catalogue.term_matrices import Catalogue
from search_env.engine.searching import RetrievalSettings, expansion_boosts
from streams.descriptions import describe
from streams.events import Context

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
Progress = Callable[[str, int, int], None]
SHALLOW, DEEP = 10, 100
DISCOUNTS = 1.0 / np.log2(np.arange(2, SHALLOW + 2))  # [10] of nDCG, Järvelin and Kekäläinen (2002)


class TeacherError(CorpusError):
    """Teacher sets cannot be made, or a cached file is damaged."""


class TeacherSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings for the search of teacher sets.

    The measure is nDCG@10 + recall@100, so it is at most 2.
    """

    words_max: Annotated[int, msgspec.Meta(ge=1, le=20), describe("Largest number of words in one teacher set.")] = 5
    choice_words_shown: Annotated[
        int,
        msgspec.Meta(ge=1, le=64),
        describe("Words of the prompt with which a choice begins, if the policy selects words."),
    ] = 14
    choice_words_max: Annotated[
        int, msgspec.Meta(ge=1, le=20), describe("Largest number of words that a choice may keep.")
    ] = 14
    choice_gain_min: Annotated[
        float,
        msgspec.Meta(ge=-1, le=1),
        describe("Least worth of a kept word in the measure. Below 0, a slightly harmful word may stay."),
    ] = -0.02
    gain_min: Annotated[
        float, msgspec.Meta(ge=0, le=2), describe("Least gain in the measure by which a word enters a set.")
    ] = 0.02
    relevant_words: Annotated[
        int, msgspec.Meta(ge=0, le=1_000), describe("Candidate words that are taken from the relevant documents.")
    ] = 60
    documents_min: Annotated[
        int,
        msgspec.Meta(ge=1),
        describe(
            "Least number of documents that contain a candidate. Rarer words name one product and teach nothing "
            "about the next query."
        ),
    ] = 5
    pool_documents: Annotated[
        int,
        msgspec.Meta(ge=DEEP),
        describe(
            "Documents whose ranks are tracked: those with the best score that they could reach. More are more "
            "exact and slower."
        ),
    ] = 1_200
    kept_candidates: Annotated[
        int,
        msgspec.Meta(ge=1),
        describe("Best candidates that remain after the first word. More are more thorough and slower."),
    ] = 24


class Lesson(msgspec.Struct, frozen=True, kw_only=True):
    """One query and the words that serve it best; no words if none help.

    raw, taught: the measure of the query alone and with the words, as computed in the search for the words.
    """

    query_id: str
    query: str
    words: tuple[str, ...]
    raw: float = 0.0
    taught: float = 0.0


class Teacher:
    """Searches teacher sets over one catalogue."""

    def __init__(self, catalogue: Catalogue, settings: TeacherSettings, searched: RetrievalSettings) -> None:
        """searched: the serving settings of expanded queries; every mode is taught as if it were "weighted"."""
        self.catalogue = catalogue
        self.settings = settings
        self.searched = searched
        self._words = catalogue.surface_forms

    def teach(self, query: Query, context: Context, relevant: Integers) -> Lesson:
        """Return the best set of words for one query; the candidates include its relevant documents' words.

        relevant: [R] rows of the catalogue that are relevant. Without any, nothing can be measured: no words.
        """
        terms = self.catalogue.vocabulary.known(analyze(query.text))
        candidates = self._candidates(terms, context, relevant)
        return self._search(query, terms, candidates, relevant)

    def choose(self, query: Query, context: Context, relevant: Integers) -> Lesson:
        """Return the context's words that are worth keeping, in the prompt's order.

        All neighbors' words (the terms if there are none) are added to the query. Then words are removed one at a time:
        each time the word without which the measure is best. This ends when every remaining word is worth
        `choice_gain_min` and at most `choice_words_max` words remain. If the query alone does as well, none remain.
        """
        settings = self.settings
        terms = self.catalogue.vocabulary.known(analyze(query.text))
        shown = self._shown((context.neighbours or context.terms)[: settings.choice_words_shown])
        candidates = [term for term in shown if term not in set(terms) and len(self._words[term]) >= 2]
        if not len(relevant) or not candidates:
            return Lesson(query_id=query.id, query=query.text, words=())
        base = self.catalogue.contents.bm25_scores(terms)  # [D]
        pool, columns = self._pool(base, candidates, relevant)  # [P], [C, P]
        measure = _Measure(np.searchsorted(pool, relevant))
        raw = float(measure(base[pool][None])[0])
        alone = base[pool] + self._whole(query.text, base)[pool]  # [P]
        boosts = np.array(expansion_boosts(len(candidates), self.searched), dtype=np.float32)  # [C]
        best = float(measure(alone[None] + boosts[None] @ columns)[0])
        kept = list(range(len(candidates)))
        while kept:
            values = measure(alone[None] + _without_each(boosts[: len(kept)]) @ columns[kept])  # [C]
            worst = int(values.argmax())
            if len(kept) <= settings.choice_words_max and values[worst] <= best - settings.choice_gain_min:
                break
            best = float(values[worst])
            kept.pop(worst)
        if best <= raw:
            return Lesson(query_id=query.id, query=query.text, words=(), raw=raw, taught=raw)
        words = tuple(self._words[candidates[position]] for position in kept)
        return Lesson(query_id=query.id, query=query.text, words=words, raw=raw, taught=best)

    def _search(
        self,
        query: Query,
        terms: Sequence[int],
        candidates: Sequence[int],
        relevant: Integers,
    ) -> Lesson:
        """Return a set that is built greedily."""
        settings = self.settings
        base = self.catalogue.contents.bm25_scores(terms)  # [D]
        if not len(relevant) or not candidates:
            return Lesson(query_id=query.id, query=query.text, words=())
        pool, columns = self._pool(base, candidates, relevant)  # [P], [C, P]
        measure = _Measure(np.searchsorted(pool, relevant))
        raw = best = float(measure(base[pool][None])[0])
        current = base[pool] + self._whole(query.text, base)[pool]
        boosts = expansion_boosts(settings.words_max, self.searched)
        chosen: list[int] = []
        alive = np.arange(len(candidates))
        while len(chosen) < settings.words_max and len(alive):
            boost = np.float32(boosts[len(chosen)])
            values = measure(current[None] + boost * columns[alive])
            winner = int(values.argmax())
            if values[winner] < best + settings.gain_min:
                break
            best = float(values[winner])
            chosen.append(int(alive[winner]))
            current = current + boost * columns[alive[winner]]
            order = np.argsort(-values, kind="stable")[: settings.kept_candidates + 1]
            alive = alive[order][alive[order] != chosen[-1]]
        words = tuple(self._words[candidates[position]] for position in chosen)
        return Lesson(query_id=query.id, query=query.text, words=words, raw=raw, taught=best)

    def _candidates(self, terms: Sequence[int], context: Context, relevant: Integers) -> list[int]:
        """Return term numbers: words of the relevant documents by count · idf, then those of the context."""
        contents = self.catalogue.contents
        found: dict[int, None] = {}
        if len(relevant):
            counts = np.asarray((contents.counts[relevant] > 0).sum(axis=0)).ravel()  # [W] relevant documents
            held = np.flatnonzero(counts)
            best = held[np.argsort(-counts[held] * contents.idf[held], kind="stable")]
            found.update(dict.fromkeys(best[: self.settings.relevant_words].tolist()))
            # A word that no relevant document contains can only push them down.
            shown = self._shown((*context.terms, *context.attributes))
            found.update(dict.fromkeys(term for term in shown if counts[term]))
        asked = set(terms)
        return [
            term
            for term in found
            if term not in asked
            and contents.frequencies[term] >= self.settings.documents_min
            and len(self._words[term]) >= 2
        ]

    def _shown(self, words: Sequence[str]) -> list[int]:
        """Return the distinct terms of these words that occur in any document, in order."""
        known = dict.fromkeys(self.catalogue.vocabulary.known(analyze(" ".join(words))))
        return [term for term in known if term < len(self.catalogue.contents.frequencies)]

    def _whole(self, query: str, base: Floats) -> Floats:
        """Return [D] the extra score of documents that contain every word of the query."""
        words = dict.fromkeys(analyze(query))
        terms = self.catalogue.vocabulary.known(list(words))
        bm25 = self.catalogue.contents.bm25
        held = np.zeros(len(base), dtype=np.int64)
        for term in terms:
            if term < bm25.shape[1]:  # The vocabulary also has words of attributes.
                held[bm25.indices[bm25.indptr[term] : bm25.indptr[term + 1]]] += 1
        return np.where(held == max(len(words), 1), np.float32(self.searched.whole_boost) * base, np.float32(0.0))

    def _pool(self, base: Floats, candidates: Sequence[int], relevant: Integers) -> tuple[Integers, Floats]:
        """Return the rows to track, ascending, and the score that each candidate adds to them at boost 1."""
        bm25 = self.catalogue.contents.bm25
        bound = base.copy()
        for term in candidates:
            rows = slice(bm25.indptr[term], bm25.indptr[term + 1])
            bound[bm25.indices[rows]] += self.searched.weight * bm25.data[rows]
        pool = np.unique(np.concatenate([_best(bound, self.settings.pool_documents), _best(base, 150), relevant]))
        place = np.full(len(base), -1, dtype=np.int64)
        place[pool] = np.arange(len(pool))
        columns = np.zeros((len(candidates), len(pool)), dtype=np.float32)
        for position, term in enumerate(candidates):
            rows = slice(bm25.indptr[term], bm25.indptr[term + 1])
            at = place[bm25.indices[rows]]
            columns[position, at[at >= 0]] = bm25.data[rows][at >= 0]
        return pool, columns


class _Measure:
    """nDCG@10 plus recall@100 of many score vectors over the pool, [C, P] → [C], binary relevance.

    The first measures the results that a shopper sees, the second those that a later stage can still reorder.
    """

    def __init__(self, relevant: Integers) -> None:
        """relevant: [R] positions in the pool."""
        self.relevant = relevant
        self.ideal = float(DISCOUNTS[: len(relevant)].sum())

    def __call__(self, scores: Floats) -> npt.NDArray[np.float64]:
        pool = scores.shape[1]
        deep, shallow = max(pool - DEEP, 0), max(pool - SHALLOW, 0)
        parted = np.partition(scores, (deep, shallow), axis=1)
        leaders = -np.sort(-parted[:, shallow:], axis=1)  # [C, 10] best scores
        mine = scores[:, self.relevant]  # [C, R]
        recall = ((mine >= parted[:, deep, None]) & (mine > 0)).sum(axis=1) / len(self.relevant)
        best = -np.sort(-mine, axis=1)[:, :SHALLOW]
        gains = np.zeros(len(scores))
        for row in range(len(scores)):
            inside = best[row][best[row] >= max(leaders[row, -1], 1e-9)]
            # Of several documents with one score, the relevant ones are assumed to come first.
            ranks = np.maximum(np.searchsorted(-leaders[row], -inside, side="left"), np.arange(len(inside)))
            gains[row] = DISCOUNTS[np.unique(ranks[ranks < SHALLOW])].sum()
        return np.asarray(gains / self.ideal + recall)


class _Key(NamedTuple):
    """The inputs on which teacher sets depend."""

    index_version: str
    settings: TeacherSettings
    weight: float
    rank_discount: float
    whole_boost: float
    choose: bool
    queries: Sequence[tuple[str, str]]
    contexts: Sequence[Context]


def load_or_teach(
    directory: Path,
    teacher: Teacher,
    queries: Sequence[Query],
    contexts: Mapping[str, Context],
    qrels: Mapping[str, Mapping[str, int]],
    *,
    index: str,
    choose: bool = False,
    progress: Progress | None = None,
) -> list[Lesson]:
    """Return a lesson per query, in order, from `directory` if it holds exactly these.

    choose: True uses only words that the contexts show (`Teacher.choose`); False uses `Teacher.teach`.

    contexts, qrels: by query id; a missing entry is an empty one. index: the versioned name of the contexts' index.
    """
    key = _Key(
        index_version=index,
        settings=teacher.settings,
        weight=teacher.searched.weight,
        rank_discount=teacher.searched.rank_discount,
        whole_boost=teacher.searched.whole_boost,
        choose=choose,
        queries=[(query.id, query.text) for query in queries],
        contexts=[contexts.get(query.id, Context()) for query in queries],
    )
    digest = hashlib.sha256(msgspec.json.encode(key, order="deterministic")).hexdigest()[:16]
    path = directory / f"lessons-{digest}.jsonl"
    if path.exists():
        return read_lessons(path)
    rows = teacher.catalogue.row_of
    lessons = []
    for position, query in enumerate(queries):
        grades = qrels.get(query.id, {})
        relevant = sorted(rows[document] for document, grade in grades.items() if grade > 0 and document in rows)
        rows_relevant = np.array(relevant, dtype=np.int64)
        lessons.append(
            teacher.choose(query, key.contexts[position], rows_relevant)
            if choose
            else teacher.teach(query, key.contexts[position], rows_relevant)
        )
        if progress is not None and (position % 100 == 99 or position + 1 == len(queries)):
            progress("teaching", position + 1, len(queries))
    write_lessons(path, lessons)
    return lessons


def write_lessons(path: Path, lessons: Sequence[Lesson]) -> None:
    """Write one JSON object per line, completely or not at all. Raises CorpusError if the file cannot be written."""
    write_whole(path, msgspec.json.Encoder().encode_lines(lessons))


def read_lessons(path: Path) -> list[Lesson]:
    """Return the lessons of a file. Raises TeacherError with the file's name if it is damaged."""
    try:
        return msgspec.json.Decoder(Lesson).decode_lines(path.read_bytes())
    except msgspec.DecodeError as error:
        raise TeacherError(
            f"{path}: damaged teacher sets ({error}). Delete the file; the next run makes it again"
        ) from error


def _without_each(boosts: Floats) -> Floats:
    """Return [C, C]: row r has the boosts after word r is removed and its followers move up, with 0 in its place."""
    count = len(boosts)
    places = np.arange(count)
    moved = places[None] - (places[None] > places[:, None])  # [C, C] the rank of each word after word r is removed
    return np.where(np.eye(count, dtype=bool), np.float32(0.0), boosts[moved])


def _best(scores: Floats, count: int) -> Integers:
    if len(scores) <= count:
        return np.arange(len(scores), dtype=np.int64)
    return np.argpartition(-scores, count)[:count].astype(np.int64)
