"""Which part of the loop limits it, from where the time between two updates goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

Bound = Literal["generation-bound", "search-bound", "learner-bound", "unknown"]
BOUNDS: dict[str, Bound] = {
    "generation": "generation-bound",
    "search": "search-bound",
    "learning": "learner-bound",
}
ADVICE = {
    "generation-bound": "More or faster generators would help: run another, or let vLLM write the texts.",
    "search-bound": "More environments or a faster engine would help: add an environment, or look at slow searches.",
    "learner-bound": "A faster learner would help: fewer tokens per update, or a GPU.",
    "unknown": "Two updates are needed to tell.",
}


class LimitVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """What limits a loop. shares: of the time between updates, by stage. says, advice: in a sentence each."""

    bound: Bound
    shares: dict[str, float]
    says: str
    advice: str


def what_limits(seconds: Mapping[str, float]) -> LimitVerdict:
    """Return what limits a loop.

    seconds: by stage ("generation", "search", "learning"), summed over updates: the time in which the update's last
    group waited for this stage. These three add up to the time between updates, so the largest is the critical one.
    """
    known = {stage: max(seconds.get(stage, 0.0), 0.0) for stage in BOUNDS}
    total = sum(known.values())
    if total <= 0:
        return LimitVerdict(bound="unknown", shares={}, says="Nothing limits the loop yet.", advice=ADVICE["unknown"])
    shares = {stage: value / total for stage, value in known.items()}
    stage = max(shares, key=lambda name: shares[name])
    bound = BOUNDS[stage]
    parts = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    return LimitVerdict(
        bound=bound,
        shares=shares,
        says=f"The loop is {bound}: {parts} of the time between updates.",
        advice=ADVICE[bound],
    )
