"""Ranges of the log: a partition's bounds, the offset of a time, and the records between two offsets."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from kafka import KafkaConsumer, TopicPartition

from streams.clients import EARLIEST, connect_admin, connect_consumer, partitions_of
from streams.codec import decode
from streams.delivery import DeliverySettings, poll
from streams.errors import DeliveryError, EventError
from streams.events import Position, Reward
from streams.kafka_errors import asked, told
from streams.kafka_settings import KafkaSettings
from streams.lag import LATEST
from streams.records import Received
from streams.topics import BY_EVENT, topic_name

E = TypeVar("E")

RECORDS_AT_ONCE = 2000
SILENCE_SECONDS_MAX = 60.0

Bounds = dict[TopicPartition, tuple[int, int]]


def log_bounds(settings: KafkaSettings, partitions: Sequence[TopicPartition]) -> Bounds:
    """Return the bounds of each partition: its first offset, and the offset after its last record.

    Raises DeliveryError if the cluster does not say.
    """
    admin = connect_admin(settings)
    what = "could not read the bounds of the topics"
    try:
        first = asked(what, lambda: admin.list_partition_offsets(dict.fromkeys(partitions, EARLIEST)))
        end = asked(what, lambda: admin.list_partition_offsets(dict.fromkeys(partitions, LATEST)))
        return {item: (int(first[item].offset), int(end[item].offset)) for item in partitions}
    finally:
        admin.close()


def requests_end(settings: KafkaSettings, run: str) -> dict[int, int]:
    """Return, per partition of a run's requests, the offset after the last record. Raises DeliveryError as above."""
    bounds = log_bounds(settings, partitions_of(settings, [topic_name(run, "requests")]))
    return {item.partition: end for item, (_, end) in bounds.items()}


def read_range(
    settings: KafkaSettings, partition: TopicPartition, first: int, end: int, *, client_id: str
) -> Iterator[Received]:
    """Yield the records of one partition from offset `first` to offset `end` (exclusive), in order.

    Offsets without a record are skipped. Raises DeliveryError if `first` has fallen out of retention, or if the broker
    is silent for `SILENCE_SECONDS_MAX`. So the range must lie within the partition's bounds.
    """
    if first >= end:
        return
    delivery = DeliverySettings()
    consumer = connect_consumer(settings, {partition: first}, client_id=client_id, records_max=RECORDS_AT_ONCE)
    try:
        heard = time.monotonic()
        while _position(consumer, partition) < end:
            records = poll(consumer, delivery, records_max=RECORDS_AT_ONCE)
            if records:
                heard = time.monotonic()
            elif time.monotonic() - heard > SILENCE_SECONDS_MAX:
                at = _position(consumer, partition)
                raise DeliveryError(
                    f"{partition.topic}[{partition.partition}]@{at}: expected records up to {end}, got none for "
                    f"{SILENCE_SECONDS_MAX:g} s; look at the broker with: searchloop status"
                )
            for record in records:
                if record.position.offset >= end:
                    return
                yield record
    finally:
        consumer.close()


class RecordReader:
    """Reads single records anywhere in the log over one connection; not meant for many consecutive records."""

    def __init__(self, settings: KafkaSettings, *, client_id: str) -> None:
        self._consumer = connect_consumer(settings, {}, client_id=client_id, records_max=1)

    def close(self) -> None:
        """Close the connection."""
        self._consumer.close()

    def read(self, position: Position) -> Received | None:
        """Return the record at this place; None if the log holds none there.

        Raises DeliveryError if the broker is silent for `SILENCE_SECONDS_MAX`.
        """
        item = TopicPartition(position.topic, position.partition)
        (first,), (end,) = (
            find([item]).values() for find in (self._consumer.beginning_offsets, self._consumer.end_offsets)
        )
        if not first <= position.offset < end:
            return None
        self._consumer.assign([item])
        self._consumer.seek(item, position.offset)
        deadline = time.monotonic() + SILENCE_SECONDS_MAX
        while time.monotonic() < deadline:
            for record in poll(self._consumer, DeliverySettings(), records_max=1):
                return record if record.position == position else None
        raise DeliveryError(
            f"{position.topic}[{position.partition}]@{position.offset}: expected a record, the broker said nothing for "
            f"{SILENCE_SECONDS_MAX:g} s; look at it with: searchloop status"
        )


def answered_generations(settings: KafkaSettings, run: str) -> dict[int, int]:
    """Return, per partition, the offset after the last generation that has a reward: an environment continues there.

    Only for an environment whose group has no offsets. The search runs from each partition's end back to the last
    record that is a reward of this run; a partition without one is left out.
    """
    generations = topic_name(run, "generations")
    found: dict[int, int] = {}
    for item, (start, end) in log_bounds(settings, partitions_of(settings, [topic_name(run, "rewards")])).items():
        first = end
        while item.partition not in found and first > start:
            last, first = first, max(start, first - RECORDS_AT_ONCE // 20)
            for record in read_range(settings, item, first, last, client_id=f"{run}-answered"):
                with contextlib.suppress(EventError):
                    event = decode(record.value)
                    if isinstance(event, Reward) and event.source.topic == generations:
                        found[item.partition] = max(found.get(item.partition, 0), event.source.offset + 1)
    return found


def read_events(settings: KafkaSettings, run: str, event: type[E]) -> list[E]:
    """Return every event of a run's topic with one partition, in the log's order; other records are skipped.

    For topics with few records, such as policy versions.
    """
    topic = TopicPartition(topic_name(run, BY_EVENT[event].kind), 0)  # type: ignore[index]
    start, end = log_bounds(settings, [topic])[topic]
    found: list[E] = []
    for record in read_range(settings, topic, start, end, client_id=f"{run}-{topic.topic.rpartition('.')[-1]}"):
        with contextlib.suppress(EventError):
            decoded = decode(record.value)
            if isinstance(decoded, event):
                found.append(decoded)
    return found


def _position(consumer: KafkaConsumer, partition: TopicPartition) -> int:
    with told(f"could not read a consumer's position in {partition.topic}[{partition.partition}]"):
        return int(consumer.position(partition))
