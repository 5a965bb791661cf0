"""The sources that a relevance model learns from, and the weight of each.

The base trees learn from the catalogue: structured matches, title queries, and a cross-encoder's scores. A small forest
of its own learns from people: judgments and clicks (see `judged_forest`). If these three have a weight of 0, people
alone train the model (see `people_alone`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from search_env.models.clicked_lists import BiasModel
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
    click_model: Annotated[
        BiasModel,
        describe(
            'How people examine a list: "pbm" by rank, "ubm" by rank and the last click above, "dbn" down to the last '
            'click. "none" takes every shown document as examined, so that positions count as relevance.'
        ),
    ] = "pbm"
    click_pair_max: Annotated[
        float,
        msgspec.Meta(ge=0),
        describe("Impressions of one document for one query that one client counts for, at most. 0: no limit."),
    ] = 1.0
    click_lists_max: Annotated[
        float,
        msgspec.Meta(ge=0),
        describe("Lists that one client counts for, at most; more weigh less each. 0: no limit."),
    ] = 200.0
    click_clients: Annotated[
        float,
        msgspec.Meta(gt=0, le=1),
        describe("Share of clients whose clicks train, by a hash. Lists without a client always train."),
    ] = 1.0
    click_negatives: Annotated[
        int,
        msgspec.Meta(ge=0, le=1_000),
        describe(
            "Random documents that count as not relevant for each clicked query, if clicks or judgments alone train "
            "the model. A list shows only what the search found already."
        ),
    ] = 10
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


def is_alone(sources: SourceSettings) -> bool:
    """Return whether people alone train the model: every source from the catalogue has a weight of 0."""
    return not (sources.structured or sources.titles or sources.cross_encoder)


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
