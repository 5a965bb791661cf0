"""A run's recorded log: from Kafka while Kafka holds it, and from the archive after retention has deleted it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
from kafka import TopicPartition

from storage.archive import ARCHIVE, archived_bounds, archived_partitions, first_archived_at, read_window
from streams.clients import connect_admin, partitions_of
from streams.errors import DeliveryError
from streams.kafka_errors import asked
from streams.kafka_settings import KafkaSettings
from streams.ranges import log_bounds, read_range
from streams.raw_log import RawLog
from streams.record_batches import RawRecord, body_of
from streams.records import Received
from streams.topics import topic_name


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """Records of one partition from offset `first` to `end` (exclusive). kafka_start: Kafka's first offset."""

    topic: str
    partition: int
    first: int
    end: int
    kafka_start: int

    @property
    def archived(self) -> int:
        """Return the number of its offsets that come from the archive."""
        return max(min(self.end, self.kafka_start) - self.first, 0)


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """A window's limit: an offset, a moment, or (neither) the limit of the log."""

    offset: int | None = None
    moment_ms: int | None = None


class Recorded:
    """The recorded log of one run.

    kafka: None reads the archive alone, as after the topics are gone. gaps: treat offsets that no segment holds as
    offsets at which Kafka never had a record.
    """

    def __init__(self, folder: Path, run: str, kafka: KafkaSettings | None, *, gaps: bool = False) -> None:
        self._archive = folder / ARCHIVE
        self._run = run
        self._kafka = kafka
        self._gaps = gaps

    def windows(
        self, kind: str, begin: Limits, end: Limits, *, partition: int | None = None, may_be_empty: bool = False
    ) -> list[Window]:
        """Return the window of each partition of a topic, or of one of them; empty windows are left out.

        Raises DeliveryError if the topic, the partition, or the offsets are not in the log, or if no record lies there
        (unless `may_be_empty`).
        """
        topic = topic_name(self._run, kind)
        bounds = self._bounds(topic)
        if not bounds:
            raise DeliveryError(f"{topic}: expected it in Kafka or in {self._archive}, found it in neither")
        if partition is not None and partition not in bounds:
            raise DeliveryError(f"--partition: {topic} has {', '.join(map(str, bounds))}, got {partition}")
        if len(bounds) > 1 and partition is None and (begin.offset is not None or end.offset is not None):
            raise DeliveryError(f"{topic} has {len(bounds)} partitions: offsets need --partition (or use times)")
        found = []
        for number, (low, start, high) in bounds.items():
            if partition is not None and number != partition:
                continue
            place = (topic, number)
            first = self._offset(place, begin, low, start, high)
            last = self._offset(place, end, high, start, high)
            if first < low or last > high or first > last:
                raise DeliveryError(
                    f"{topic}[{number}]: expected a window within offsets {low}-{high - 1}, got {first}-{last - 1}"
                )
            if last > first:
                found.append(Window(topic=topic, partition=number, first=first, end=last, kafka_start=start))
        if not found and not may_be_empty:
            spans = ", ".join(f"[{number}]@{low}-{high - 1}" for number, (low, _, high) in bounds.items())
            raise DeliveryError(f"{topic}: no record lies in this window; the log has {spans}")
        return found

    def read(self, window: Window) -> Iterator[Received]:
        """Yield the window's records in order, byte for byte.

        Raises StorageError if a segment is missing or damaged.
        """
        yield from self._archived(window)
        if self._kafka is not None and window.end > window.kafka_start:
            yield from read_range(
                self._kafka,
                TopicPartition(window.topic, window.partition),
                max(window.first, window.kafka_start),
                window.end,
                client_id=f"{self._run}-replay",
            )

    def read_raw(self, window: Window, log: RawLog) -> Iterator[RawRecord]:
        """Yield the window's records in order, encoded as in batches. log: reads the part that Kafka still holds.

        Raises StorageError if a segment is missing or damaged.
        """
        for record in self._archived(window):
            body = body_of(record.key, record.value, record.headers)
            yield RawRecord(record.position.offset, record.timestamp_ms, body)
        first = max(window.first, window.kafka_start)
        yield from log.read(TopicPartition(window.topic, window.partition), first, window.end)

    def _archived(self, window: Window) -> Iterator[Received]:
        if window.archived:
            place, end = (window.topic, window.partition), min(window.end, window.kafka_start)
            yield from read_window(self._archive, place, window.first, end, gaps=self._gaps)

    def partitions(self, kind: str) -> int:
        """Return the number of a topic's partitions, as far as Kafka or the archive know."""
        return max(self._bounds(topic_name(self._run, kind)), default=0) + 1

    def _bounds(self, topic: str) -> dict[int, tuple[int, int, int]]:
        """Return, per partition, the first known offset, Kafka's first offset, and the offset after the last record."""
        found: dict[int, tuple[int, int, int]] = {}
        for number in archived_partitions(self._archive, topic):
            low, high = archived_bounds(self._archive, (topic, number)) or (0, 0)
            found[number] = (low, high, high)
        if self._kafka is None:
            return found
        try:
            partitions = partitions_of(self._kafka, [topic])
        except (DeliveryError, KeyError):
            if found:
                return found  # The topic is gone; its archive is not.
            raise
        for item, (start, end) in log_bounds(self._kafka, partitions).items():
            low, _, high = found.get(item.partition, (start, start, start))
            if end < high:  # The topic was made anew after its archive was written: its offsets refer to other records.
                continue
            found[item.partition] = (min(low, start), start, end)
        return dict(sorted(found.items()))

    def _offset(self, place: tuple[str, int], limit: Limits, default: int, start: int, high: int) -> int:
        if limit.offset is not None:
            return limit.offset
        if limit.moment_ms is None:
            return default
        archived = first_archived_at(self._archive, place, limit.moment_ms)
        if archived is not None and archived < start:
            return archived
        if self._kafka is None or start >= high:
            return high if archived is None else archived
        partition = TopicPartition(*place)
        admin = connect_admin(self._kafka)
        try:
            what = f"{place[0]}[{place[1]}]: could not find the offset of a moment"
            wanted = {partition: limit.moment_ms}
            offset = int(asked(what, lambda: admin.list_partition_offsets(wanted))[partition].offset)
        finally:
            admin.close()
        return high if offset < 0 else offset
