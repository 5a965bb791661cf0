"""A catalogue that holds a sample: documents outside it get the numbers that they have in the whole catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import numpy as np
import pytest

from search_env.catalogue.corpora import Document
from search_env.catalogue.generated import DemoSettings, demo_catalogue
from search_env.catalogue.term_matrices import Catalogue
from search_env.engine.attached_catalogue import AttachedCatalogue
from search_env.leser.feedback_terms import FeedbackTerms
from search_env.models.features import FeatureMaker

QUERIES = ["waterproof black jacket", "steel bottle", "cotton", "zzyzx lamp"]


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return list(islice(demo_catalogue(DemoSettings()), 600))


@pytest.fixture(scope="module")
def whole(documents: list[Document]) -> Catalogue:
    return Catalogue(documents)


def features(catalogue: Catalogue, ids: Sequence[str]) -> list[np.ndarray]:  # type: ignore[type-arg]
    maker = FeatureMaker(catalogue)
    return [maker.features(query, [catalogue.row_of[name] for name in ids]) for query in QUERIES]


def test_with_the_whole_catalogues_statistics_a_few_documents_have_the_same_features(
    documents: list[Document], whole: Catalogue
) -> None:
    some = documents[7:400:13]
    few = Catalogue(some, like=whole)
    for expected, found in zip(features(whole, few.ids), features(few, few.ids), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_with_the_whole_catalogues_statistics_a_few_documents_give_the_same_feedback_terms(
    documents: list[Document], whole: Catalogue
) -> None:
    ids = [document.id for document in documents[3:60:6]]
    scores = [1.0 / rank for rank in range(1, len(ids) + 1)]
    few = FeedbackTerms(Catalogue([documents[whole.row_of[name]] for name in ids], like=whole))
    for method in ("bo1", "rm3"):
        expected = FeedbackTerms(whole).terms(method, ids, scores, count=20, documents_min=3)  # type: ignore[arg-type]
        assert few.terms(method, ids, scores, count=20, documents_min=3) == expected  # type: ignore[arg-type]


def test_a_documents_features_do_not_depend_on_the_documents_that_are_read_with_it(documents: list[Document]) -> None:
    sample = Catalogue(documents[:100])
    strangers = [
        *documents[300:320],
        Document(id="new", title="zzyzx lamp", text="a word that nobody knows: qwrtl", metadata={"brand": "Zzyzx"}),
    ]
    together = Catalogue(strangers, like=sample)
    for document in strangers:
        alone = Catalogue([document], like=sample)
        for one, of_all in zip(features(alone, [document.id]), features(together, [document.id]), strict=True):
            np.testing.assert_array_equal(one, of_all)
    matched = features(together, ["new"])[QUERIES.index("zzyzx lamp")]
    assert matched[0][0] > 0, "a word that the sample lacks still matches"


def test_a_catalogue_like_another_leaves_that_one_as_it_was(documents: list[Document]) -> None:
    sample = Catalogue(documents[:100])
    sample.settle()
    terms, values = list(sample.vocabulary.terms), list(sample.value_phrases)
    before = features(sample, sample.ids[:20])
    more = Catalogue([Document(id="n", title="never seen words here", text="")], like=sample)
    features(more, ["n"])
    assert (sample.vocabulary.terms, sample.value_phrases) == (terms, values)
    assert "never" not in sample.vocabulary.number_of
    for expected, found in zip(before, features(sample, sample.ids[:20]), strict=True):
        np.testing.assert_array_equal(found, expected)


class Reads:
    """A reader that counts."""

    def __init__(self, documents: Sequence[Document]) -> None:
        self.by_id = {document.id: document for document in documents}
        self.asked: list[list[str]] = []

    def read(self, ids: Sequence[str]) -> dict[str, Document]:
        self.asked.append(list(ids))
        return {name: self.by_id[name] for name in ids}


def test_only_documents_that_the_sample_lacks_are_read(documents: list[Document]) -> None:
    reader = Reads(documents)
    catalogue = AttachedCatalogue(documents[:50], reader)  # type: ignore[arg-type]
    inside, outside = documents[3].id, documents[99].id
    assert catalogue.holding([inside, inside]) is catalogue
    assert reader.asked == []
    held = catalogue.holding([outside, inside, outside])
    assert held.ids == [outside, inside]
    assert reader.asked == [[outside]]
    assert held.population == 50
