"""Teacher sets, neighbours' words and the catalogue's own lessons, on a catalogue small enough to check by hand."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from search_env.catalogue.corpora import Document, Query
from search_env.catalogue.term_matrices import Catalogue
from search_env.engine.searching import RetrievalSettings
from search_env.leser.context import with_neighbours
from search_env.leser.lessons import PromptShape, catalogue_lessons, copy_lessons, head_lessons
from search_env.leser.neighbours import Neighbours, NeighbourSettings
from search_env.leser.teachers import Lesson, Teacher, TeacherError, TeacherSettings, load_or_teach, read_lessons
from streams.events import Context

KINDS = {"laser": "toner cartridge", "inkjet": "ink bottle", "patch": "network cable", "fiber": "optic lead"}
COLOURS = ["black", "cyan", "yellow"]


def document(number: int, kind: str, colour: str) -> Document:
    return Document(
        id=f"d{number:03}",
        title=f"{KINDS[kind]} model{number % 5} {'office' if number % 2 else 'home'}",
        text="",
        metadata={"brand": "acme", "attributes": {"technology": kind, "colour": colour, "pack": "single"}},
    )


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    kinds = [(kind, colour) for kind in KINDS for colour in COLOURS] * 6
    return Catalogue([document(number, kind, colour) for number, (kind, colour) in enumerate(kinds)])


def relevant(catalogue: Catalogue, kind: str) -> np.ndarray:
    rows = [row for row, d in enumerate(catalogue.documents) if d.metadata["attributes"]["technology"] == kind]
    return np.array(rows, dtype=np.int64)


SETTINGS = TeacherSettings(documents_min=2)
SEARCHED = RetrievalSettings(weight=0.8, rank_discount=0.5, whole_boost=0)
QUERY = Query(id="q", text="laser office")


def test_the_teacher_finds_the_words_that_no_context_shows(catalogue: Catalogue) -> None:
    lesson = Teacher(catalogue, SETTINGS, SEARCHED).teach(QUERY, Context(), relevant(catalogue, "laser"))
    assert set(lesson.words) & {"toner", "cartridge"}
    assert lesson.taught > lesson.raw


def test_choosing_leaves_out_the_words_that_do_harm_and_keeps_the_order(catalogue: Catalogue) -> None:
    teacher = Teacher(catalogue, TeacherSettings(choice_gain_min=0.001), SEARCHED)
    shown = Context(terms=("toner",), neighbours=("cable", "cartridge", "bottle", "toner", "lead"))
    lesson = teacher.choose(QUERY, shown, relevant(catalogue, "laser"))
    assert lesson.words in (("cartridge",), ("toner",), ("cartridge", "toner"))
    assert lesson.taught > lesson.raw
    assert teacher.choose(QUERY, Context(neighbours=("cable", "lead")), relevant(catalogue, "laser")).words == ()


def test_choosing_is_as_good_as_the_best_of_all_subsets_on_a_small_prompt(catalogue: Catalogue) -> None:
    rows = relevant(catalogue, "laser")
    words = ("cable", "cartridge", "home", "toner")
    lesson = Teacher(catalogue, SETTINGS, SEARCHED).choose(QUERY, Context(neighbours=words), rows)
    subsets = [subset for size in range(len(words) + 1) for subset in combinations(words, size)]
    best = max(value(catalogue, QUERY.text, subset, rows) for subset in subsets)
    assert value(catalogue, QUERY.text, lesson.words, rows) == pytest.approx(best, abs=0.01)


def test_a_choice_is_capped_and_begins_with_the_words_that_are_shown_first(catalogue: Catalogue) -> None:
    rows = relevant(catalogue, "laser")
    shown = Context(neighbours=("cartridge", "toner", "model1"))
    at_most_one = TeacherSettings(choice_words_max=1, choice_gain_min=-1.0)
    assert len(Teacher(catalogue, at_most_one, SEARCHED).choose(QUERY, shown, rows).words) == 1
    first_two = TeacherSettings(choice_words_shown=2)
    assert "model1" not in Teacher(catalogue, first_two, SEARCHED).choose(QUERY, shown, rows).words


def test_the_first_word_is_the_best_single_word_by_a_plain_ranking(catalogue: Catalogue) -> None:
    rows = relevant(catalogue, "fiber")
    lesson = Teacher(catalogue, SETTINGS, SEARCHED).teach(QUERY, Context(), rows)
    scores = {word: value(catalogue, QUERY.text, [word], rows) for word in ("optic", "lead", "toner", "home", "model1")}
    assert scores[lesson.words[0]] == max(scores.values())
    pairs = [value(catalogue, QUERY.text, pair, rows) for pair in combinations(scores, 2)]
    assert value(catalogue, QUERY.text, list(lesson.words), rows) >= max(pairs) - 1e-9


def value(catalogue: Catalogue, query: str, words: list[str] | tuple[str, ...], rows: np.ndarray) -> float:
    """The oracle: nDCG@10 + recall@100 of a whole ranking, ties in favour of the relevant."""
    number, bm25_scores = catalogue.vocabulary.known, catalogue.contents.bm25_scores
    scores = bm25_scores(number(query.split()))
    for rank, word in enumerate(words, start=1):
        scores = scores + 0.8 / np.sqrt(rank) * bm25_scores(number([word.removesuffix("s")]))
    good = set(rows.tolist())
    order = sorted(np.flatnonzero(scores > 0).tolist(), key=lambda row: (-scores[row], row not in good))
    gains = [1 / np.log2(rank + 2) for rank, row in enumerate(order[:10]) if row in good]
    ideal = [1 / np.log2(rank + 2) for rank in range(min(len(good), 10))]
    return sum(gains) / sum(ideal) + len(good & set(order[:100])) / len(good)


def test_without_relevant_documents_nothing_is_taught(catalogue: Catalogue) -> None:
    nothing = np.array([], dtype=np.int64)
    assert Teacher(catalogue, SETTINGS, SEARCHED).teach(QUERY, Context(terms=("toner",)), nothing).words == ()


def test_lessons_are_made_once_and_again_when_the_weight_changes(catalogue: Catalogue, tmp_path: Path) -> None:
    qrels = {"q": {catalogue.ids[row]: 1 for row in relevant(catalogue, "laser").tolist()}}
    calls: list[int] = []

    def lessons(weight: float) -> list[Lesson]:
        teacher = Teacher(catalogue, SETTINGS, RetrievalSettings(weight=weight))
        return load_or_teach(
            tmp_path, teacher, [QUERY], {}, qrels, index="i-1", progress=lambda what, done, of: calls.append(done)
        )

    assert lessons(0.8) == lessons(0.8) and calls == [1]
    lessons(0.3)
    assert calls == [1, 1]
    damaged = next(iter(sorted(tmp_path.iterdir())))
    damaged.write_text("{")
    with pytest.raises(TeacherError, match=damaged.name):
        read_lessons(damaged)


class FakeEmbedder:
    """One dimension a word, so that similarity is the share of common words."""

    def __init__(self) -> None:
        self.words: dict[str, int] = {}

    def embed(self, texts: list[str]) -> np.ndarray:
        vectors = np.zeros((len(texts), 50), dtype=np.float32)
        for row, text in enumerate(texts):
            for word in text.split():
                vectors[row, self.words.setdefault(word, len(self.words))] = 1.0
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    embed_queries = embed


LESSONS = [
    Lesson(query_id="a", query="laser black", words=("toner", "office")),
    Lesson(query_id="b", query="laser cyan", words=("toner", "cartridge")),
    Lesson(query_id="c", query="patch black", words=("cable",)),
    Lesson(query_id="d", query="fiber yellow", words=("optic",)),
]


def neighbours(**settings: float) -> Neighbours:
    return Neighbours(LESSONS, FakeEmbedder(), NeighbourSettings(neighbours=2, words=3, **settings))  # type: ignore[arg-type]


def test_words_of_similar_queries_come_first_and_those_of_the_query_never() -> None:
    assert neighbours().words(["laser black"]) == [("toner", "office", "cartridge")]
    assert "optic" not in neighbours().words(["fiber optic"])[0]


def test_a_training_query_never_sees_its_own_lesson() -> None:
    query = Query(id="d", text="fiber yellow")
    assert neighbours().words(["fiber yellow"]) == [("optic",)]
    assert neighbours(hidden_share=0.0).words_for_training([query]) == [()]


def asked(query_id: str, text: str, *values: str) -> Query:
    return Query(id=query_id, text=text, metadata={"attributes": [["key", value] for value in values]})


def test_a_hidden_value_hides_every_lesson_that_names_it() -> None:
    others = [asked("b", "laser cyan", "laser", "cyan"), asked("c", "patch black", "patch", "black")]
    asking = [asked(query_id, "laser black", "laser", "black") for query_id in "aefghij"]
    seen = [neighbours(hidden_share=1.0).words_for_training([asking[0], query, *others])[1] for query in asking]
    black_hidden, laser_hidden = ("toner", "cartridge"), ("cable",)
    assert set(seen) == {black_hidden, laser_hidden}  # Which of the two is drawn by the id.


def test_a_lesson_that_names_two_values_of_a_training_query_is_hidden_from_it() -> None:
    twin = asked("a", "laser black", "black", "laser")
    query = asked("e", "acme laser black", "laser", "black")
    assert neighbours().words(["acme laser black"])[0][:2] == ("toner", "office")
    seen = neighbours(hidden_share=0.0).words_for_training([query, twin])[0]
    assert seen == ("cable", "toner", "cartridge")


def test_the_catalogues_lessons_pair_values_with_words_of_a_product_that_has_them(catalogue: Catalogue) -> None:
    lessons = catalogue_lessons(catalogue, count=40, seed=1)
    assert len(lessons) == 40 and lessons == catalogue_lessons(catalogue, count=40, seed=1)
    for lesson in lessons:
        assert 1 <= len(lesson.words) <= 5
        for kind, words in KINDS.items():
            if kind in lesson.query:
                assert set(lesson.words) <= {*words.split(), *(f"model{n}" for n in range(5)), "office", "home"}


def test_head_lessons_are_title_phrases_with_nothing_to_add_and_never_a_held_out_query(catalogue: Catalogue) -> None:
    lessons = head_lessons(catalogue, count=30, seed=1, without=["Toner Cartridge"])
    assert lessons and all(lesson.words == () for lesson in lessons)
    assert all(any(lesson.query in d.title for d in catalogue.documents) for lesson in lessons)
    assert "toner cartridge" not in {lesson.query for lesson in lessons}


def test_a_copy_lesson_answers_with_some_of_the_neighbours_words_in_their_order() -> None:
    shape = PromptShape(terms=3, attributes=1, neighbours=6)
    copied, contexts = copy_lessons(LESSONS, ["acme"], count=60, shown=shape, seed=1)
    assert len(copied) == 60 and (copied, contexts) == copy_lessons(LESSONS, ["acme"], count=60, shown=shape, seed=1)
    whole = 0
    for lesson in copied:
        shown = contexts[lesson.query_id]
        assert len(shown.terms) <= 3 and shown.attributes == ("acme",) and 1 <= len(shown.neighbours) <= 6
        assert [word for word in shown.neighbours if word in lesson.words] == list(lesson.words)
        assert not set(shown.terms) & set(shown.neighbours)
        whole += lesson.words == shown.neighbours
    assert 0 < whole < 60
    assert copy_lessons(LESSONS[:0], [], count=20, shown=shape, seed=1) == ([], {})


def test_words_that_terms_and_neighbours_agree_on_come_first_and_stand_once() -> None:
    context = with_neighbours(Context(terms=("usb", "lead", "office")), ("cable", "office", "patch", "usb"))
    assert context.neighbours == ("office", "usb", "cable", "patch")
    assert context.terms == ("lead",)
