"""The flow of a run's requests: how far they are published and how far they are over, polled over one connection.

The learner uses it to grant requests. A broker that is down for a while changes nothing: the last answer stands.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from kafka import TopicPartition
from kafka.errors import AuthorizationError, KafkaError

from streams.clients import EARLIEST, connect_admin
from streams.errors import DeliveryError
from streams.kafka_settings import KafkaSettings
from streams.lag import LATEST
from streams.topics import topic_name

log = logging.getLogger(__name__)

Offsets = dict[int, int]
"""One offset per partition."""

PARTITIONED = ("requests", "generations", "rewards")  # A group keeps its partition's number through all three.


def lies_within(offsets: Mapping[int, int], ends: Mapping[int, int]) -> bool:
    """Return whether all of these offsets of the requests topic lie within the log; ends: the log's end offsets.

    Only requests that exist can be used up or granted, so an announcement with higher offsets is not ours. A reader
    that believed it would publish requests without end, skip some, or wait forever for some. `ends` must be asked for
    after the announcement was read.
    """
    return all(0 <= offset <= ends.get(partition, -1) for partition, offset in offsets.items())


class RunFlow:
    """The requests, generations and rewards of one run; use it as a context manager."""

    def __init__(self, settings: KafkaSettings, run: str) -> None:
        self._run = run
        self._topics = {kind: topic_name(run, kind) for kind in PARTITIONED}
        self._admin = connect_admin(settings)
        self._published: Offsets = {}

    def __enter__(self) -> RunFlow:
        return self

    def __exit__(self, *_: object) -> None:
        self._admin.close()

    def published(self) -> Offsets:
        """Return, per partition, the end of the requests topic, after all three topics have that partition.

        If somebody added a partition to the requests, it is first added to the other two topics, because the workers
        that answer its requests need it. Raises DeliveryError, with the command to run, if this client may not add it.
        """
        try:
            counts = self._counts()
            self._widen(counts)
            self._published = self._ends("requests", range(counts["requests"]), LATEST)
        except AuthorizationError as error:
            raise self._refused(error) from error
        except KafkaError as error:
            log.warning("the end of the requests is unknown now, so the last known end is used: %s", error)
        return dict(self._published)

    def over(self, read: Mapping[int, int]) -> Offsets:
        """Return, per partition of the requests topic, the offset below which no reward is still on its way.

        read: the next offset of the rewards topic that the caller reads, per partition.
        The order of the questions is the proof. Every request below the generator's committed offset has been answered
        or buried. Its generations lie below the end of the generations, which is asked for next. If the environment has
        committed that end, their rewards lie below the end of the rewards, which is asked for last. The caller has read
        those. The result is empty if one of these conditions does not hold.
        """
        try:
            partitions = range(self._counts()["requests"])
            generated = self._committed("generator", "requests")
            generations = self._ends("generations", partitions, LATEST)
            first = self._ends("generations", partitions, EARLIEST)
            scored = self._committed("environment", "generations")
            rewards = self._ends("rewards", partitions, LATEST)
        except AuthorizationError as error:
            raise self._refused(error) from error
        except KafkaError as error:
            log.warning("the requests that are over are unknown now: %s", error)
            return {}
        return {
            partition: generated[partition]
            for partition in partitions
            if partition in generated
            and scored.get(partition, first[partition]) >= generations[partition]
            and read.get(partition, 0) >= rewards[partition]
        }

    def _counts(self) -> dict[str, int]:
        found = {
            item["name"]: len(item["partitions"]) for item in self._admin.describe_topics([*self._topics.values()])
        }
        return {kind: found[name] for kind, name in self._topics.items()}

    def _widen(self, counts: Mapping[str, int]) -> None:
        narrow = {self._topics[kind]: counts["requests"] for kind in PARTITIONED if counts[kind] < counts["requests"]}
        if narrow:
            log.warning("adding partitions, as the requests have: %s", narrow)
            self._admin.create_partitions(narrow)

    def _ends(self, kind: str, partitions: Iterable[int], where: int) -> Offsets:
        wanted = [TopicPartition(self._topics[kind], partition) for partition in partitions]
        found = self._admin.list_partition_offsets(dict.fromkeys(wanted, where))
        return {item.partition: int(found[item].offset) for item in wanted}

    def _committed(self, stage: str, kind: str) -> Offsets:
        group = f"{self._run}.{stage}"
        found = self._admin.list_group_offsets({group: None}).get(group, {})
        return {
            item.partition: int(committed.offset)
            for item, committed in found.items()
            if item.topic == self._topics[kind] and committed.offset >= 0
        }

    def _refused(self, error: KafkaError) -> DeliveryError:
        return DeliveryError(
            f"run {self._run!r}: the learner must be allowed to describe {', '.join(self._topics.values())} and the "
            f"groups {self._run}.generator and {self._run}.environment, and to add partitions ({error}). Allow it, or "
            "give all three topics the same number of partitions with kafka-topics --alter --partitions N"
        )
