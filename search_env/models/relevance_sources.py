"""The sources that a relevance model learns from, and the weight of each.

The base trees learn from the catalogue: structured matches, title queries, and a cross-encoder's scores. A small forest
of its own learns from people: judgments and clicks (see `judged_forest`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from streams.descriptions import describe

Floats = npt.NDArray[np.float32]
Weight = Annotated[float, msgspec.Meta(ge=0, le=100)]


class SourceSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Weights of the relevance model's sources: each is the weight of a source's pairs in training. 0 leaves it out."""

    structured: Annotated[
        Weight, describe("Weight of structured matches: queries made of attributes, whose matches are known.")
    ] = 1.0
    titles: Annotated[
        Weight, describe("Weight of title queries, graded by the field in which a document has all words.")
    ] = 1.0
    cross_encoder: Annotated[
        Weight,
        describe(
            "Weight of the scores of the index's cross-encoder, which `searchloop alternate` or a ReLSum run trains."
        ),
    ] = 0.0
    cross_encoder_queries: Annotated[
        int,
        msgspec.Meta(ge=1, le=100_000),
        describe("Number of training queries whose best 20 documents of BM25 the cross-encoder scores."),
    ] = 300
    judgments: Annotated[
        Weight, describe("Weight of judgments (`searchloop relevance --queries --qrels`), in the forest of people.")
    ] = 1.0
    clicks: Annotated[
        Weight, describe("Weight of clicks (`searchloop relevance --traffic RUN`), in the forest of people.")
    ] = 1.0
    click_position_exponent: Annotated[
        float,
        msgspec.Meta(ge=0, le=5),
        describe(
            "Exponent η of the probability rank^−η that a rank is examined. It is used only if the traffic shows too "
            "few documents at several ranks to estimate that probability."
        ),
    ] = 1.0
    folds: Annotated[
        int,
        msgspec.Meta(ge=2, le=50),
        describe(
            "Number of folds of queries. Each query is scored by trees that saw no judgment or click of its fold."
        ),
    ] = 10
    fold_seed: Annotated[int, msgspec.Meta(ge=0), describe("Seed of the assignment of queries to folds.")] = 0
    forest_catalogue: Annotated[
        Weight,
        describe(
            "Weight of pairs from the catalogue in the forest of people, all together, for a weight of 1 of what "
            "people say. The forest learns from them to leave the base's scores as they are."
        ),
    ] = 1.0
    forest_trees: Annotated[
        int, msgspec.Meta(ge=1, le=5_000), describe("Number of trees in the forest of people, for each fold.")
    ] = 60
    forest_leaves: Annotated[
        int, msgspec.Meta(ge=2, le=1_024), describe("Largest number of leaves of such a tree.")
    ] = 7
    forest_learning_rate: Annotated[
        float, msgspec.Meta(gt=0, le=1), describe("Share of such a tree's correction that is added.")
    ] = 0.05
    forest_leaf_documents_min: Annotated[
        int, msgspec.Meta(ge=1), describe("Least number of training pairs in a leaf of such a tree.")
    ] = 20


class Block(NamedTuple):
    """The pairs of one query: [n, F] features, [n] labels in [0, 1], and their weight: [n], or one for all."""

    features: Floats
    labels: Floats
    weight: float | Floats = 1.0


class QueryBlock(NamedTuple):
    """The pairs of one query, with its text."""

    query: str
    block: Block


def weights_of(blocks: Sequence[Block]) -> Floats | None:
    """Return [N] weights of all pairs; None if all are 1, which trains the same trees faster."""
    if all(np.all(block.weight == 1.0) for block in blocks):
        return None
    return np.concatenate([np.broadcast_to(np.float32(1) * block.weight, len(block.labels)) for block in blocks])
