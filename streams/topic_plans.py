"""The required settings of our topics, and their differences from an existing topic. This module needs no broker.

`infra/DURABILITY.md` gives the reason for each setting and the loss without it.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from kafka import codec

from streams.codec import LETTER_BYTES_MAX, RECORD_BYTES_MAX
from streams.events import DeadLetter
from streams.topics import DERIVED, FOREVER, TOPICS, Topic, topic_name

BATCH_OVERHEAD_BYTES = 64 * 1024  # max.message.bytes also counts a record's key, headers and batch.
# By default Kafka refuses records from more than an hour ahead: a worker with a wrong clock could write nothing.
ANY_TIME = str(2**63 - 1)
# The broker compresses, so that every producer's records are compressed and no client needs a library for it: Python
# reads gzip by itself, but not zstd and lz4. Level 1 shrinks rewards of 12 kB to a third, for 0.13 ms of the broker's
# time.
COMPRESSION = {"compression.type": "gzip", "compression.gzip.level": "1"}
READABLE = {"uncompressed": True, "none": True, "producer": True, "gzip": True}
CHAIN = ("requests", "generations", "rewards")  # A group keeps its partition number in all three topics.


class TopicPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A topic with the settings that we would give it.

    partitioned: it has the run's number of partitions; the others have exactly one, which gives a total order.
    retention_ms: FOREVER (-1), or the minimum time that records stay; ignored if `compacted`.
    compacted: only the last record of each key stays; the log of a run must never be compacted.
    """

    name: str
    kind: str
    partitions: int
    partitioned: bool
    replication: int
    bytes_max: int
    retention_ms: int = FOREVER
    compacted: bool = False

    @property
    def insync_min(self) -> int:
        """Return the number of replicas that acknowledge a record together: the majority, see `insync_min`."""
        return insync_min(self.replication)

    @property
    def message_bytes_max(self) -> int:
        """Return the maximum size of a batch of one record."""
        return self.bytes_max + BATCH_OVERHEAD_BYTES

    def required(self) -> dict[str, str]:
        """Return the settings that the contract needs, whatever the cluster's own defaults are."""
        kept = {"cleanup.policy": "compact"}
        if not self.compacted:
            kept = {
                "cleanup.policy": "delete",
                "retention.ms": str(self.retention_ms),
                "retention.bytes": "-1",
            }
        return kept | {
            "min.insync.replicas": str(self.insync_min),
            "unclean.leader.election.enable": "false",
            "max.message.bytes": str(self.message_bytes_max),
            "message.timestamp.after.max.ms": ANY_TIME,
        }


class FoundTopic(msgspec.Struct, frozen=True, kw_only=True):
    """A topic as the cluster shows it.

    topic_id: Kafka's own id; a topic that was deleted and made anew has another one. replication: of the partition with
    the fewest replicas. used: the topic holds records or once held some. settings: all of them, including defaults.
    """

    name: str
    topic_id: str
    partitions: int
    replication: int
    used: bool
    settings: dict[str, str]


def insync_min(replication: int) -> int:
    """Return min.insync.replicas for a number of replicas: 1 for 1, 2 for 2 and 3, 3 for 4 and 5, 4 for 6 and 7.

    It is the majority. With more than one replica, an acknowledged record therefore lies on at least two brokers. With
    two replicas, all writing stops while one broker is away: workers wait, and nothing is lost. If writing must
    continue, use three replicas.
    """
    return replication // 2 + 1


def plan_topics(
    run: str, *, partitions: int, replication: int, retention_ms: int | None = None, live_ms: int | None = None
) -> list[TopicPlan]:
    """Return the topics of a run's log.

    retention_ms: replaces each topic's own retention. live_ms: else replaces that of the topics of live traffic.
    """

    def kept_ms(topic: Topic) -> int:
        if retention_ms is not None:
            return retention_ms
        return live_ms if topic.live and live_ms is not None else topic.retention_ms

    return [
        TopicPlan(
            name=topic_name(run, topic.kind),
            kind=topic.kind,
            partitions=partitions if topic.partitioned else 1,
            partitioned=topic.partitioned,
            replication=replication,
            bytes_max=LETTER_BYTES_MAX if topic.event is DeadLetter else RECORD_BYTES_MAX,
            retention_ms=kept_ms(topic),
        )
        for topic in TOPICS
    ]


def plan_derived_topics(run: str, *, replication: int) -> list[TopicPlan]:
    """Return the topics for the data derived from a run's log."""
    return [
        TopicPlan(
            name=topic_name(run, topic.kind),
            kind=topic.kind,
            partitions=1,
            partitioned=False,
            replication=replication,
            bytes_max=RECORD_BYTES_MAX,
            compacted=True,
        )
        for topic in DERIVED
    ]


def differences(plan: TopicPlan, found: FoundTopic, *, ours: bool) -> list[str]:
    """Return the unsuitable settings of an existing topic, one line each: setting, expected value, found value.

    ours: the topic is known to be this run's. Its owner may have added partitions or reduced its storage; then only
    differences that would break the run are reported.
    """
    kept, said = found.settings, []

    def differs(setting: str, expected: object, came: object) -> None:
        said.append(f"{found.name}: {setting}: expected {expected}, found {came}")

    if not plan.partitioned and found.partitions != 1:
        differs("partitions", "1, because its records are in total order", found.partitions)
    if plan.partitioned and found.partitions < plan.partitions and not ours:
        differs("partitions", f"{plan.partitions} (kafka.partitions)", found.partitions)
    policy = kept.get("cleanup.policy", "delete")
    if ("compact" in policy) != plan.compacted:
        differs("cleanup.policy", "compact" if plan.compacted else "delete, because every record counts", policy)
    if _number(kept, "max.message.bytes", plan.message_bytes_max) < plan.message_bytes_max:
        differs("max.message.bytes", f"at least {plan.message_bytes_max}", kept["max.message.bytes"])
    insync = _number(kept, "min.insync.replicas", 1)
    if insync > found.replication:
        differs("min.insync.replicas", f"at most its {found.replication} replicas, or nothing can be written", insync)
    if not can_read(kept.get("compression.type", "producer")):
        readable = "gzip or producer, because this Python has no library for it"
        differs("compression.type", readable, kept["compression.type"])
    if ours:
        return said
    if found.replication < plan.replication:
        differs("replication", f"{plan.replication} (kafka.replication)", found.replication)
    if insync < insync_min(found.replication):
        differs("min.insync.replicas", f"{insync_min(found.replication)} of {found.replication} replicas", insync)
    if kept.get("unclean.leader.election.enable", "false") != "false":
        differs("unclean.leader.election.enable", "false, because it loses acknowledged records", "true")
    if not plan.compacted:
        retention = _number(kept, "retention.ms", FOREVER)
        if retention != FOREVER and (plan.retention_ms == FOREVER or retention < plan.retention_ms):
            forever = "-1 (forever)" if plan.retention_ms == FOREVER else f"at least {plan.retention_ms}, or -1"
            differs("retention.ms", forever, retention)
        if (size := _number(kept, "retention.bytes", -1)) != -1:
            differs("retention.bytes", "-1, because only time may delete a record", size)
    return said


def unequal_partitions(found: Sequence[tuple[TopicPlan, FoundTopic]], *, ours: bool) -> list[str]:
    """Return a line if topics that must have the same number of partitions do not.

    ours: True compares only the topics in which a group keeps its partition; the run's owner may have added partitions
    to them.
    """
    counts = {
        topic.name: topic.partitions for plan, topic in found if plan.partitioned and (not ours or plan.kind in CHAIN)
    }
    if len(set(counts.values())) <= 1:
        return []
    most = max(counts.values())
    fewer = ", ".join(name for name, count in counts.items() if count < most)
    listed = ", ".join(f"{name} {count}" for name, count in counts.items())
    return [f"partitions: expected the same number in each, found {listed}; add partitions to {fewer} up to {most}"]


def can_read(compression: str) -> bool:
    """Return whether records in a topic with this `compression.type` can be read here."""
    if compression in READABLE:
        return True
    libraries = {"lz4": codec.has_lz4, "snappy": codec.has_snappy, "zstd": codec.has_zstd}
    return compression in libraries and bool(libraries[compression]())


def _number(settings: dict[str, str], name: str, default: int) -> int:
    return int(settings.get(name, default))
