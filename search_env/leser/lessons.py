"""Lessons that need no search: copying from the prompt, the catalogue's own words, and abstaining.

`copy_lessons` shows random words in every part of a prompt; the answer is some of the neighbors' words in their order.
A policy made from scratch first has to learn that it can repeat words of the prompt. Without these lessons, 1,200 steps
of choosing did not teach it to look at its prompt. The other parts must be present, too. A policy that had learned to
copy from prompts of only neighbors' words (0.3 nats per token) took only a quarter of its words from a whole prompt.

`catalogue_lessons` pairs a few attribute values of a product with words of its title and text. From them, a policy made
from scratch learns the answer's format and which words go with which values, also for values that no training query
names. `head_lessons` pairs short title phrases with no words at all. Titles alone serve a shopper who types words of
titles, and a policy that cannot abstain ruins such queries (nDCG@10 .76 → .59 for kNN words). Both use only documents,
never a judgment.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Annotated, Literal, NamedTuple

import msgspec
import numpy as np

from search_env.catalogue.analysis import STOP_WORDS, analyze, plain_words, stem, surface_tokens
from search_env.catalogue.attributes import Attribute, document_attributes, document_brand, is_logistic
from search_env.catalogue.corpora import Document
from search_env.catalogue.term_matrices import Catalogue
from search_env.leser.teachers import Lesson
from streams.descriptions import describe
from streams.events import Context

WORDS_MAX = 5
COPIED_FROM_MIN, COPIED_MAX = 4, 10
KEPT_SHARES = (0.4, 0.6, 0.8, 1.0)
DOCUMENTS_MIN = 5
VALUE_DOCUMENTS_MIN = 3
NAMES_SHARE = BRAND_SHARE = 0.25
PHRASE_DOCUMENTS_MIN = 8
PHRASE_PLACES, PHRASE_PLACES_BITS_MAX = 32, 28  # Bytes for each document in which phrases are counted; 256 MiB at most.


class PromptShape(NamedTuple):
    """The largest number of items of each kind in a prompt."""

    terms: int
    attributes: int
    neighbours: int


class LessonSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the warm-up's lessons."""

    copied: Annotated[
        int,
        msgspec.Meta(ge=0, le=1_000_000),
        describe("Number of lessons that teach to read the prompt. They come before all others."),
    ] = 8_000
    catalogue: Annotated[
        int,
        msgspec.Meta(ge=0, le=1_000_000),
        describe(
            "Number of lessons that teach the words that go with values. They come before the lessons of the teacher."
        ),
    ] = 4_000
    head: Annotated[
        int,
        msgspec.Meta(ge=0, le=100_000),
        describe("Number of title phrases that need no words. GRPO's requests contain them, too."),
    ] = 1_200
    taught_share: Annotated[
        float,
        msgspec.Meta(gt=0, le=1),
        describe("Share of training queries whose teacher sets the warm-up sees. The rest is new to GRPO."),
    ] = 0.6
    shown_share: Annotated[
        float,
        msgspec.Meta(ge=0, le=1),
        describe(
            "Share of a catalogue lesson's words that its context shows among other words. The policy learns to "
            "choose from them."
        ),
    ] = 0.8
    labels: Annotated[
        Literal["judgments", "relevance"],
        describe(
            'What is relevant to a training query: "judgments", if there are any, or "relevance", the documents that '
            "the relevance model scores best. The second learns from clicks alone if the model does."
        ),
    ] = "judgments"
    relevant_without_labels: Annotated[
        int,
        msgspec.Meta(ge=1, le=1000),
        describe(
            "Number of documents that count as relevant if there are no judgments: those that the relevance "
            "model scores best."
        ),
    ] = 20
    queries_max: Annotated[
        int,
        msgspec.Meta(ge=1),
        describe(
            "Largest number of training queries that are prepared before the first update. The teacher sees no others; "
            "their contexts are built while the run learns."
        ),
    ] = 50_000
    seed: Annotated[int, msgspec.Meta(ge=0), describe("Seed of the lessons and their order.")] = 7


def copy_lessons(
    lessons: Sequence[Lesson],
    attributes: Sequence[str],
    *,
    count: int,
    shown: PromptShape,
    seed: int,
) -> tuple[list[Lesson], dict[str, Context]]:
    """Return `count` lessons and their contexts by query id: the answer is some of the neighbors' words, in order.

    lessons: the source of queries and words; words are drawn as often as they were taught. attributes: values to show
    beside them. shown: the largest number of each. If there are no words, there are no lessons.
    """
    generator = np.random.default_rng(seed)
    pool = [word for lesson in lessons for word in lesson.words]
    copied: list[Lesson] = []
    contexts: dict[str, Context] = {}
    for number in range(count if pool else 0):
        size = int(generator.integers(min(COPIED_FROM_MIN, shown.neighbours), shown.neighbours + 1))
        others = int(generator.integers(shown.terms + 1))
        drawn = list(dict.fromkeys(pool[place] for place in generator.integers(len(pool), size=size + others).tolist()))
        values = generator.integers(len(attributes), size=shown.attributes).tolist() if attributes else []
        kept = generator.random(size) < generator.choice(KEPT_SHARES)
        words = tuple(word for word, keep in zip(drawn[:size], kept.tolist(), strict=False) if keep)[:COPIED_MAX]
        lesson = Lesson(
            query_id=f"copy-{number}", query=lessons[int(generator.integers(len(lessons)))].query, words=words
        )
        copied.append(lesson)
        contexts[lesson.query_id] = Context(
            terms=tuple(drawn[size:]),
            attributes=tuple(attributes[place] for place in values),
            neighbours=tuple(drawn[:size]),
        )
    return copied, contexts


def catalogue_lessons(catalogue: Catalogue, *, count: int, seed: int) -> list[Lesson]:
    """Return up to `count` lessons (a query of 1 to 3 attribute values, 1 to 5 words of that product).

    Words in fewer than 5 documents are left out; words go from the most to the least common. A catalogue without
    attributes gives no lessons. The same catalogue, count and seed always give the same lessons.
    """
    generator = np.random.default_rng(seed)
    frequency = dict(zip(catalogue.vocabulary.terms, catalogue.contents.frequencies.tolist(), strict=False))
    holders = Counter(attribute.phrase.lower() for document in catalogue.documents for attribute in _said_of(document))
    rows = np.flatnonzero(
        np.fromiter(
            (
                len(_shared(document, holders)) >= 2 and len(_common_words(document, catalogue, frequency)) >= 2
                for document in catalogue.documents
            ),
            dtype=bool,
            count=len(catalogue),
        )
    )
    lessons: list[Lesson] = []
    for _ in range(3 * count if len(rows) else 0):
        document = catalogue.documents[int(rows[int(generator.integers(len(rows)))])]
        mine = _shared(document, holders)
        weights = np.array([holders[attribute.phrase.lower()] ** -0.5 for attribute in mine])
        chosen = generator.choice(
            len(mine), size=min(len(mine), int(generator.integers(1, 4))), replace=False, p=weights / weights.sum()
        )
        named = bool(generator.random() < NAMES_SHARE)
        query = " ".join(_said(mine[position], named=named) for position in chosen.tolist())
        if generator.random() < BRAND_SHARE:
            query = f"{document_brand(document)} {query}"
        asked = set(analyze(query))
        new = [word for word in _common_words(document, catalogue, frequency) if stem(word) not in asked]
        if not new:
            continue
        picked = generator.choice(len(new), size=min(WORDS_MAX, len(new)), replace=False)
        answer = sorted(
            (new[position] for position in picked.tolist()), key=lambda word: (-frequency[stem(word)], word)
        )
        lessons.append(Lesson(query_id=f"catalogue-{len(lessons)}", query=query.lower().strip(), words=tuple(answer)))
        if len(lessons) == count:
            break
    return lessons


def contexts_to_choose_from(
    lessons: Sequence[Lesson], *, shown: PromptShape, shown_share: float, seed: int
) -> dict[str, Context]:
    """Return, by query id, made-up contexts that mix a lesson's words with those of other lessons.

    A policy made from scratch must learn to read its prompt before it can choose from it. From lessons without a
    context it learned words by heart, and 600 steps on real contexts did not teach it to copy (dev loss 2.6 nats per
    token, no better than word frequencies). shown: how many terms and neighbors' words. shown_share: share of a
    lesson's words that the context shows; the policy must know the rest.
    """
    generator = np.random.default_rng(seed)
    words = [word for lesson in lessons for word in lesson.words]
    room = shown.terms + shown.neighbours
    contexts = {}
    for lesson in lessons:
        mine = [word for word in lesson.words if generator.random() < shown_share]
        others = [words[place] for place in generator.integers(len(words), size=room)]
        mixed = list(dict.fromkeys([*mine, *(word for word in others if word not in lesson.words)]))[:room]
        mixed = [mixed[place] for place in generator.permutation(len(mixed))]
        contexts[lesson.query_id] = Context(terms=tuple(mixed[: shown.terms]), neighbours=tuple(mixed[shown.terms :]))
    return contexts


def head_lessons(catalogue: Catalogue, *, count: int, seed: int, without: Collection[str] = ()) -> list[Lesson]:
    """Return up to `count` lessons of title phrases (1 to 3 words, in at least 8 titles) and no words.

    Short and common phrases come more often, as they do from shoppers. without: queries that must not be among them,
    such as the human queries, which serve only for tests.
    """
    generator = np.random.default_rng(seed)
    titles = _common_phrases(catalogue)
    left_out = {plain_words(query) for query in without}
    found = [(phrase, seen) for phrase, seen in sorted(titles.items()) if seen >= PHRASE_DOCUMENTS_MIN]
    found = [(phrase, seen) for phrase, seen in found if phrase not in left_out]
    if not found:
        return []
    lengths = {0: 1.5, 1: 1.0, 2: 0.3}
    weights = np.array([seen**0.5 * lengths[phrase.count(" ")] for phrase, seen in found])
    picked = generator.choice(len(found), size=min(count, len(found)), replace=False, p=weights / weights.sum())
    return [
        Lesson(query_id=f"head-{number}", query=found[position][0], words=())
        for number, position in enumerate(picked.tolist())
    ]


def _common_phrases(catalogue: Catalogue) -> Counter[str]:
    """Return the phrases of titles and the number of titles that have them: all that are in enough titles.

    Most phrases are in one title, and a large catalogue has too many of them to be counted by name. So the first
    reading counts by hash. A phrase in enough titles has a place with at least that count, and only such phrases are
    counted in the second reading.
    """
    places = 1 << min(max(PHRASE_PLACES * len(catalogue), 1 << 16).bit_length(), PHRASE_PLACES_BITS_MAX)
    seen = bytearray(places)
    for document in catalogue.documents:
        for phrase in _phrases(document):
            place = hash(phrase) & (places - 1)
            if seen[place] < PHRASE_DOCUMENTS_MIN:
                seen[place] += 1
    titles: Counter[str] = Counter()
    for document in catalogue.documents:
        often = (each for each in _phrases(document) if seen[hash(each) & (places - 1)] >= PHRASE_DOCUMENTS_MIN)
        titles.update(" ".join(phrase) for phrase in often if _is_phrase(phrase))
    return titles


def _phrases(document: Document) -> set[tuple[str, ...]]:
    """Return the runs of one to three words in a title."""
    tokens = [token for token in surface_tokens(document.title) if len(token) > 1]
    return {tuple(tokens[start : start + length]) for length in (1, 2, 3) for start in range(len(tokens) - length + 1)}


def _said_of(document: Document) -> list[Attribute]:
    return [attribute for attribute in document_attributes(document) if not is_logistic(attribute.key)]


def _shared(document: Document, holders: Counter[str]) -> list[Attribute]:
    """Return a document's attributes whose value enough documents have."""
    return [each for each in _said_of(document) if holders[each.phrase.lower()] >= VALUE_DOCUMENTS_MIN]


def _said(attribute: Attribute, *, named: bool) -> str:
    if named and attribute.name not in attribute.phrase.lower():
        return f"{attribute.name} {attribute.phrase}"
    return attribute.phrase


def _common_words(document: Document, catalogue: Catalogue, frequency: dict[str, int]) -> list[str]:
    words: dict[str, None] = {}
    for token in surface_tokens(f"{document.title} {document.text}"):
        term = stem(token)
        if token not in STOP_WORDS and len(token) >= 2 and frequency.get(term, 0) >= DOCUMENTS_MIN:
            words[catalogue.surface_forms[catalogue.vocabulary.number_of[term]]] = None
    return [word for word in words if word]


def _is_phrase(words: Sequence[str]) -> bool:
    return (
        words[0] not in STOP_WORDS
        and words[-1] not in STOP_WORDS
        and any(word.isalpha() and len(word) > 2 for word in words)
    )
