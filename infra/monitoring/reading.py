"""Reading without a gap from a consumer that may drop records: what is missing is asked for again.

faust-streaming 0.15.3 drops what it has fetched before its tables are recovered, and then goes back to the committed
offsets; aiokafka 0.14.0 does not go back to an offset of 0. So the first records of a partition were lost in one start
of ten. A record that does not follow the one before it is therefore not taken, and the partition is sought back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

Partition = tuple[str, int]
SEEKS_MAX = 5


class Reading:
    """How far each partition was taken without a gap."""

    def __init__(self, starts: Mapping[Partition, int]) -> None:
        """starts: each partition's first offset."""
        self._next = dict(starts)
        self._seen = dict(starts)
        self._seeks: Counter[Partition] = Counter()

    def take(self, partition: Partition, offset: int) -> bool:
        """Return whether to take this record: it is the next one, or it was asked for in vain what lies before it."""
        expected = self._next.get(partition, offset)
        if offset < expected or (offset > expected and self._seeks[partition] < SEEKS_MAX):
            return False
        self._next[partition] = offset + 1
        self._seeks[partition] = 0
        return True

    def overdue(self, ends: Mapping[Partition, int]) -> dict[Partition, int]:
        """Return where to seek: each partition that has more to read, and brought nothing since the last call.

        ends: the log's end as far as it is known. After `SEEKS_MAX` times in a row the records are taken to be gone, as
        retention takes them, and the next one that comes is taken.
        """
        found = {}
        for partition, offset in self._next.items():
            if ends.get(partition, 0) > offset and self._seen[partition] == offset:
                self._seeks[partition] += 1
                found[partition] = offset
            self._seen[partition] = offset
        return found
