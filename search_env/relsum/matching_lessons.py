"""Lessons that teach a cross-encoder to match: in each, a product's text does or does not contain a query's words.

Shoppers have two kinds of query: for values that titles lack, made like those of the judged lists, and for words of
titles. Judged lists have no queries of the second kind. A cross-encoder that never saw one learns that titles mean
nothing, and ranks "gaming mouse" by whatever values a summary happens to name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from search_env.catalogue.analysis import surface_tokens
from search_env.catalogue.attributes import document_brand
from search_env.models.crossencoder import product_text
from search_env.models.crossencoder_training import LabelledPair
from search_env.queries.judged_lists import ListSettings
from search_env.queries.title_queries import TitleQueries
from search_env.summaries.reading import SEPARATOR
from search_env.summaries.values import ProductValues
from streams.events import Product


class LessonStage(NamedTuple):
    """A part of the lessons, defined by its difficulty.

    share: share of all lessons. same_key: share of the wrong lessons that ask for another value of a key in the text.
    titled: the values follow their product's title. by_title: share of queries that are words of titles.
    """

    share: float
    same_key: float
    titled: bool
    by_title: float


# Easy stages come first: starting with hard lessons gave a loss of .60 after 460 steps of 16; this gives .18 after 350.
LESSON_STAGES = (
    LessonStage(share=0.4, same_key=0.0, titled=False, by_title=0.0),
    LessonStage(share=0.2, same_key=0.75, titled=False, by_title=0.0),
    LessonStage(share=0.4, same_key=0.5, titled=True, by_title=0.3),
)


class MatchingLessons:
    """Draws lessons about products in sequence from one generator: the same seed gives the same lessons."""

    def __init__(self, values: ProductValues, names: Sequence[str], lists: ListSettings, *, seed: int) -> None:
        """names: the products that may teach. lists: settings of the queries of judged lists."""
        self._values = values
        self._lists = lists
        self._random = np.random.default_rng(seed)
        self._products = [product for product in map(values.product, names) if len(product.values) > 1]
        self._rivals: dict[str, list[str]] = {}  # Values by key.
        for product in self._products:
            for key, (_, value) in zip(values.keys(product.document_id), product.values, strict=True):
                self._rivals.setdefault(key, []).append(value)
        self._spoken = [value for of in self._rivals.values() for value in of]
        self._title_queries = TitleQueries([self._title(product) for product in self._products])

    def stages(self, count: int) -> list[list[LabelledPair]]:
        """Return about `count` lessons, a list for each of `LESSON_STAGES`; no lessons if no product has values."""
        found: list[list[LabelledPair]] = []
        for stage in LESSON_STAGES:
            of_stage = round(stage.share * count) if self._products else 0
            by_title = round(stage.by_title * of_stage)
            found.append([self._by_value(stage) for _ in range(of_stage - by_title)] + self.by_title(by_title))
        return found

    def by_title(self, count: int) -> list[LabelledPair]:
        """Return up to `count` lessons whose queries are one to three consecutive words of a title.

        The text is a title followed by some values: of that product, or of a rival that has one of several words.
        """
        found = []
        for _ in range(count if self._products else 0):
            place = self._draw(len(self._products))
            words = self._title_queries.draw(place, self._random)
            if not words:
                continue
            if self._random.random() < 0.5:
                place = self._title_queries.near(words, self._random)
            text = self._text(self._products[place], self._some_values(self._products[place]), titled=True)
            found.append(LabelledPair(query=" ".join(words), text=text, label=int({*words} <= {*surface_tokens(text)})))
        return found

    def _by_value(self, stage: LessonStage) -> LabelledPair:
        """Return a lesson about one or two values of a product.

        A wrong lesson asks for another value in place of one in the text. In early stages this is a random value. Later
        it is mostly another value of the same key, since the products of a list differ this way.
        """
        random, product = self._random, self._products[self._draw(len(self._products))]
        picked = self._some_values(product)
        said = [product.values[place][1] for place in picked]
        asked = said[: 2 if random.random() < self._lists.second_value_share else 1]
        if random.random() < 0.5:
            key = self._values.keys(product.document_id)[picked[0]]
            others = self._rivals[key] if random.random() < stage.same_key else self._spoken
            asked[0] = others[self._draw(len(others))]
        label = int(set(asked) <= set(said))
        words = [asked[place] for place in random.permutation(len(asked)).tolist()]
        brand = document_brand(self._values.documents[product.document_id])
        if random.random() < self._lists.brand_share and brand:
            words.insert(0, brand)  # Most titles contain it; no lesson is about it.
        text = self._text(product, picked, titled=stage.titled)
        return LabelledPair(query=" ".join(words).lower(), text=text, label=label)

    def _some_values(self, product: Product) -> list[int]:
        """Return the places of up to five values, in the order in which they were drawn."""
        count = min(int(self._random.integers(2, 6)), len(product.values))
        return [int(place) for place in self._random.choice(len(product.values), size=count, replace=False)]

    def _text(self, product: Product, picked: Sequence[int], *, titled: bool) -> str:
        said = [product.values[place][1] for place in picked]
        text = SEPARATOR.join(said[place] for place in self._random.permutation(len(said)).tolist())
        return product_text(self._title(product), text) if titled else text

    def _title(self, product: Product) -> str:
        return self._values.documents[product.document_id].title

    def _draw(self, below: int) -> int:
        return int(self._random.integers(below))
