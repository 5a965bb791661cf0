"""Which groups a batch takes: the next ones in the order of their grants, whatever became of them.

Failed and expired groups take their place in a batch and give no gradient, so the same log of one partition always
falls into the same batches. With several partitions groups come in the order of rounds (`learner.admission`), and
within a round as they arrive.
"""

from __future__ import annotations

from collections import deque
from typing import Annotated

import msgspec

from learner.admission import Admission
from streams.events import Position, Reward


class BatchSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How large a batch is and how old its groups may be.

    staleness_max: optimizer steps between the policy that wrote a group and the one that learns from it; 0 is
    on-policy.
    wait_seconds: if every published request is over and no reward has come for this long, a batch that is not full
    goes ahead.
    """

    groups: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 16
    staleness_max: Annotated[int, msgspec.Meta(ge=0, le=64)] = 1
    wait_seconds: Annotated[float, msgspec.Meta(gt=0)] = 30.0
    remembered_groups: Annotated[int, msgspec.Meta(ge=64, le=1_000_000)] = 2048

    @property
    def groups_ahead_max(self) -> int:
        """Return how many groups may be asked for and not learned from yet: (η + 1)·B."""
        return (self.staleness_max + 1) * self.groups


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """The groups of one update, sorted by what can be done with them.

    positions, requests_consumed: where the rewards and requests topics are used up after this batch, per partition.
    recent_groups, low_water: what the assembler remembers after this batch, for its next life.
    """

    fresh: tuple[Reward, ...]
    expired: tuple[str, ...]
    failed: tuple[str, ...]
    positions: dict[int, int]
    requests_consumed: dict[int, int]
    recent_groups: tuple[str, ...] = ()
    low_water: dict[int, int] = {}


class BatchAssembler:
    """Collects rewards, drops what it has seen before, and cuts batches.

    It remembers the ids of the groups it saw last. Before it forgets one it raises the low-water mark of the group's
    partition beyond that group's request: what answers a request below the mark is too old to teach anything. So no
    group can teach twice, however late its record is repeated.
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
        """admission: what was granted; without one (no generator works for this learner) nothing is waited for."""
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
        """Take the next record; None stands for one that was no reward and has gone to the dead letters.

        Of two rewards for one group the first in the log counts: it carries the lowest source offset, because the
        environment emits in input order.
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
            records.pop()  # Of records that are no groups to learn from the last one is enough to move the position.
        records.append((position, reward))

    @property
    def waiting(self) -> int:
        """Return how many groups wait for an update."""
        return len(self._waiting_groups())

    @property
    def full(self) -> bool:
        """Return whether a whole batch is waiting, and no group that comes before it is still owed."""
        owed = self._admission.round_owed()
        ready = sum(owed is None or self._round(reward) <= owed for reward in self._waiting_groups())
        return ready >= self._settings.groups

    @property
    def dry(self) -> bool:
        """Return whether groups are waiting and no granted request owes another one."""
        return self.waiting > 0 and self._admission.round_owed() is None

    @property
    def recent_groups(self) -> tuple[str, ...]:
        """Return the ids of the groups taken last, oldest first, those still waiting not among them."""
        waiting = {reward.group_id for reward in self._waiting_groups()}
        return tuple(group for group in self._recent if group not in waiting)

    @property
    def requests_consumed(self) -> dict[int, int]:
        """Return per partition the offset below which every request is over, and no group of one waits."""
        over, taken = self._admission.over, self._taken
        consumed = {each: max(over.get(each, 0), taken.get(each, 0)) for each in {*over, *taken}}
        for reward in self._waiting_groups():
            source = reward.generation.source
            consumed[source.partition] = min(consumed.get(source.partition, 0), source.offset)
        before = self._requests_consumed
        return {each: max(before.get(each, 0), consumed.get(each, 0)) for each in sorted({*before, *consumed})}

    def take(self, *, step: int) -> Batch:
        """Cut the next batch (as many groups as there are, if not full) for a policy that has made `step` steps."""
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
        """Take the waiting group of the earliest round, and move the positions over what lies before it."""
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
            # Where it lay is not known of a group that an earlier life of the learner took.
            marks = {place.partition: place.offset + 1} if place is not None else self._consumed_before
            for partition, mark in marks.items():
                self._low_water[partition] = max(self._low_water.get(partition, 0), mark)
        self._recent[group] = source
