"""Lessons in matching are right about what they say, and hold both kinds of query."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest

from search_env.catalogue.attributes import document_brand
from search_env.catalogue.corpora import Document
from search_env.catalogue.generated import DemoSettings, demo_catalogue
from search_env.catalogue.named_documents import NamedDocuments
from search_env.models.crossencoder_training import LabelledPair
from search_env.queries.judged_lists import ListSettings
from search_env.relsum.matching_lessons import LESSON_STAGES, MatchingLessons
from search_env.summaries.values import ProductValues

COUNT = 1000


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return list(demo_catalogue(DemoSettings(products=200)))


@pytest.fixture
def lessons(documents: list[Document]) -> MatchingLessons:
    return made_of(documents)


def made_of(documents: Sequence[Document]) -> MatchingLessons:
    values = ProductValues(NamedDocuments(documents), {"colour": 3})
    return MatchingLessons(values, [each.id for each in documents], ListSettings(), seed=1)


def test_lessons_by_value_are_labelled_by_what_stands_in_their_text(
    documents: list[Document], lessons: MatchingLessons
) -> None:
    titles = {document.title for document in documents}
    brands = {document_brand(document).lower() for document in documents} - {""}
    found = lessons.stages(COUNT)
    for stage, of_stage in zip(LESSON_STAGES, found, strict=True):
        for lesson in of_stage[: round((1 - stage.by_title) * stage.share * COUNT)]:
            text = lesson.text
            if stage.titled:
                title = next(title for title in titles if text.startswith(f"{title}; "))
                text = text.removeprefix(f"{title}; ")
            said = set(text.lower().split(", "))
            asked = next((lesson.query.removeprefix(f"{b} ") for b in brands if lesson.query.startswith(f"{b} ")), "")
            wanted = {asked or lesson.query, lesson.query}
            pairs = {f"{one} {other}" for one in said for other in said}
            assert lesson.label == bool(wanted & (said | pairs)), lesson
    assert 0.3 < share_of_relevant([lesson for stage in found for lesson in stage]) < 0.7


def test_lessons_by_title_are_labelled_by_what_stands_in_their_text(lessons: MatchingLessons) -> None:
    found = lessons.by_title(COUNT)
    assert len(found) > COUNT / 2
    for lesson in found:
        assert lesson.label == all(word in re.findall(r"\w+", lesson.text.lower()) for word in lesson.query.split())
    assert 0.3 < share_of_relevant(found) < 0.7


def test_wrong_lessons_by_title_often_have_one_of_several_words(lessons: MatchingLessons) -> None:
    wrong = [each for each in lessons.by_title(COUNT) if not each.label and " " in each.query]
    sharing = [each for each in wrong if set(each.query.split()) & set(re.findall(r"\w+", each.text.lower()))]
    assert wrong
    assert sharing == wrong


def test_the_same_seed_gives_the_same_lessons(documents: list[Document], lessons: MatchingLessons) -> None:
    assert made_of(documents).stages(60) == lessons.stages(60)


def test_without_products_there_are_no_lessons() -> None:
    nothing = made_of([])
    assert nothing.stages(100) == [[] for _ in LESSON_STAGES]
    assert nothing.by_title(10) == []


def share_of_relevant(found: Sequence[LabelledPair]) -> float:
    return sum(lesson.label for lesson in found) / len(found)
