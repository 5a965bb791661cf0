"""The records of several partitions in the order of their times, as far as that order is known.

A reader that catches up gets one partition's records long before another's. Whoever reasons about time must not see
them so: the newest time of one partition would make the other's records late.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator

from kafka import TopicPartition

from streams.records import Received


class Merger:
    """Holds records back until no partition can bring an earlier one. Within a partition, order stays as it is."""

    def __init__(self) -> None:
        self._held: dict[TopicPartition, deque[Received]] = {}

    def add(self, records: Iterable[Received]) -> None:
        """Take records, in the order of their offsets within each partition."""
        for record in records:
            item = TopicPartition(record.position.topic, record.position.partition)
            self._held.setdefault(item, deque()).append(record)

    def held(self, partition: TopicPartition) -> int:
        """Return the number of records of a partition that are held back."""
        return len(self._held.get(partition, ()))

    def ready(self, behind: Collection[TopicPartition]) -> Iterator[Received]:
        """Yield the records that may go, earliest first; ties are in the order of topic and partition.

        behind: partitions whose log holds records that have not come yet. While one of them has none here, none goes.
        """
        while all(self._held.get(item) for item in behind):
            waiting = [(queue[0].timestamp_ms, item) for item, queue in self._held.items() if queue]
            if not waiting:
                return
            yield self._held[min(waiting)[1]].popleft()
