"""Which groups a batch takes, and how many requests the generator may be ahead: staleness is bounded at the door.

A batch is the next `groups` groups of the rewards topic, whatever became of them: failed and expired ones take their
place in it and give no gradient. So the same log always falls into the same batches.
"""

from __future__ import annotations

from collections import deque
from typing import Annotated

import msgspec

from streams.events import Position, Reward


class BatchSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How large a batch is and how old its groups may be.

    staleness_max: optimizer steps between the policy that wrote a group and the one that learns from it; 0 is
    on-policy.
    wait_seconds: with no new reward for this long, a batch that is not full goes ahead (a dead-lettered request would
    otherwise hold the loop for ever).
    """

    groups: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 16
    staleness_max: Annotated[int, msgspec.Meta(ge=0, le=64)] = 1
    wait_seconds: Annotated[float, msgspec.Meta(gt=0)] = 30.0
    remembered_groups: Annotated[int, msgspec.Meta(ge=64, le=1_000_000)] = 2048


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """The groups of one update, sorted by what can be done with them.

    positions, requests_consumed: where the rewards and requests topics are used up after this batch, per partition.
    """

    fresh: tuple[Reward, ...]
    expired: tuple[str, ...]
    failed: tuple[str, ...]
    positions: dict[int, int]
    requests_consumed: dict[int, int]


def admitted_requests(
    settings: BatchSettings, *, taken: dict[int, int], consumed: dict[int, int], partitions_total: int
) -> int:
    """Return how many more requests a generator may take now.

    taken: next request offset per partition that this generator owns. consumed: the same, as the newest policy version
    announced it. A generator that owns k of n partitions has k/n of the allowance.

    AReaL (arXiv:2505.24298), eq. 3, counts all samples since the start: N ≤ (version + η + 1)·B. We count requests in
    flight instead, in_flight ≤ (η + 1)·B, which is the same while every batch is full and stays right when one is not.
    """
    in_flight = sum(offset - consumed.get(partition, 0) for partition, offset in taken.items())
    allowance = (settings.staleness_max + 1) * settings.groups
    share = allowance * len(taken) // max(partitions_total, 1)
    return max(share - in_flight, 0)


class BatchAssembler:
    """Collects rewards in log order, drops what it has seen before, and cuts batches."""

    def __init__(
        self,
        settings: BatchSettings,
        *,
        positions: dict[int, int],
        requests_consumed: dict[int, int],
        recent_groups: tuple[str, ...],
    ) -> None:
        self._settings = settings
        self._positions = dict(positions)
        self._requests_consumed = dict(requests_consumed)
        # A repetition that comes after its group was forgotten must be too old to give a gradient again.
        remembered = max(settings.remembered_groups, (settings.staleness_max + 2) * settings.groups)
        self._recent = deque(recent_groups, maxlen=remembered)
        self._seen = set(self._recent)
        self._waiting: deque[tuple[Position, Reward | None]] = deque()
        self._groups_waiting = 0

    def add(self, position: Position, reward: Reward | None) -> None:
        """Take the next record; None stands for one that was no reward and has gone to the dead letters.

        Of two rewards for one group the first in the log counts: it carries the lowest source offset, because the
        environment emits in input order.
        """
        if reward is not None and (reward.group_id in self._seen or reward.generation.request.split != "train"):
            reward = None
        if reward is not None:
            self._remember(reward.group_id)
            self._groups_waiting += 1
        self._waiting.append((position, reward))

    @property
    def full(self) -> bool:
        """Return whether a whole batch is waiting."""
        return self._groups_waiting >= self._settings.groups

    @property
    def empty(self) -> bool:
        """Return whether no group is waiting."""
        return self._groups_waiting == 0

    @property
    def recent_groups(self) -> tuple[str, ...]:
        """Return the ids of the groups taken last, oldest first, those still waiting not among them."""
        waiting = {reward.group_id for _, reward in self._waiting if reward is not None}
        return tuple(group for group in self._recent if group not in waiting)

    def take(self, *, step: int) -> Batch:
        """Cut the next batch (as many groups as there are, if not full) for a policy that has made `step` steps."""
        fresh: list[Reward] = []
        expired: list[str] = []
        failed: list[str] = []
        count = 0
        while self._waiting and count < self._settings.groups:
            position, reward = self._waiting.popleft()
            self._positions[position.partition] = position.offset + 1
            if reward is None:
                continue
            count += 1
            source = reward.generation.source
            self._requests_consumed[source.partition] = max(
                self._requests_consumed.get(source.partition, 0), source.offset + 1
            )
            if sum(outcome.status == "scored" for outcome in reward.outcomes) < 2:
                failed.append(reward.group_id)
            elif step - reward.generation.policy.step > self._settings.staleness_max:
                expired.append(reward.group_id)
            else:
                fresh.append(reward)
        self._groups_waiting -= count
        return Batch(
            fresh=tuple(fresh),
            expired=tuple(expired),
            failed=tuple(failed),
            positions=dict(self._positions),
            requests_consumed=dict(self._requests_consumed),
        )

    def _remember(self, group: str) -> None:
        if len(self._recent) == self._recent.maxlen:
            self._seen.discard(self._recent[0])
        self._recent.append(group)
        self._seen.add(group)
