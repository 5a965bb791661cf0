"""The choice among what a query may be answered with, with its probability.

Off-policy evaluation needs the probability of each choice, and no choice may have less than a floor: an estimate
divides by it. The choices are the raw results and the policy versions whose answers are ready. P(choice) =
floor + (1 − n · floor) · softmax(score / temperature), where n · floor = epsilon.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import NamedTuple

RAW = ""
"""The choice of the raw results; the other choices are the names of policy versions."""


class Chosen(NamedTuple):
    """A choice, the probability of it, and of every choice; None and empty if nothing was chosen."""

    policy: str
    propensity: float | None
    offered: dict[str, float]


def probabilities(scores: Mapping[str, float], *, epsilon: float, temperature: float) -> dict[str, float]:
    """Return the probability of each choice, in the order of its name; they sum to 1, and none is below epsilon / n.

    epsilon: from 0 to 1. temperature: above 0; the lower, the surer the best one.
    Raises ValueError without a choice, for a score that is no finite number, or for parameters out of range.
    """
    if not scores:
        raise ValueError("expected at least one choice, got none")
    if not 0 <= epsilon <= 1 or not temperature > 0:
        raise ValueError(f"expected epsilon from 0 to 1 and a temperature above 0, got {epsilon} and {temperature}")
    if wrong := [name for name, score in scores.items() if not math.isfinite(score)]:
        raise ValueError(f"expected finite scores, got {scores[wrong[0]]} for {wrong[0]!r}")
    names = sorted(scores)
    best = max(scores.values())
    weights = [math.exp((scores[name] - best) / temperature) for name in names]
    total, floor = math.fsum(weights), epsilon / len(names)
    return {name: floor + (1 - epsilon) * weight / total for name, weight in zip(names, weights, strict=True)}


def hashed_share(purpose: str, name: str) -> float:
    """Return a number in [0, 1) that is a function of a name, and independent between purposes."""
    return int.from_bytes(hashlib.sha256((purpose + name).encode()).digest()[:7], "big") / 2**56


def choose(impression_id: str, offered: Mapping[str, float]) -> Chosen:
    """Return the choice for an impression: a function of its id, drawn with the given probabilities."""
    draw = hashed_share("", impression_id)
    names = sorted(offered)
    reached = 0.0
    for name in names:
        reached += offered[name]
        if draw < reached:
            return Chosen(name, offered[name], dict(offered))
    last = max(names, key=lambda name: offered[name])  # Rounding: the sum may stay below the draw.
    return Chosen(last, offered[last], dict(offered))
