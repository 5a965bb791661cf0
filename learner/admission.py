"""Which requests may be answered now: the learner grants them, so that no group is too old when its turn comes.

The learner alone knows how many groups wait for it. It grants requests offset by offset, in rounds, never more than
`(staleness_max + 1) · groups` that are answered but not learned from, and it takes their groups round by round. So a
group, written by a version that is at least as new as its round, comes up within `staleness_max` further updates,
whatever the number of partitions, however slow one of them is, and however large the batches are.

AReaL (arXiv:2505.24298), eq. 3, counts samples since the start: N ≤ (version + η + 1)·B. That bounds staleness while
every batch is full and groups come in the order in which they were asked for. We grant instead of counting, and hold
back groups of a later round until those of the earlier ones have come or have ended without a reward.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping

Offsets = dict[int, int]
"""An offset for each partition of the requests topic."""


class Admission:
    """The requests that are granted, and which of them still owe a reward.

    A request is *granted* once generators may answer it, and *over* once its reward has come or never will.
    """

    def __init__(self, *, used: Mapping[int, int], announced: Iterable[Mapping[int, int]] = ()) -> None:
        """used: per partition the offset below which an earlier life of the learner used everything up.

        announced: the grants of all earlier announcements, in their order: their rounds are known again after a resume.
        """
        self._over: Offsets = dict(used)
        self._granted: Offsets = dict(used)
        self._rounds: dict[int, tuple[list[int], list[int]]] = {}  # Per partition: ends of rounds, and their numbers.
        self._round = 0
        for grants in announced:
            self._begin_round(grants)

    @property
    def granted(self) -> Offsets:
        """Return per partition the offset below which requests may be answered."""
        return dict(self._granted)

    @property
    def over(self) -> Offsets:
        """Return per partition the offset below which every request has its reward, or never will have one."""
        return dict(self._over)

    @property
    def owed(self) -> int:
        """Return how many granted requests are not over."""
        return sum(end - self._over.get(partition, 0) for partition, end in self._granted.items())

    def round_of(self, partition: int, offset: int) -> int:
        """Return the round in which a request was granted; one that never was counts to the round after the last."""
        ends, numbers = self._rounds.get(partition, ((), ()))
        place = bisect_right(ends, offset)
        return numbers[place] if place < len(numbers) else self._round + 1

    def round_owed(self) -> int | None:
        """Return the earliest round of which a request is not over; None if all are."""
        return min(
            (
                self.round_of(partition, self._over.get(partition, 0))
                for partition, end in self._granted.items()
                if self._over.get(partition, 0) < end
            ),
            default=None,
        )

    def arrive(self, partition: int, offset: int) -> None:
        """Note that the reward of a request has come.

        One partition's rewards come in the order of its requests. So it also says that those before it, which have
        none, never will. One that was never granted says nothing: its reward is not of our making.
        """
        if offset < self._granted.get(partition, 0):
            self.end(partition, offset + 1)

    def end(self, partition: int, below: int) -> None:
        """Note that every request of a partition below this offset is over."""
        self._over[partition] = max(self._over.get(partition, 0), below)
        self._granted[partition] = max(self._granted.get(partition, 0), self._over[partition])

    def grant(self, published: Mapping[int, int], *, groups_max: int) -> bool:
        """Grant further requests, if there is room, and return whether any was granted.

        published: per partition the end of the requests topic: only what exists is granted, so a request that is
        granted and not over is being answered. groups_max: how many requests may be granted and not over.
        The partition with the fewest of them comes first, and of equals the one that was granted the fewest in all.
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
