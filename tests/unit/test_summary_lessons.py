"""The warm-up's answers about products follow the log, as chances."""

from __future__ import annotations

from collections import Counter
from typing import Literal

import numpy as np
import pytest

from search_env.catalogue.corpora import Document
from search_env.catalogue.named_documents import NamedDocuments
from search_env.relsum.lessons import SummaryLessonSettings, draw_values
from search_env.summaries.values import ProductValues

COMMON, RARE = "colour", "voltage"


@pytest.fixture(scope="module")
def values() -> ProductValues:
    """A hundred products have a colour and five a voltage; the log asks six times for the one, four for the other."""
    documents = [
        Document(
            id=str(number),
            title="lamp",
            text="",
            metadata={
                "attributes": {COMMON: f"shade{number % 7}"} | ({RARE: f"{number}00 volt"} if number < 5 else {})
            },
        )
        for number in range(100)
    ]
    return ProductValues(NamedDocuments(documents), {COMMON: 6, RARE: 4})


@pytest.mark.parametrize(("prior", "first"), [("counts", COMMON), ("rates", RARE)])
def test_what_is_drawn_first_is_what_the_prior_prefers(
    values: ProductValues, prior: Literal["counts", "rates"], first: str
) -> None:
    product, keys = values.product("3"), values.keys("3")
    random = np.random.default_rng(0)
    settings = SummaryLessonSettings(prior=prior, sharpness=3.0)
    drawn = [draw_values(values, product, settings, random) for _ in range(200)]
    assert all(sorted(numbers) == list(range(1, len(keys) + 1)) for numbers in drawn)
    firsts = Counter(keys[numbers[0] - 1] for numbers in drawn)
    assert firsts.most_common(1)[0][0] == first
    assert len(firsts) == 2


def test_without_sharpness_every_order_is_as_likely(values: ProductValues) -> None:
    random = np.random.default_rng(0)
    settings = SummaryLessonSettings(sharpness=0.0)
    firsts = Counter(draw_values(values, values.product("3"), settings, random)[0] for _ in range(400))
    assert abs(firsts[1] - 200) < 60  # Six standard deviations.
