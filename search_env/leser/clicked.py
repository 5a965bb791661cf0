"""LESER's environment without a relevance model: people's clicks reward each text.

A group is *open* while it waits for people. Servers show its candidates' results, each with a logged probability
(`search_env.serving.candidates`), and the joiner says what people did (`streams.traffic_events.ImpressionOutcome`). The
group *closes* when every candidate and the raw results were seen often enough, or when its time is over; then it gets
its reward (`streams.click_rewards`). A candidate that was not seen often enough is `failed`.

The environment keeps nothing that the log does not hold. After a crash the same groups are opened again, and the
outcomes since each group was written are read again. This module does not know Kafka.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from search_env.environments import Input, Inputs, Rejected, ScoringEnvironment
from search_env.leser.expansions import ExpansionSettings, ParsedExpansions, choices_of, parse_expansions
from search_env.leser.reward import invalid_reward
from search_env.serving.candidates import OpenGroup, offer, withdraw, withdraw_past
from streams.click_rewards import (
    RAW,
    ClickRewardSettings,
    ClickTally,
    SeenGroup,
    choices_of_group,
    click_reward,
    ids_sha256,
)
from streams.clock import now_ms
from streams.events import ClickEvidence, Generation, Outcome, Position, Reward
from streams.traffic_events import ImpressionOutcome
from streams.utility import UtilitySettings

CLOCKS_MS = 60_000  # By so much may the clocks of a generator and of a joiner differ.
PAUSE_SECONDS = 0.2


class OutcomeLog(Protocol):
    """The outcomes of a live run's impressions, as they come."""

    def since(self, at_ms: int) -> dict[int, int]:
        """Read again from this time on, if it is past already; return the first offset of each partition."""

    def read(self) -> list[tuple[Position, ImpressionOutcome]]:
        """Return the next outcomes, in order within each partition; none if there are no more now."""

    def read_to(self) -> dict[int, int]:
        """Return the next offset of each partition."""


class _Waiting(NamedTuple):
    """A group that waits for people. names: the choice of each candidate.

    begins, ends: per partition of the outcomes, the first offset that counts, and the offset after the last that was
    read since the group was opened.
    """

    inputs: Input
    texts: list[ParsedExpansions | Rejected]
    names: list[str | None]
    offered: OpenGroup
    begins: dict[int, int]
    ends: dict[int, int]
    tally: ClickTally


class ClickedEnvironment(ScoringEnvironment):
    """Scores groups by what people do with their results; `open` takes groups, and `closed` returns finished ones."""

    def __init__(
        self,
        outcomes: OutcomeLog,
        folder: Path,
        *,
        run: str,
        index: str,
        settings: ClickRewardSettings,
        utility: UtilitySettings,
        expansions: ExpansionSettings,
        clock_ms: Callable[[], int] = now_ms,
    ) -> None:
        """outcomes, folder: of the live run; servers look for open groups in the folder. run: the training run.

        index: the index version that people must have searched.
        """
        super().__init__(
            index=index,
            relevance_model=f"clicks of {settings.live}",
            reward_sha256=clicked_sha256(settings, utility, expansions),
        )
        self.settings = settings
        self._outcomes = outcomes
        self._folder = folder
        self._run = run
        self._utility = utility
        self._expansions = expansions
        self._clock_ms = clock_ms
        self._open: dict[Position, _Waiting] = {}
        self._by_choice: dict[str, _Waiting] = {}
        self._counted = 0
        withdraw_past(folder, run, at_ms=clock_ms())

    @property
    def counted(self) -> int:
        """Return the number of impressions that counted so far, so that a worker sees people come."""
        return self._counted

    @property
    def open_groups(self) -> int:
        """Return the number of groups that wait."""
        return len(self._open)

    @property
    def room(self) -> int:
        """Return how many more groups may be opened."""
        return max(self.settings.open_max - len(self._open), 0)

    def open(self, inputs: Inputs) -> None:
        """Open groups: from now on, people see their candidates. A group that is open already stays as it is."""
        for each in inputs:
            if each[1] not in self._open:
                self._open[each[1]] = waiting = self._opened(each)
                self._by_choice.update(dict.fromkeys(waiting.offered.choices, waiting))

    def closed(self) -> list[Reward]:
        """Read what people did since the last call, and return the rewards of the groups that closed by it."""
        for position, outcome in self._outcomes.read():
            self._count(position, outcome)
        ends = self._outcomes.read_to()
        now = self._clock_ms()
        rewards = []
        for source, waiting in list(self._open.items()):
            # After a seek back for a later group, what this one has read already stays read.
            waiting.ends.update({each: max(end, waiting.ends.get(each, 0)) for each, end in ends.items()})
            over = not waiting.offered.choices or now >= waiting.offered.until_ms
            if over or waiting.tally.seen().is_closed(self.settings):
                rewards.append(self._reward(waiting))
                self._forget(source)
                withdraw(self._folder, waiting.offered.group_id)
        return rewards

    def drop(self, lost: Callable[[Position], bool]) -> None:
        """Forget open groups whose partition another worker has now; it opens them again, with what was counted."""
        for source in [each for each in self._open if lost(each)]:
            self._forget(source)

    def score_many(self, inputs: Inputs) -> list[Reward]:
        """Return one reward for each group, in order, when all of them have closed."""
        self.open(inputs)
        found: dict[Position, Reward] = {}
        while len(found) < len({source for _, source, _ in inputs}):
            closed = self.closed()
            found |= {reward.source: reward for reward in closed}
            if not closed:
                time.sleep(PAUSE_SECONDS)
        return [found[source] for _, source, _ in inputs]

    def readable(self, generation: Generation) -> list[bool]:
        """Return, for each candidate, whether it is a list of expansions within the caps."""
        return [isinstance(text, ParsedExpansions) for text in self._parsed(generation)]

    def _parsed(self, generation: Generation) -> list[ParsedExpansions | Rejected]:
        choices = choices_of(generation.request.context)
        return [parse_expansions(each.text, self._expansions, choices) for each in generation.completions]

    def _opened(self, inputs: Input) -> _Waiting:
        generation = inputs[0]
        texts = self._parsed(generation)
        names = choices_of_group(
            generation.group_id, [None if isinstance(text, Rejected) else text.expansions for text in texts]
        )
        now = self._clock_ms()
        group = OpenGroup(
            group_id=generation.group_id,
            run=self._run,
            query=generation.request.query,
            index=self.index,
            choices={
                name: text.expansions
                for name, text in zip(names, texts, strict=True)
                if name and isinstance(text, ParsedExpansions)
            },
            since_ms=now,
            until_ms=now + round(1000 * self.settings.wait_seconds),
        )
        # Nobody saw the group before it was written: everything that people did with it lies behind that time.
        begins = self._outcomes.since(generation.made_at_ms - CLOCKS_MS)
        tally = ClickTally(group.choices, index=self.index, settings=self.settings, utility=self._utility)
        offered = offer(self._folder, group) if group.choices else group
        return _Waiting(inputs, texts, names, offered, begins, dict(begins), tally)

    def _count(self, position: Position, outcome: ImpressionOutcome) -> None:
        """Give an outcome to every open group that was offered at its search."""
        groups = {id(group): group for name in outcome.impression.offered if (group := self._by_choice.get(name))}
        for group in groups.values():
            if position.offset >= group.begins.get(position.partition, 0):
                self._counted += group.tally.add(outcome)

    def _forget(self, source: Position) -> None:
        waiting = self._open.pop(source)
        for name in waiting.offered.choices:
            self._by_choice.pop(name, None)

    def _reward(self, waiting: _Waiting) -> Reward:
        seen = waiting.tally.seen()
        evidence = ClickEvidence(
            live=self.settings.live,
            ranges={each: (first, waiting.ends[each]) for each, first in sorted(waiting.begins.items())},
            counted=len(seen.counted),
            sha256=ids_sha256(seen.counted),
        )
        outcomes = outcomes_of(waiting.texts, waiting.names, seen, self.settings)
        return msgspec.structs.replace(self.reward(waiting.inputs, outcomes), clicks=evidence)


def outcomes_of(
    texts: Iterable[ParsedExpansions | Rejected],
    names: Iterable[str | None],
    seen: SeenGroup,
    settings: ClickRewardSettings,
) -> tuple[Outcome, ...]:
    """Return the outcome of each candidate. names: the choice of each, as `choices_of_group` gives it."""
    raw = seen.by_choice[RAW]
    outcomes = []
    for text, name in zip(texts, names, strict=True):
        if isinstance(text, Rejected) or name is None:
            reward, parts = invalid_reward()
            reason = text.reason if isinstance(text, Rejected) else ""
            outcomes.append(Outcome(status="scored", valid=False, reward=reward, components=parts, error=reason))
            continue
        choice = seen.by_choice[name]
        lacking = [
            f"{what} were seen by {each.clients} people"
            for what, each in (("its results", choice), ("the raw results", raw))
            if not each.is_enough(settings)
        ]
        if lacking and len(seen.by_choice) > 1:
            error = f"{' and '.join(dict.fromkeys(lacking))} in time, expected {settings.impressions_min}"
            outcomes.append(Outcome(status="failed", valid=True, expansions=text.expansions, error=error))
            continue
        reward, parts = click_reward(choice, raw, settings)
        outcomes.append(
            Outcome(status="scored", valid=True, expansions=text.expansions, reward=reward, components=parts)
        )
    return tuple(outcomes)


def clicked_sha256(settings: ClickRewardSettings, utility: UtilitySettings, expansions: ExpansionSettings) -> str:
    """Return the hash of everything on which a reward depends, beside what people did."""
    return hashlib.sha256(msgspec.json.encode([settings, utility, expansions], order="deterministic")).hexdigest()
