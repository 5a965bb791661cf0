"""The ReLSum reward of one summary, and two alternative rewards by rank.

ReLSum (arXiv:2508.08404), Reward: r = −|r(q, [t; s]) − l|, the distance between the label l and a frozen
cross-encoder's score of query and title with summary. The scores must be on the label's scale, hence the calibration.

Where we differ: several queries ask for a product, and one summary must serve them all. The reward of a summary is
therefore the mean over up to `queries_max` labeled queries of the product (1 is the paper's pair). The absolute error
and the ranking can disagree: a summary that lifts every score alike has a lower error and ranks no better. So `kind`
offers two rewards that depend on the product's place among the others of the query's list, each with its reference
text:

    reciprocal_rank    1 / (1 + others that score higher + ½ · those that score the same)
    list_likelihood    log softmax over the list of logits, at the product

Both are for relevant products. For an irrelevant product, the same formula with the roles exchanged would reward a
summary that says nothing, so these two kinds leave such pairs out. Every kind subtracts a cost per token; 0 is the
paper's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

import msgspec

from streams.descriptions import describe

Kind = Literal["error", "reciprocal_rank", "list_likelihood"]


class RelsumSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The kind of the reward and what it counts."""

    kind: Annotated[
        Kind,
        describe(
            'Formula of the reward: "error" (the paper), "reciprocal_rank", or "list_likelihood". The last two '
            "use the product's place in the query's list."
        ),
    ] = "error"
    queries_max: Annotated[
        int,
        msgspec.Meta(ge=1, le=64),
        describe("Largest number of a product's labeled queries that score one group. 1 is the paper."),
    ] = 1
    token_cost: Annotated[
        float,
        msgspec.Meta(ge=0, le=1),
        describe("Reward that each token of a summary costs. A larger cost gives shorter summaries; 0 is the paper."),
    ] = 0.0


class Scored(NamedTuple):
    """One query's score of one summary.

    logit, probability: of the product with the summary, before and after calibration. label: 0 or 1. others: logits of
    the query's irrelevant products, each with its reference text.
    """

    logit: float
    probability: float
    label: int
    others: Sequence[float]


def relsum_reward(scored: Sequence[Scored], tokens: int, settings: RelsumSettings) -> tuple[float, dict[str, float]]:
    """Return a summary's reward and its parts by name: error, reciprocal_rank, list_likelihood, probability.

    scored: at least one query; for a reward by rank, only relevant ones. tokens: the summary's length.
    """
    ranked = [each for each in scored if each.label > 0]
    parts = {"error": -math.fsum(abs(each.probability - each.label) for each in scored) / len(scored)}
    parts["probability"] = math.fsum(each.probability for each in scored) / len(scored)
    if ranked:
        parts["reciprocal_rank"] = math.fsum(map(reciprocal_rank, ranked)) / len(ranked)
        parts["list_likelihood"] = math.fsum(map(list_likelihood, ranked)) / len(ranked)
    return parts[settings.kind] - settings.token_cost * tokens, parts


def reciprocal_rank(scored: Scored) -> float:
    """Return 1 / rank of the product among the others; a tie counts half a place."""
    above = sum(other > scored.logit for other in scored.others)
    beside = sum(other == scored.logit for other in scored.others)
    return 1 / (1 + above + 0.5 * beside)


def list_likelihood(scored: Scored) -> float:
    """Return the log-probability of the product under a softmax over its logit and the others'."""
    highest = max(scored.logit, *scored.others) if scored.others else scored.logit
    total = math.fsum(math.exp(each - highest) for each in (scored.logit, *scored.others))
    return scored.logit - highest - math.log(total)
