"""The warm-up lessons of a summary policy: a product's values, drawn by the query log without replacement."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import numpy as np

from search_env.summaries.values import ProductValues
from streams.descriptions import describe
from streams.events import Product


class SummaryLessonSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings for lessons that follow the query log."""

    prior: Annotated[
        Literal["counts", "rates"],
        describe(
            'Weight of a value: how often the query log asks for its key in all ("counts"), or per product that '
            'has the key ("rates").'
        ),
    ] = "rates"
    sharpness: Annotated[
        float,
        msgspec.Meta(ge=0, le=20),
        describe(
            "Exponent of the weights with which values are drawn. A large value teaches only the best order, "
            "and groups then lack spread; 0 draws all alike."
        ),
    ] = 1.5


def draw_values(
    values: ProductValues, product: Product, settings: SummaryLessonSettings, random: np.random.Generator
) -> list[int]:
    """Return the numbers (from 1) of all values that the product shows, in the order drawn, by the Gumbel trick."""
    weights = [
        values.rate(key, value) if settings.prior == "rates" else values.counts.get(key, 0) + 0.5
        for key, (_, value) in zip(values.keys(product.document_id), product.values, strict=False)
    ]
    worth = settings.sharpness * np.log(np.array(weights)) + random.gumbel(size=len(weights))
    return [int(place) + 1 for place in np.argsort(-worth, kind="stable")]
