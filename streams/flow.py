"""How far a run's requests are published, and how far they are over, asked again and again over one connection.

The learner grants requests by it. A broker that is down for a while changes nothing: the last answer stands.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from kafka import TopicPartition
from kafka.errors import AuthorizationError, KafkaError

from streams.clients import EARLIEST, KafkaSettings, connect_admin
from streams.errors import DeliveryError
from streams.lag import LATEST
from streams.topics import topic_name

log = logging.getLogger(__name__)

Offsets = dict[int, int]
"""An offset for each partition."""

PARTITIONED = ("requests", "generations", "rewards")  # A group keeps its partition's number through all three.


def lies_within(offsets: Mapping[int, int], ends: Mapping[int, int]) -> bool:
    """Return whether all of these offsets of the requests topic lie in the log, which ends where `ends` says.

    An announcement that says otherwise is nobody's: we use up and grant what exists. Believed, it would have requests
    published without end, passed over, or waited for for ever. `ends` must have been asked for after it was read.
    """
    return all(0 <= offset <= ends.get(partition, -1) for partition, offset in offsets.items())


class RunFlow:
    """One run's requests, generations and rewards; use it as a context manager."""

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
        """Return per partition the end of the requests topic, after all three topics have that partition.

        A partition that somebody added to the requests is added to the other two first: who answers a request there
        needs it. Raises DeliveryError, which says what to run, if this client may not do that.
        """
        try:
            counts = self._counts()
            self._widen(counts)
            self._published = self._ends("requests", range(counts["requests"]), LATEST)
        except AuthorizationError as error:
            raise self._refused(error) from error
        except KafkaError as error:
            log.warning("the requests' end is not known now, the last one stands: %s", error)
        return dict(self._published)

    def over(self, read: Mapping[int, int]) -> Offsets:
        """Return per partition of the requests topic the offset below which no reward is on its way any more.

        read: the next offset of the rewards topic that the caller reads, per partition.
        The order of the questions carries the proof: what the generator had committed has been answered or buried; the
        generations of it lie below the end that is asked for next; if the environment has committed that end, their
        rewards lie below the end that is asked for last; and the caller has read those. Empty where that is not so.
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
            log.warning("which requests are over is not known now: %s", error)
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
