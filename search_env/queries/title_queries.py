"""Queries made of title words, like the most frequent queries of a log, and titles that are similar to them.

Judged lists ask for values that titles lack; a model that learns only from them learns that titles mean nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from search_env.catalogue.analysis import surface_tokens

WORDS_MAX = 3  # In a query.
TITLES_MIN = 5  # A word in fewer titles is a model number, which nobody types.
TITLES_SHARE = 6  # A word in more than one of six titles distinguishes no products.
TRIES = 4  # For each rival that is wanted.


class TitleQueries:
    """Draws queries from titles, which are identified by their places."""

    def __init__(self, titles: Sequence[str]) -> None:
        self._words = [surface_tokens(title) for title in titles]
        self._holders: dict[str, list[int]] = defaultdict(list)
        for place, words in enumerate(self._words):
            for word in dict.fromkeys(words):
                self._holders[word].append(place)

    def draw(self, place: int, random: np.random.Generator) -> list[str]:
        """Return one to three consecutive words of a title; none if it has no word that is typed."""
        typed = [word for word in self._words[place] if self._is_typed(word)]
        return consecutive(typed, random) if typed else []

    def near(self, words: Sequence[str], random: np.random.Generator) -> int:
        """Return a random title among those with one of several words; any title if there is only one word."""
        if len(words) == 1:
            return _below(len(self._words), random)
        sharing = self._holders[words[_below(len(words), random)]]
        return sharing[_below(len(sharing), random)]

    def rivals(self, words: Sequence[str], count: int, random: np.random.Generator) -> list[int]:
        """Return up to `count` different titles that are similar and lack one of the words."""
        found: dict[int, None] = {}
        for _ in range(TRIES * count):
            place = self.near(words, random)
            if not {*words} <= {*self._words[place]}:
                found[place] = None
            if len(found) == count:
                break
        return list(found)

    def _is_typed(self, word: str) -> bool:
        return is_typed(word, len(self._holders[word]), len(self._words))


def is_typed(word: str, holders: int, of: int) -> bool:
    """Return whether shoppers search for a word that `holders` of `of` documents have."""
    return TITLES_MIN <= holders <= of // TITLES_SHARE and not word.isdigit()


def consecutive(words: Sequence[str], random: np.random.Generator) -> list[str]:
    """Return one to three consecutive words of these."""
    length = min(_below(WORDS_MAX, random) + 1, len(words))
    start = _below(len(words) - length + 1, random)
    return list(words[start : start + length])


def _below(limit: int, random: np.random.Generator) -> int:
    return int(random.integers(limit))
