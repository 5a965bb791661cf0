"""Ranges of the log: what a partition holds, which offset a time means, and its records from one offset to another."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from kafka import KafkaConsumer, TopicPartition

from streams.clients import EARLIEST, KafkaSettings, connect_admin, connect_consumer
from streams.delivery import DeliverySettings, Received, poll
from streams.errors import DeliveryError
from streams.kafka_errors import asked, told
from streams.lag import LATEST

RECORDS_AT_ONCE = 2000
SILENCE_SECONDS_MAX = 60.0

Bounds = dict[TopicPartition, tuple[int, int]]


def log_bounds(settings: KafkaSettings, partitions: Sequence[TopicPartition]) -> Bounds:
    """Return what each partition holds: its first offset, and the one after its last record.

    Raises DeliveryError if the cluster does not say.
    """
    admin = connect_admin(settings)
    what = "could not ask what the topics hold"
    try:
        first = asked(what, lambda: admin.list_partition_offsets(dict.fromkeys(partitions, EARLIEST)))
        end = asked(what, lambda: admin.list_partition_offsets(dict.fromkeys(partitions, LATEST)))
        return {item: (int(first[item].offset), int(end[item].offset)) for item in partitions}
    finally:
        admin.close()


def read_range(
    settings: KafkaSettings, partition: TopicPartition, first: int, end: int, *, client_id: str
) -> Iterator[Received]:
    """Yield the records of one partition from offset `first` up to, and without, offset `end`, in order.

    Offsets at which there is no record are left out. Raises DeliveryError if `first` has fallen out of retention, or if
    the broker says nothing for `SILENCE_SECONDS_MAX`: the range must lie within the partition's bounds.
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


def _position(consumer: KafkaConsumer, partition: TopicPartition) -> int:
    with told(f"could not ask for a consumer's position in {partition.topic}[{partition.partition}]"):
        return int(consumer.position(partition))
