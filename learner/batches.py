"""Batches: each takes the next groups in the order of their grants, whatever their outcome.

Failed and expired groups keep their place in a batch and give no gradient. The same log of one partition is therefore
always cut into the same batches. With several partitions, groups come in the order of rounds (`learner.admission`), and
within a round in the order of arrival.
"""

from __future__ import annotations

from collections import deque
from typing import Annotated

import msgspec

from learner.admission import Admission
from streams.descriptions import describe
from streams.events import Position, Reward


class BatchSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The size of a batch and the greatest age of its groups."""

    groups: Annotated[
        int,
        msgspec.Meta(ge=1, le=4096),
        describe(
            "Groups in a batch, which is one update (B). More groups give a steadier and slower update.", common=True
        ),
    ] = 16
    staleness_max: Annotated[
        int,
        msgspec.Meta(ge=0, le=64),
        describe(
            "Optimizer steps between the policy that wrote a group and the policy that learns from it. "
            "A larger value keeps workers busier; 0 is on-policy.",
            common=True,
        ),
    ] = 1
    wait_seconds: Annotated[
        float,
        msgspec.Meta(gt=0),
        describe(
            "Time without a reward after which a batch that is not full is used, if every published request is over."
        ),
    ] = 30.0
    remembered_groups: Annotated[
        int,
        msgspec.Meta(ge=64, le=1_000_000),
        describe(
            "Ids of past groups that are kept to recognize repeated ones. At least all groups ahead and one "
            "batch are kept."
        ),
    ] = 2048

    @property
    def groups_ahead_max(self) -> int:
        """Return how many groups may be requested but not yet learned from: (η + 1)·B."""
        return (self.staleness_max + 1) * self.groups


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """The groups of one update, sorted by how the update can use them.

    positions, requests_consumed: per partition, the offset below which the rewards topic and the requests topic are
    used up after this batch.
    recent_groups, low_water: the assembler's memory after this batch, for its next process.
    """

    fresh: tuple[Reward, ...]
    expired: tuple[str, ...]
    failed: tuple[str, ...]
    positions: dict[int, int]
    requests_consumed: dict[int, int]
    recent_groups: tuple[str, ...] = ()
    low_water: dict[int, int] = {}


class BatchAssembler:
    """Collects rewards, drops repeated ones, and cuts batches.

    It remembers the ids of the latest groups. Before it forgets a group, it raises the low-water mark of the group's
    partition beyond the group's request. A group below the mark is too old to teach. So no group can teach twice,
    however late its record is repeated.
    """

    def __init__(
        self,
        settings: BatchSettings,
        *,
        positions: dict[int, int],
        requests_consumed: dict[int, int],
        recent_groups: tuple[str, ...],
        low_water: dict[int, int] | None = None,
        admission: Admission | None = None,
    ) -> None:
        """admission: the granted requests; without it, the assembler waits for none, as no generator serves it."""
        self._settings = settings
        self._positions = dict(positions)
        self._requests_consumed = dict(requests_consumed)
        self._consumed_before = dict(requests_consumed)
        self._taken = dict(requests_consumed)
        self._low_water = dict(low_water or {})
        self._admission = admission or Admission(used=requests_consumed)
        self._remembered_max = max(settings.remembered_groups, settings.groups_ahead_max + settings.groups)
        self._recent: dict[str, Position | None] = dict.fromkeys(recent_groups)
        self._waiting: dict[int, deque[tuple[Position, Reward | None]]] = {}

    def add(self, position: Position, reward: Reward | None) -> None:
        """Take the next record; None means that the record was not a reward and went to the dead letters.

        Of two rewards for one group, the first in the log counts. It has the lowest source offset, because the
        environment emits rewards in input order.
        """
        records = self._waiting.setdefault(position.partition, deque())
        if reward is not None:
            source = reward.generation.source
            self._admission.arrive(source.partition, source.offset)
            if reward.group_id in self._recent or reward.generation.request.split != "train":
                reward = None
            else:
                self._remember(reward.group_id, source)
        if reward is None and records and records[-1][1] is None:
            records.pop()  # The last of several records without a group is enough to move the position.
        records.append((position, reward))

    @property
    def waiting(self) -> int:
        """Return the number of groups that wait for an update."""
        return len(self._waiting_groups())

    @property
    def full(self) -> bool:
        """Return whether a whole batch is waiting and no earlier group is still owed."""
        owed = self._admission.round_owed()
        ready = sum(owed is None or self._round(reward) <= owed for reward in self._waiting_groups())
        return ready >= self._settings.groups

    @property
    def dry(self) -> bool:
        """Return whether groups are waiting and no granted request owes another one."""
        return self.waiting > 0 and self._admission.round_owed() is None

    @property
    def recent_groups(self) -> tuple[str, ...]:
        """Return the ids of the groups taken last, oldest first, without the groups that still wait."""
        waiting = {reward.group_id for reward in self._waiting_groups()}
        return tuple(group for group in self._recent if group not in waiting)

    @property
    def requests_consumed(self) -> dict[int, int]:
        """Return, per partition, the offset below which every request is over and no group waits."""
        over, taken = self._admission.over, self._taken
        consumed = {each: max(over.get(each, 0), taken.get(each, 0)) for each in {*over, *taken}}
        for reward in self._waiting_groups():
            source = reward.generation.source
            consumed[source.partition] = min(consumed.get(source.partition, 0), source.offset)
        before = self._requests_consumed
        return {each: max(before.get(each, 0), consumed.get(each, 0)) for each in sorted({*before, *consumed})}

    def take(self, *, step: int) -> Batch:
        """Cut the next batch for a policy that has made `step` steps; if it is not full, take all groups there are."""
        fresh: list[Reward] = []
        expired: list[str] = []
        failed: list[str] = []
        for _ in range(self._settings.groups):
            reward = self._next()
            if reward is None:
                break
            source = reward.generation.source
            self._taken[source.partition] = max(self._taken.get(source.partition, 0), source.offset + 1)
            if sum(outcome.status == "scored" for outcome in reward.outcomes) < 2:
                failed.append(reward.group_id)
            elif self._is_old(reward) or step - reward.generation.policy.step > self._settings.staleness_max:
                expired.append(reward.group_id)
            else:
                fresh.append(reward)
        self._requests_consumed = self.requests_consumed
        return Batch(
            fresh=tuple(fresh),
            expired=tuple(expired),
            failed=tuple(failed),
            positions=dict(self._positions),
            requests_consumed=self.requests_consumed,
            recent_groups=self.recent_groups,
            low_water=dict(self._low_water),
        )

    def _next(self) -> Reward | None:
        """Take the waiting group of the earliest round, and move the positions past the records before it."""
        heads = []
        for partition, records in self._waiting.items():
            first = next((reward for _, reward in records if reward is not None), None)
            if first is not None:
                heads.append((self._round(first), partition))
        if not heads:
            return None
        _, partition = min(heads)
        while True:
            position, reward = self._waiting[partition].popleft()
            self._positions[partition] = position.offset + 1
            if reward is not None:
                return reward

    def _waiting_groups(self) -> list[Reward]:
        return [reward for records in self._waiting.values() for _, reward in records if reward is not None]

    def _round(self, reward: Reward) -> int:
        return self._admission.round_of(reward.generation.source.partition, reward.generation.source.offset)

    def _is_old(self, reward: Reward) -> bool:
        source = reward.generation.source
        return source.offset < self._low_water.get(source.partition, 0)

    def _remember(self, group: str, source: Position) -> None:
        if len(self._recent) >= self._remembered_max:
            forgotten = next(iter(self._recent))
            place = self._recent.pop(forgotten)
            # The source of a group that an earlier learner process took is unknown.
            marks = {place.partition: place.offset + 1} if place is not None else self._consumed_before
            for partition, mark in marks.items():
                self._low_water[partition] = max(self._low_water.get(partition, 0), mark)
        self._recent[group] = source
