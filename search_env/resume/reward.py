"""The ReSuMe reward of one summary, r(s, d) = StructureReward(s) + r_φ(Δ), for a product and the queries it answers.

ReSuMe (WWW '26, doi:10.1145/3774904.3792959) rewards a summary for two things. The first is retrieval by the queries
that its document answers and not by others, as measured by g, the previous turn's retriever, relative to the document
itself. The second is its form:

    RetScore(x) = Σ_{q ∈ q⁺} S(q, x) / (Σ_{q ∈ q⁺} S(q, x) + Σ_{q ∈ q⁻} S(q, x))                       eq. 4
    Δ           = RetScore(s) − RetScore(d)                                                          eq. 3
    r           = StructureReward(s) + r_φ(Δ)                                                        eq. 2

r_φ is a staircase: −1, −.8, −.6, −.3 for Δ in [−1, −.5), [−.5, −.2), [−.2, −.1), [−.1, 0), and .3, .6, .8, 1 for
[0, .1), [.1, .2), [.2, .5), [.5, 1]. StructureReward is 1 for 64 to 128 tokens of the retriever's tokenizer, .9 for a
little more, .3 for fewer. A text without the format has StructureReward −1 and Δ −1, so r = −2.

Where we differ: S is (1 + cosine) / 2, because with a plain cosine, which may be negative, eq. 4 is unbounded and has
poles. Then nearly every Δ lies in [−.1, .1) and the staircase is a mere sign, so its edges are multiplied by
`edge_scale` (1 is the paper's). "A little more" is up to `tokens_over`, 160 for the paper's band; a longer summary gets
the value of one that is too short. Products are short, so the default band is 12 to 24 tokens, and 30 is a little more.
Without negative queries, eq. 4 is always 1: `negatives = false` (an ablation) takes the mean of S over q⁺ instead. With
`discrete = false`, r_φ is Δ / edge_scale, clipped to [−1, 1].
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Annotated

import msgspec

from streams.descriptions import describe

EDGES = (-0.5, -0.2, -0.1, 0.0, 0.1, 0.2, 0.5)
STEPS = (-1.0, -0.8, -0.6, -0.3, 0.3, 0.6, 0.8, 1.0)
WELL_FORMED, SLIGHTLY_OVER, MISSHAPEN = 1.0, 0.9, 0.3
UNFORMATTED = -1.0


class ResumeSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The shape of the reward."""

    edge_scale: Annotated[
        float,
        msgspec.Meta(gt=0, le=10),
        describe(
            "Factor of the paper's bin edges, matched to the spread of Δ. `searchloop alternate` measures it in "
            "each turn."
        ),
    ] = 0.1
    discrete: Annotated[bool, describe("True rewards the bin of Δ. False rewards Δ itself (the paper's ablation).")] = (
        True
    )
    negatives: Annotated[
        bool,
        describe(
            "True compares with queries that the product does not answer. False leaves them out (the paper's ablation)."
        ),
    ] = True
    structure_weight: Annotated[
        float,
        msgspec.Meta(ge=0, le=10),
        describe("Weight of StructureReward, the reward for a summary's length. 0 leaves it out."),
    ] = 1.0
    tokens_low: Annotated[
        int,
        msgspec.Meta(ge=1, le=4096),
        describe("Least length of a summary that gets the full StructureReward, in the retriever's tokens."),
    ] = 12
    tokens_high: Annotated[
        int,
        msgspec.Meta(ge=1, le=4096),
        describe("Largest length of a summary that gets the full StructureReward, in the retriever's tokens."),
    ] = 24
    tokens_over: Annotated[
        int,
        msgspec.Meta(ge=1, le=4096),
        describe('Largest length of a summary that is still "slightly overlength", in the retriever\'s tokens.'),
    ] = 30


def resume_reward(
    *,
    positives: Sequence[float],
    negatives: Sequence[float],
    document_positives: Sequence[float],
    document_negatives: Sequence[float],
    tokens: int,
    settings: ResumeSettings,
) -> tuple[float, dict[str, float]]:
    """Return a well-formed summary's reward, and each part of it by name.

    positives, negatives: cosines of the queries in q⁺ and q⁻ with the summary; document_…: with the document. Each has
    at least one. tokens: the summary's length. Raises ValueError if a cosine is not finite.
    """
    of_summary = retrieval_score(positives, negatives, settings)
    of_document = retrieval_score(document_positives, document_negatives, settings)
    delta = of_summary - of_document
    structure = structure_reward(tokens, settings)
    retrieval = retrieval_reward(delta, settings)
    return settings.structure_weight * structure + retrieval, {
        "structure": structure,
        "retrieval": retrieval,
        "delta": delta,
        "summary_score": of_summary,
        "document_score": of_document,
        "tokens": float(tokens),
        "valid": 1.0,
    }


def unformatted_reward(settings: ResumeSettings) -> tuple[float, dict[str, float]]:
    """Return the reward of a text without the format: StructureReward and Δ are −1 (the paper's rule)."""
    retrieval = STEPS[0]
    reward = settings.structure_weight * UNFORMATTED + retrieval
    return reward, {"structure": UNFORMATTED, "retrieval": retrieval, "delta": -1.0, "valid": 0.0}


def retrieval_score(positives: Sequence[float], negatives: Sequence[float], settings: ResumeSettings) -> float:
    """Return RetScore in [0, 1] from cosines (eq. 4), S = (1 + cosine) / 2; .5 if every S is 0.

    Raises ValueError without positives or negatives, or for a cosine that is not finite.
    """
    if not positives or (settings.negatives and not negatives):
        raise ValueError(f"expected positive and negative queries, got {len(positives)} and {len(negatives)}")
    if not all(map(math.isfinite, (*positives, *negatives))):
        raise ValueError("expected finite cosines; look for damaged weights in the retriever's folder")
    found = math.fsum(map(similarity, positives))
    if not settings.negatives:
        return found / len(positives)
    total = found + math.fsum(map(similarity, negatives))
    return found / total if total > 0 else 0.5


def similarity(cosine: float) -> float:
    """Return a cosine on a scale from 0 to 1; a value that rounding moved outside [−1, 1] is clipped."""
    return (1 + min(max(cosine, -1.0), 1.0)) / 2


def retrieval_reward(delta: float, settings: ResumeSettings) -> float:
    """Return r_φ: the step on which Δ falls; each bin is closed below and open above, as in the paper."""
    if not settings.discrete:
        return min(max(delta / settings.edge_scale, -1.0), 1.0)
    return STEPS[bisect_right([edge * settings.edge_scale for edge in EDGES], delta)]


def structure_reward(tokens: int, settings: ResumeSettings) -> float:
    """Return StructureReward for a summary of this length."""
    if settings.tokens_low <= tokens <= settings.tokens_high:
        return WELL_FORMED
    return SLIGHTLY_OVER if settings.tokens_high < tokens <= settings.tokens_over else MISSHAPEN


def spread_scale(groups: Sequence[Sequence[float]]) -> float:
    """Return the edge scale at which the staircase's middle edge, .2, is a standard deviation of Δ within its group.

    groups: Δ of each candidate, by product. The deviation is taken within a group, because advantages compare there.
    The result is at least .001 and at most 10.
    """
    squares = [(delta - math.fsum(group) / len(group)) ** 2 for group in groups for delta in group]
    deviation = math.sqrt(math.fsum(squares) / len(squares)) if squares else 0.0
    return min(max(deviation / EDGES[5], 0.001), 10.0)
