"""The measurements of one group from its reward record, as the monitor's windows add them up."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import msgspec

from streams.errors import EventError
from streams.events import Outcome, PolicyRef, Position, Reward

REWARD_MAX = 1e100  # A larger reward is no measurement, and would overflow the sums.
VersionKey = tuple[str, int, int]  # lineage, step, start_ms
_WORD = re.compile(r"\w+")


class Take(msgspec.Struct, frozen=True, kw_only=True):
    """The use of one group in one update. parent_step: the policy's step before it."""

    fate: str
    parent_step: int


class RewardedGroup(msgspec.Struct, kw_only=True):
    """One group as its first reward record describes it. rank: orders records of one group by their place."""

    rank: tuple[int, int, int]
    window: VersionKey
    candidates: int
    scored: int
    failed: int
    valid: int
    unchanged: int
    words: int
    repeated: int
    flat: bool
    mean: float | None
    std: float | None
    takes: dict[PolicyRef, Take] = {}


def measure_group(reward: Reward, position: Position, window: VersionKey) -> RewardedGroup:
    """Return the measurements of the group in one reward record.

    mean, std: over the scored candidates' rewards; std as stddev_pop, None without a scored one. flat: at least two are
    scored, and all are equal. words: the words of the valid answers. repeated: those of them that occur earlier in
    their own answer. Raises EventError for a reward beyond REWARD_MAX.
    """
    values = [outcome.reward for outcome in reward.outcomes if outcome.reward is not None]
    if any(abs(value) > REWARD_MAX for value in values):
        raise EventError(f"expected rewards within {REWARD_MAX:g}")
    mean = mean_of(values)
    std = None if mean is None else math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
    texts = [_words(outcome) for outcome in reward.outcomes if outcome.valid and outcome.status == "scored"]
    raw = [hit.document_id for hit in reward.raw_hits]
    return RewardedGroup(
        rank=(reward.source.offset, position.offset, position.partition),
        window=window,
        candidates=len(reward.outcomes),
        scored=len(values),
        failed=len(reward.outcomes) - len(values),
        valid=sum(outcome.valid and outcome.status == "scored" for outcome in reward.outcomes),
        unchanged=sum(_unchanged(outcome, raw) for outcome in reward.outcomes),
        words=sum(map(len, texts)),
        repeated=sum(len(words) - len(set(words)) for words in texts),
        flat=len(values) >= 2 and max(values) == min(values),
        mean=mean,
        std=std,
    )


def _unchanged(outcome: Outcome, raw: Sequence[str]) -> bool:
    """Return whether a valid answer had no effect: it has no expansion, or finds the same documents as the query."""
    if not (outcome.valid and outcome.status == "scored"):
        return False
    if outcome.summary is not msgspec.UNSET:
        return not outcome.summary
    return not outcome.expansions or [hit.document_id for hit in outcome.hits] == list(raw)


def _words(outcome: Outcome) -> list[str]:
    """Return the words of a valid answer in the form in which it is used: its summary, or its expansions."""
    text = " ".join(outcome.expansions) if outcome.summary is msgspec.UNSET else outcome.summary
    return [word.lower() for word in _WORD.findall(text)]


def mean_of(values: Sequence[float]) -> float | None:
    """Return the mean, summed exactly; None for no values."""
    return math.fsum(values) / len(values) if values else None
