"""Controls that must not gain: an environment whose rewards say nothing about the candidates."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol

import msgspec

from streams.events import Generation, Position, Reward

Inputs = Sequence[tuple[Generation, Position, str]]


class Environment(Protocol):
    """What the worker asks for: rewards for groups, or failures for groups that could not be scored."""

    def score_many(self, generations: Inputs) -> list[Reward]:
        """Return one reward for each group, in order."""

    def failed_many(self, generations: Inputs, *, error: str) -> list[Reward]:
        """Return one reward for each group whose candidates are all `failed`."""


class ShuffledRewards:
    """Another environment with each group's rewards dealt out anew among its own scored candidates.

    Means, spread and validity of the rewards stay; what they say about a candidate goes. The deal is drawn from the
    group's id, so a replay deals the same.
    """

    def __init__(self, environment: Environment) -> None:
        self._environment = environment

    def score_many(self, generations: Inputs) -> list[Reward]:
        """Return the other environment's rewards, shuffled within each group."""
        return [shuffled(reward) for reward in self._environment.score_many(generations)]

    def failed_many(self, generations: Inputs, *, error: str) -> list[Reward]:
        """Return the other environment's failures as they are."""
        return self._environment.failed_many(generations, error=error)


def shuffled(reward: Reward) -> Reward:
    """Return the group's reward with the numbers permuted among the scored candidates, and marked as a control."""
    numbers = [outcome.reward for outcome in reward.outcomes if outcome.status == "scored"]
    random.Random(reward.group_id).shuffle(numbers)
    dealt = iter(numbers)
    outcomes = tuple(
        msgspec.structs.replace(outcome, reward=next(dealt)) if outcome.status == "scored" else outcome
        for outcome in reward.outcomes
    )
    return msgspec.structs.replace(reward, outcomes=outcomes, reward_sha256=f"shuffled-{reward.reward_sha256}")
