"""Admission: the learner grants requests, so that no group is too old when the learner takes it.

Only the learner knows how many groups wait for it. It grants requests offset by offset, in rounds, and takes their
groups round by round. At any time, at most `(staleness_max + 1) · groups` requests are granted but not learned from. A
group is written by a version at least as new as its round. The learner therefore takes it within `staleness_max`
further updates. This holds for any number of partitions, for a slow partition, and for any batch size.

AReaL (arXiv:2505.24298), eq. 3, counts samples since the start: N ≤ (version + η + 1)·B. That bounds staleness only if
every batch is full and groups come in the order of their requests. We differ: we grant requests instead of counting
samples, and hold back the groups of a later round until all earlier groups have come or have ended without a reward.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping

Offsets = dict[int, int]
"""One offset per partition of the requests topic."""


class Admission:
    """The requests that are granted, and those of them that still owe a reward.

    A request is *granted* once generators may answer it. It is *over* once its reward has come or will never come.
    """

    def __init__(self, *, used: Mapping[int, int], announced: Iterable[Mapping[int, int]] = ()) -> None:
        """used: per partition, the offset below which an earlier learner process used up all requests.

        announced: the grants of all earlier announcements, in order. They restore the rounds after a resume.
        """
        self._over: Offsets = dict(used)
        self._granted: Offsets = dict(used)
        self._rounds: dict[int, tuple[list[int], list[int]]] = {}  # Per partition: the rounds' ends and numbers.
        self._round = 0
        for grants in announced:
            self._begin_round(grants)

    @property
    def granted(self) -> Offsets:
        """Return, per partition, the offset below which requests may be answered."""
        return dict(self._granted)

    @property
    def over(self) -> Offsets:
        """Return, per partition, the offset below which every request has its reward or will never have one."""
        return dict(self._over)

    @property
    def owed(self) -> int:
        """Return the number of granted requests that are not over."""
        return sum(end - self._over.get(partition, 0) for partition, end in self._granted.items())

    def round_of(self, partition: int, offset: int) -> int:
        """Return the round in which a request was granted, or the round after the last if it never was."""
        ends, numbers = self._rounds.get(partition, ((), ()))
        place = bisect_right(ends, offset)
        return numbers[place] if place < len(numbers) else self._round + 1

    def round_owed(self) -> int | None:
        """Return the earliest round with a request that is not over; None if all requests are over."""
        return min(
            (
                self.round_of(partition, self._over.get(partition, 0))
                for partition, end in self._granted.items()
                if self._over.get(partition, 0) < end
            ),
            default=None,
        )

    def arrive(self, partition: int, offset: int) -> None:
        """Record that the reward of a request has come.

        Rewards of one partition come in the order of its requests. So every earlier request of the partition is over,
        too. A reward for a request that was never granted is ignored, because this run did not ask for it.
        """
        if offset < self._granted.get(partition, 0):
            self.end(partition, offset + 1)

    def end(self, partition: int, below: int) -> None:
        """Record that every request of a partition below this offset is over."""
        self._over[partition] = max(self._over.get(partition, 0), below)
        self._granted[partition] = max(self._granted.get(partition, 0), self._over[partition])

    def grant(self, published: Mapping[int, int], *, groups_max: int) -> bool:
        """Grant further requests if there is room, and return whether any was granted.

        published: the end of the requests topic, per partition. Only existing requests are granted, so a request that
        is granted and not over is being answered. groups_max: how many requests may be granted and not over.
        The partition with the fewest such requests comes first; of equals, the one with the fewest grants in all.
        """
        grants = dict(self._granted)
        owed = {partition: grants.get(partition, 0) - self._over.get(partition, 0) for partition in published}
        for _ in range(groups_max - self.owed):
            waiting = [partition for partition, end in published.items() if grants.get(partition, 0) < end]
            if not waiting:
                break
            partition = min(waiting, key=lambda each: (owed[each], grants.get(each, 0), each))
            grants[partition] = grants.get(partition, 0) + 1
            owed[partition] += 1
        return self._begin_round(grants)

    def _begin_round(self, grants: Mapping[int, int]) -> bool:
        further = {partition: end for partition, end in grants.items() if end > self._granted.get(partition, 0)}
        if not further:
            return False
        self._round += 1
        for partition, end in further.items():
            ends, numbers = self._rounds.setdefault(partition, ([], []))
            ends.append(end)
            numbers.append(self._round)
            self._granted[partition] = end
        return True
