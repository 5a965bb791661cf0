"""The lag of a reader, in records of a topic."""

from __future__ import annotations

from collections.abc import Sequence

from kafka import KafkaConsumer, TopicPartition

from streams.clients import committed_offsets, connect_admin, partitions_of
from streams.kafka_errors import asked, told
from streams.kafka_settings import KafkaSettings
from streams.records import StageLag
from streams.topics import topic_name

LATEST = -1  # Kafka's own code for a partition's end in ListOffsets.


def end_offsets(settings: KafkaSettings, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
    """Return the offset after the last record of each partition.

    Raises DeliveryError if the cluster does not say.
    """
    admin = connect_admin(settings)
    try:
        wanted = dict.fromkeys(partitions, LATEST)
        found = asked("could not read the end offsets of the topics", lambda: admin.list_partition_offsets(wanted))
        return {item: int(found[item].offset) for item in partitions}
    finally:
        admin.close()


def stage_lags(settings: KafkaSettings, run: str) -> list[StageLag]:
    """Return the lag of the two stages that commit to consumer groups, the generator and the environment."""
    lags = []
    for stage, kind in (("generator", "requests"), ("environment", "generations")):
        topic = topic_name(run, kind)
        ends = end_offsets(settings, partitions_of(settings, [topic]))
        admin = connect_admin(settings)
        try:
            with told(f"could not read the position of the {stage} of run {run!r}"):
                committed = committed_offsets(admin, f"{run}.{stage}")
        finally:
            admin.close()
        behind = sum(end - committed.get(item, 0) for item, end in ends.items())
        lags.append(StageLag(stage=stage, topic=topic, records=behind))
    return lags


def records_behind(consumer: KafkaConsumer, ends: dict[TopicPartition, int]) -> int:
    """Return the number of records between this consumer's positions and the given end offsets.

    Raises DeliveryError if the broker does not give the consumer's position.
    """
    with told("could not read a consumer's position"):
        return sum(max(end - consumer.position(item), 0) for item, end in ends.items())
