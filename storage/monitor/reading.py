"""Reading without gaps from a consumer that may drop records: missing records are requested again.

faust-streaming 0.15.3 drops the records that it fetched before its tables are recovered, and then seeks back to the
committed offsets. aiokafka 0.14.0 cannot seek back to offset 0. The first records of a partition were therefore lost in
one of ten starts. If a record does not follow the previous one, we do not take it, and seek the partition back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

Partition = tuple[str, int]
SEEKS_MAX = 5


class ReadPositions:
    """The position up to which each partition was taken without a gap."""

    def __init__(self, starts: Mapping[Partition, int]) -> None:
        """starts: each partition's first offset."""
        self._next = dict(starts)
        self._seen = dict(starts)
        self._seeks: Counter[Partition] = Counter()

    def take(self, partition: Partition, offset: int) -> bool:
        """Return whether to take this record: it is the next one, or requests for the records before it failed."""
        expected = self._next.get(partition, offset)
        if offset < expected or (offset > expected and self._seeks[partition] < SEEKS_MAX):
            return False
        self._next[partition] = offset + 1
        self._seeks[partition] = 0
        return True

    def overdue(self, ends: Mapping[Partition, int]) -> dict[Partition, int]:
        """Return the offsets to seek to, for each partition with unread records that gave none since the last call.

        ends: the known ends of the log. After `SEEKS_MAX` calls in a row the records count as deleted by retention, and
        the next record that comes is taken.
        """
        found = {}
        for partition, offset in self._next.items():
            if ends.get(partition, 0) > offset and self._seen[partition] == offset:
                self._seeks[partition] += 1
                found[partition] = offset
            self._seen[partition] = offset
        return found
