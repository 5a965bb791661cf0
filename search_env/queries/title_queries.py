"""Queries that are words of a title, as most frequent queries of a log are, and the titles that come near.

Judged lists ask for what titles lack; whatever learns from them alone learns that titles mean nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from search_env.catalogue.analysis import surface_tokens

WORDS_MAX = 3  # In a query.
TITLES_MIN = 5  # That have a word which is typed: what fewer have is a model's number.
TITLES_SHARE = 6  # What more than every sixth has tells no product from another.
TRIES = 4  # For each rival that is wanted.


class TitleQueries:
    """Draws queries about titles, which are known by their places."""

    def __init__(self, titles: Sequence[str]) -> None:
        self._words = [surface_tokens(title) for title in titles]
        self._holders: dict[str, list[int]] = defaultdict(list)
        for place, words in enumerate(self._words):
            for word in dict.fromkeys(words):
                self._holders[word].append(place)

    def draw(self, place: int, random: np.random.Generator) -> list[str]:
        """Return one to three words that follow each other in a title, none if it has no word that is typed."""
        typed = [word for word in self._words[place] if self._is_typed(word)]
        return consecutive(typed, random) if typed else []

    def near(self, words: Sequence[str], random: np.random.Generator) -> int:
        """Return a title by chance among those that have one of several words; any title if there is but one word."""
        if len(words) == 1:
            return _below(len(self._words), random)
        sharing = self._holders[words[_below(len(words), random)]]
        return sharing[_below(len(sharing), random)]

    def rivals(self, words: Sequence[str], count: int, random: np.random.Generator) -> list[int]:
        """Return up to `count` different titles that are near and lack one of the words."""
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
    """Return whether a word that so many of all documents have is one that is searched for."""
    return TITLES_MIN <= holders <= of // TITLES_SHARE and not word.isdigit()


def consecutive(words: Sequence[str], random: np.random.Generator) -> list[str]:
    """Return one to three of these words that follow each other."""
    length = min(_below(WORDS_MAX, random) + 1, len(words))
    start = _below(len(words) - length + 1, random)
    return list(words[start : start + length])


def _below(limit: int, random: np.random.Generator) -> int:
    return int(random.integers(limit))
