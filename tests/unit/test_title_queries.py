"""Queries of titles' words, on a shelf of titles worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from search_env.queries.title_queries import TITLES_MIN, WORDS_MAX, TitleQueries

# "mouse" and "gaming" stand in five titles of sixty each, "usb" in sixty, "x1" in one.
TITLES = [
    *[f"Gaming Mouse {number} USB" for number in range(3)],
    *[f"Office Mouse {number} USB" for number in range(2)],
    *[f"Gaming Chair {number} USB" for number in range(2)],
    "Laptop X1 USB",
    *[f"Lamp{number} USB" for number in range(52)],
]


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(3)


def test_only_words_of_several_titles_but_not_of_most_are_typed_in_their_order(random: np.random.Generator) -> None:
    drawn = [TitleQueries(TITLES).draw(0, random) for _ in range(100)]
    assert {tuple(words) for words in drawn} == {("gaming",), ("mouse",), ("gaming", "mouse")}
    assert TitleQueries(TITLES).draw(7, random) == []
    assert sum("Mouse" in title for title in TITLES) == TITLES_MIN


def test_no_query_is_longer_than_a_searcher_types(random: np.random.Generator) -> None:
    long = TitleQueries([*["red blue green black white"] * TITLES_MIN, *["lamp"] * 40])
    assert {len(long.draw(0, random)) for _ in range(100)} == set(range(1, WORDS_MAX + 1))


def test_rivals_have_one_of_several_words_and_lack_another(random: np.random.Generator) -> None:
    queries = TitleQueries(TITLES)
    for _ in range(20):
        rivals = queries.rivals(["gaming", "mouse"], 4, random)
        assert set(rivals) <= {3, 4, 5, 6}
        assert len(set(rivals)) == len(rivals) > 0
    assert 0 not in queries.rivals(["mouse"], 40, random)


def test_where_every_title_has_the_words_there_is_no_rival(random: np.random.Generator) -> None:
    assert TitleQueries(["red lamp"] * 8).rivals(["red", "lamp"], 3, random) == []
