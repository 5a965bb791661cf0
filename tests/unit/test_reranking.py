"""Reranking, worked by hand: who comes first, who stays behind, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from search_env.catalogue.corpora import Ranking, rank_by_score
from search_env.engine.reranking import ShownTexts, rerank
from search_env.models.crossencoder import CrossEncoderError, ReadTexts

SHOWN = {
    "a": ShownTexts("lamp"),
    "b": ShownTexts("lamp", "red, brass"),
    "c": ShownTexts("lamp", "red"),
    "d": ShownTexts("chair"),
}


def shared_words(readings: Sequence[ReadTexts]) -> npt.NDArray[np.float64]:
    """A fake relevance: the share of the query's words that title and summary hold."""
    texts = [{*title.split(), *summary.replace(",", " ").split()} for _, title, summary in readings]
    asked = [query.split() for query, _, _ in readings]
    return np.array([sum(word in text for word in of) / len(of) for of, text in zip(asked, texts, strict=True)])


def test_the_first_documents_are_ordered_by_probability_and_the_others_follow_as_they_were() -> None:
    found = Ranking(["d", "c", "b", "a"], [9.0, 5.0, 3.0, 2.0])
    [ranking] = rerank(["red brass lamp"], [found], SHOWN, shared_words, depth=3)
    assert ranking.ids == ["b", "c", "d", "a"]
    assert ranking.scores == pytest.approx([2.0, 1 + 2 / 3, 1.0, 1 / 5])
    assert rank_by_score(ranking.ids, ranking.scores) == ranking, "a reader of scores would see another order"


def test_equal_probabilities_are_ordered_by_document_id() -> None:
    found = Ranking(["c", "b", "a"], [3.0, 2.0, 1.0])
    [ranking] = rerank(["lamp"], [found], SHOWN, shared_words, depth=9)
    assert ranking.ids == ["a", "b", "c"]


def test_each_query_is_read_with_its_own_documents() -> None:
    first, second, nothing = rerank(
        ["red", "brass", "void"],
        [Ranking(["a", "c"], [2.0, 1.0]), Ranking(["c", "b"], [2.0, 1.0]), Ranking([], [])],
        SHOWN,
        shared_words,
        depth=2,
    )
    assert (first.ids, second.ids, nothing.ids) == (["c", "a"], ["b", "c"], [])


@pytest.mark.parametrize("wrong", [float("nan"), -0.1, 1.1])
def test_what_is_no_probability_is_refused(wrong: float) -> None:
    with pytest.raises(CrossEncoderError, match=r"probabilities in \[0, 1\]"):
        rerank(["lamp"], [Ranking(["a"], [1.0])], SHOWN, lambda pairs: np.full(len(pairs), wrong), depth=1)
