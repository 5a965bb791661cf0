"""Feedback terms: Bo1 and the relevance model against numbers worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from search_env.catalogue.analysis import analyze
from search_env.catalogue.corpora import Document
from search_env.catalogue.term_matrices import Catalogue
from search_env.engine.forms import own_query
from search_env.leser.feedback_terms import FeedbackTerms, bo1_weights, boosted, feedback_counts

DOCUMENTS = [
    Document(id="a", title="toner", text="releases toner"),  # 3 terms
    Document(id="b", title="toner", text="black"),  # 2 terms
    Document(id="c", title="paper", text="white"),
    Document(id="d", title="paper", text="releases"),
]


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return Catalogue(DOCUMENTS)


def by_term(catalogue: Catalogue, columns: np.ndarray, values: np.ndarray) -> dict[str, float]:
    return {catalogue.vocabulary.terms[c]: float(v) for c, v in zip(columns, values, strict=True)}


def test_bo1_equals_amatis_formula_by_hand() -> None:
    # tf_x = 3 in the feedback documents, F = 4 in a corpus of N = 8: P = .5.
    # w = 3 · log2(1.5 / .5) + log2(1.5) = 3 · 1.58496 + .58496 = 5.33985.
    assert bo1_weights(np.array([3.0]), np.array([4.0]), 8)[0] == pytest.approx(5.33985, abs=1e-5)


def test_counts_and_relevance_model_by_hand(catalogue: Catalogue) -> None:
    found = feedback_counts(catalogue.contents, [0, 1], [3.0, 1.0])
    counts = by_term(catalogue, found.columns, found.counts)
    model = by_term(catalogue, found.columns, found.model)
    assert counts == {"toner": 3.0, "releas": 1.0, "black": 1.0}
    # P(d|q) = 3/4, 1/4. toner: 3/4 · 2/3 + 1/4 · 1/2; releases: 3/4 · 1/3; black: 1/4 · 1/2. They sum to 1.
    assert model == pytest.approx({"toner": 0.625, "releas": 0.25, "black": 0.125})


def test_terms_come_as_words_that_are_indexed_as_the_term(catalogue: Catalogue) -> None:
    terms = FeedbackTerms(catalogue).terms("rm3", ["a", "b"], [3.0, 1.0], count=5)
    assert [term.word for term in terms] == ["toner", "releases", "black"]
    assert [term.weight for term in terms] == pytest.approx([1.0, 0.4, 0.2])
    assert analyze("releases") == ["releas"]
    assert analyze("releas") != ["releas"]


def test_a_document_that_is_not_loaded_takes_no_score_from_its_neighbours(catalogue: Catalogue) -> None:
    feedback = FeedbackTerms(catalogue)
    with_ghost = feedback.terms("rm3", ["ghost", "a", "b"], [9.0, 3.0, 1.0], count=5)
    assert with_ghost == feedback.terms("rm3", ["a", "b"], [3.0, 1.0], count=5)


def test_terms_of_the_query_and_rare_terms_can_be_left_out(catalogue: Catalogue) -> None:
    feedback = FeedbackTerms(catalogue)
    assert "toner" not in {
        term.word for term in feedback.terms("bo1", ["a", "b"], [1.0, 1.0], count=5, without="toners")
    }
    kept = feedback.terms("bo1", ["a", "b"], [1.0, 1.0], count=5, documents_min=2)
    assert {term.word for term in kept} == {"toner", "releases"}
    assert [t.word for t in feedback.terms("bo1", ["a"], [1.0], count=5, keep=lambda word: word == "toner")] == [
        "toner"
    ]


def test_no_documents_give_no_terms(catalogue: Catalogue) -> None:
    assert FeedbackTerms(catalogue).terms("bo1", [], [], count=5) == []
    assert FeedbackTerms(catalogue).terms("bo1", ["ghost"], [1.0], count=5) == []


def test_the_query_keeps_weight_one_beside_its_feedback(catalogue: Catalogue) -> None:
    terms = FeedbackTerms(catalogue).terms("rm3", ["a", "b"], [3.0, 1.0], count=2)
    assert own_query("ink", boosted(terms, weight=0.5)) == {
        "bool": {
            "should": [
                {"match": {"contents": {"query": "ink"}}},
                {"match": {"contents": {"query": "toner", "boost": 0.5}}},
                {"match": {"contents": {"query": "releases", "boost": 0.2}}},
            ]
        }
    }
    assert own_query("ink", boosted(terms, weight=0)) == {"match": {"contents": {"query": "ink"}}}
