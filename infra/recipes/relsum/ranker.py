"""Training of the cross-encoder that ranks an index's lists: the first one, and versions adapted to summaries.

Training lists teach and dev lists calibrate. Human queries and test lists do neither.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec
import numpy as np

from infra.recipes.relsum.index import RelsumIndex
from search_env.catalogue.attributes import query_keys
from search_env.catalogue.corpora import Query, write_whole
from search_env.models.crossencoder import CrossEncoder, save_cross_encoder
from search_env.models.crossencoder_training import LabelledPair, adapt_cross_encoder, calibrate, train_cross_encoder
from search_env.relsum.matching_lessons import MatchingLessons

T = TypeVar("T")
NEGATIVES = 4  # Irrelevant products of each query's list.
BY_TITLE = 0.25  # Lessons by title for each pair of lists, so that titles are not unlearned.
Writes = Callable[[Sequence[tuple[Query, str]]], Sequence[str]]
"""A function from (query, product) pairs to the texts behind the titles, in the order of the pairs."""


class JudgedPair(NamedTuple):
    """A query, a product of its list, and a label.

    label: 1 for a relevant product, else 0. again: the pair's second occurrence, with a text of another kind.
    """

    query: Query
    document: str
    label: int
    again: bool = False


def train_ranker(relsum: RelsumIndex) -> str:
    """Train the index's first cross-encoder, make it the current one, and return its version.

    It learns matching first, and then pairs of lists with every kind of text that it scores later.
    """
    settings, lessons = relsum.settings.cross_encoder, _lessons(relsum)
    stages = lessons.stages(settings.lessons)
    pairs = _some(relsum, [_of_some_kind(relsum, pair) for pair in judged_pairs(relsum, "train")])
    with tempfile.TemporaryDirectory(prefix="searchloop-cross-encoder-") as scratch:
        made = train_cross_encoder(
            stages, _with_titles(relsum, pairs, lessons), settings, Path(scratch) / "first", relsum.report
        )
    held_out = [_of_some_kind(relsum, pair) for pair in judged_pairs(relsum, "dev")]
    return save_cross_encoder(made, calibrate(made, held_out, relsum.report), relsum.folder.cross_encoders).version


def adapt_ranker(relsum: RelsumIndex, parent: CrossEncoder, writes: Writes, *, left_out: Collection[str] = ()) -> str:
    """Adapt a cross-encoder to summaries, and return the new version; it does not become the current one.

    A version that was adapted before, to the same texts and from the same parent, is found again. left_out: texts of
    queries, in small letters, that teach nothing.
    """
    settings = relsum.settings.cross_encoder
    dev = [pair for pair in judged_pairs(relsum, "dev") if not pair.again]
    taught, measured = (
        _written(relsum, [pair for pair in pairs if pair.query.text.lower() not in left_out], writes)
        for pairs in (taught_pairs(relsum), dev)
    )
    same = msgspec.structs.replace(settings, version="", title_weight=0.0)  # Neither affects adaptation.
    known = msgspec.json.encode([parent.version, same, taught, measured])
    pointer = relsum.folder.adapted_encoders / hashlib.sha256(known).hexdigest()[:16]
    if not pointer.is_file():
        adapted = adapt_cross_encoder(parent, _with_titles(relsum, taught, _lessons(relsum)), settings, relsum.report)
        calibration = msgspec.structs.replace(calibrate(adapted, measured, relsum.report), parent=parent.version)
        pointer.parent.mkdir(exist_ok=True)
        write_whole(
            pointer, save_cross_encoder(adapted, calibration, relsum.folder.cross_encoders, current=False).version
        )
    return pointer.read_text()


def taught_pairs(relsum: RelsumIndex) -> list[JudgedPair]:
    """Return the pairs of training lists that a cross-encoder is adapted with."""
    return _some(relsum, [pair for pair in judged_pairs(relsum, "train") if not pair.again])


def said(summaries: Mapping[str, str]) -> Writes:
    """Return the function that gives these summaries, whatever the query; "" for a product without one."""
    return lambda pairs: [summaries.get(document, "") for _, document in pairs]


def judged_pairs(relsum: RelsumIndex, split: str) -> list[JudgedPair]:
    """Return the pairs of a split's lists: each relevant product twice, and at most `NEGATIVES` others of a list."""
    lists = relsum.lists(split)
    found: list[JudgedPair] = []
    for query in lists.queries:
        grades = lists.qrels[query.id]
        relevant = [document for document, grade in grades.items() if grade > 0]
        others = [document for document, grade in grades.items() if grade == 0]
        others.sort(key=lambda document: _draw(query, document, "order"))
        found += [JudgedPair(query, document, 1) for document in relevant]
        found += [JudgedPair(query, document, 1, again=True) for document in relevant]
        found += [JudgedPair(query, document, 0) for document in others[:NEGATIVES]]
    return found


def _lessons(relsum: RelsumIndex) -> MatchingLessons:
    """Return the source of lessons about the products of training lists, at its first lesson."""
    names = sorted({document for of in relsum.lists("train").qrels.values() for document in of})
    return MatchingLessons(relsum.values, names, relsum.settings.lists, seed=relsum.settings.cross_encoder.seed)


def _with_titles(relsum: RelsumIndex, pairs: Sequence[LabelledPair], lessons: MatchingLessons) -> list[LabelledPair]:
    count = round(BY_TITLE * len(pairs)) if relsum.settings.cross_encoder.lessons else 0
    return [*pairs, *lessons.by_title(count)]


def _some(relsum: RelsumIndex, pairs: Sequence[T]) -> list[T]:
    settings = relsum.settings.cross_encoder
    order = np.random.default_rng(settings.seed).permutation(len(pairs))
    return [pairs[place] for place in order[: settings.pairs_max].tolist()]


def _written(relsum: RelsumIndex, pairs: Sequence[JudgedPair], writes: Writes) -> list[LabelledPair]:
    summaries = writes([(pair.query, pair.document) for pair in pairs])
    return [
        LabelledPair(query=pair.query.text, text=relsum.text(pair.document, summary), label=pair.label)
        for pair, summary in zip(pairs, summaries, strict=True)
    ]


def _of_some_kind(relsum: RelsumIndex, pair: JudgedPair) -> LabelledPair:
    """Return a pair with one kind of text behind the title.

    The kinds are no text, the values asked for, values by chance, values by the log, and the whole description. The
    pair's hash draws the kind, so that a cross-encoder is calibrated for short texts and long ones alike.
    """
    query, document, label, again = pair
    kind = _draw(query, document, "b" if again else "a") % 8
    if kind == 0:
        summary = ""
    elif kind == 1:  # Few, because training mostly cuts them.
        summary = relsum.values.description(document)
    elif kind <= 4:
        summary = relsum.summary(document, relsum.values.asked(document, query_keys(query)))
    else:
        order = relsum.values.by_chance if kind <= 6 else relsum.values.by_key_counts
        summary = relsum.summary(document, order(document))
    return LabelledPair(query=query.text, text=relsum.text(document, summary), label=label)


def _draw(query: Query, document: str, salt: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{query.id}\t{document}\t{salt}".encode()).digest()[:8])
