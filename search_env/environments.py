"""Environments: each takes groups of generated texts and gives one reward event per group.

`Environment` is the interface that the worker needs. `ScoringEnvironment` is the common base of the recipes'
environments: it makes the reward events, so that a recipe decides only about outcomes. `ShuffledRewards` is the control
that must not gain.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import msgspec

from streams.events import Generation, Hit, Outcome, Position, Reward

Input = tuple[Generation, Position, str]
"""One group to score: the generation, its place in the log, and the sha256 of its bytes."""

Inputs = Sequence[Input]


class Rejected(NamedTuple):
    """The reason why a generated text could not be read, in one line."""

    reason: str


class Environment(Protocol):
    """The interface that the worker needs: rewards for groups, or failures for groups that could not be scored."""

    def score_many(self, inputs: Inputs) -> list[Reward]:
        """Return one reward for each group, in order."""

    def failed_many(self, inputs: Inputs, *, error: str) -> list[Reward]:
        """Return one reward for each group whose candidates are all `failed`."""


@runtime_checkable
class WaitingEnvironment(Environment, Protocol):
    """An environment whose groups stay open until enough has come in for their rewards, many at once."""

    @property
    def counted(self) -> int:
        """Return the number of things that have come in; it only grows."""

    @property
    def room(self) -> int:
        """Return how many more groups may be opened."""

    @property
    def open_groups(self) -> int:
        """Return the number of groups that wait."""

    def open(self, inputs: Inputs) -> None:
        """Open groups; one that is open already stays as it is."""

    def closed(self) -> list[Reward]:
        """Return the rewards of the groups that have closed since the last call."""

    def drop(self, lost: Callable[[Position], bool]) -> None:
        """Forget the open groups at these places."""


class ScoringEnvironment(ABC):
    """An environment whose rewards all name one index, one model and one formula."""

    def __init__(self, *, index: str, relevance_model: str, reward_sha256: str) -> None:
        """index: the version that was searched or read. relevance_model: the version of the model that scored.

        reward_sha256: hash of everything else on which a reward depends: formula, caps and settings.
        """
        self.index = index
        self.relevance_model = relevance_model
        self.reward_sha256 = reward_sha256

    @abstractmethod
    def score_many(self, inputs: Inputs) -> list[Reward]:
        """Return one reward for each group, in order."""

    @abstractmethod
    def readable(self, generation: Generation) -> Iterable[bool]:
        """Return, for each candidate, whether its text can be read; failed outcomes also state this."""

    def failed_many(self, inputs: Inputs, *, error: str) -> list[Reward]:
        """Return one reward for each group whose candidates are all `failed`."""
        return [self.reward(each, all_failed(self.readable(each[0]), error)) for each in inputs]

    def reward(
        self, inputs: Input, outcomes: Sequence[Outcome], *, raw_hits: tuple[Hit, ...] = (), search_body: str = ""
    ) -> Reward:
        """Return the event of one group. The same log gives the same event, byte for byte."""
        generation, source, content_sha256 = inputs
        return Reward(
            group_id=generation.group_id,
            generation=generation,
            source=source,
            content_sha256=content_sha256,
            outcomes=tuple(outcomes),
            index=self.index,
            relevance_model=self.relevance_model,
            reward_sha256=self.reward_sha256,
            raw_hits=raw_hits,
            search_body=search_body,
            made_at_ms=generation.made_at_ms,  # Not the clock: a replay must give the same bytes.
        )


class ShuffledRewards:
    """Another environment with each group's rewards permuted among its own scored candidates.

    Means, spread and validity of the rewards stay, but a reward no longer belongs to its candidate. The permutation is
    drawn from the group's id, so a replay draws the same one.
    """

    def __init__(self, environment: Environment) -> None:
        self._environment = environment

    def score_many(self, inputs: Inputs) -> list[Reward]:
        """Return the other environment's rewards, shuffled within each group."""
        return [shuffled(reward) for reward in self._environment.score_many(inputs)]

    def failed_many(self, inputs: Inputs, *, error: str) -> list[Reward]:
        """Return the other environment's failures unchanged."""
        return self._environment.failed_many(inputs, error=error)


class ShuffledWaitingRewards(ShuffledRewards):
    """The same control over an environment whose groups wait."""

    def __init__(self, environment: WaitingEnvironment) -> None:
        super().__init__(environment)
        self._waiting = environment

    @property
    def counted(self) -> int:
        """Return the other environment's number."""
        return self._waiting.counted

    @property
    def room(self) -> int:
        """Return the other environment's room."""
        return self._waiting.room

    @property
    def open_groups(self) -> int:
        """Return the other environment's number of open groups."""
        return self._waiting.open_groups

    def open(self, inputs: Inputs) -> None:
        """Open groups in the other environment."""
        self._waiting.open(inputs)

    def closed(self) -> list[Reward]:
        """Return the other environment's rewards, shuffled within each group."""
        return [shuffled(reward) for reward in self._waiting.closed()]

    def drop(self, lost: Callable[[Position], bool]) -> None:
        """Forget open groups of the other environment."""
        self._waiting.drop(lost)


def all_failed(readable: Iterable[bool], error: str) -> tuple[Outcome, ...]:
    """Return a failed outcome for each candidate, all with the same reason."""
    return tuple(Outcome(status="failed", valid=valid, error=error) for valid in readable)


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
