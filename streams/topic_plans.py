"""What a topic of ours must be like, and what differs in one that is there already. Knows no broker.

Why each setting is what it is, and what is lost without it, stands in `infra/DURABILITY.md`.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from kafka import codec

from streams.codec import LETTER_BYTES_MAX, RECORD_BYTES_MAX
from streams.events import DeadLetter
from streams.topics import DERIVED, FOREVER, TOPICS, topic_name

BATCH_OVERHEAD_BYTES = 64 * 1024  # max.message.bytes counts a record's key, headers and batch, too.
# Kafka refuses records from more than an hour ahead by default: a worker with a wrong clock could write nothing.
ANY_TIME = str(2**63 - 1)
# The broker compresses, so that every producer's records are, and no client needs a library for it: Python reads gzip
# by itself, zstd and lz4 it does not. Level 1 makes rewards of 12 kB a third as large, for .13 ms of the broker's time.
COMPRESSION = {"compression.type": "gzip", "compression.gzip.level": "1"}
READABLE = {"uncompressed": True, "none": True, "producer": True, "gzip": True}
CHAIN = ("requests", "generations", "rewards")  # A group keeps its partition number from the first to the last.


class TopicPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A topic as we would make it.

    partitioned: it has the run's number of partitions; the others have exactly one, by which they are in total order.
    retention_ms: FOREVER (-1), or how long records stay at least; not looked at where `compacted`.
    compacted: of the records of one key the last one stays; the log of a run must never be.
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
        """Return how many replicas must hold a record before it is acknowledged: the majority, see `insync_min`."""
        return insync_min(self.replication)

    @property
    def message_bytes_max(self) -> int:
        """Return how large a batch of one record may be."""
        return self.bytes_max + BATCH_OVERHEAD_BYTES

    def required(self) -> dict[str, str]:
        """Return the settings without which the contract does not hold, whatever the cluster's own defaults are."""
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

    topic_id: Kafka's own, which a topic that was deleted and made anew does not have. replication: of the partition
    with the fewest replicas. used: records lie in it, or lay there once. settings: all of them, defaults included.
    """

    name: str
    topic_id: str
    partitions: int
    replication: int
    used: bool
    settings: dict[str, str]


def insync_min(replication: int) -> int:
    """Return min.insync.replicas for a number of replicas: 1 for 1, 2 for 2 and 3, 3 for 4 and 5, 4 for 6 and 7.

    It is the majority. With more than one replica an acknowledged record so lies on two brokers at least. With two
    replicas that stops all writing while one broker is away: workers wait, and nothing is lost. Where writing must go
    on, take three.
    """
    return replication // 2 + 1


def plan_topics(run: str, *, partitions: int, replication: int, retention_ms: int | None = None) -> list[TopicPlan]:
    """Return the topics of a run's log; retention_ms: instead of each topic's own."""
    return [
        TopicPlan(
            name=topic_name(run, topic.kind),
            kind=topic.kind,
            partitions=partitions if topic.partitioned else 1,
            partitioned=topic.partitioned,
            replication=replication,
            bytes_max=LETTER_BYTES_MAX if topic.event is DeadLetter else RECORD_BYTES_MAX,
            retention_ms=topic.retention_ms if retention_ms is None else retention_ms,
        )
        for topic in TOPICS
    ]


def plan_derived_topics(run: str, *, replication: int) -> list[TopicPlan]:
    """Return the topics of what is derived from a run's log."""
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
    """Return what of a topic that exists does not do for us, a line each: setting, what was expected, what was found.

    ours: the topic is known to be this run's. Its owner may have added partitions, or may have lowered what it costs
    to keep; only what would break the run is said then.
    """
    kept, said = found.settings, []

    def differs(setting: str, expected: object, came: object) -> None:
        said.append(f"{found.name}: {setting}: expected {expected}, found {came}")

    if not plan.partitioned and found.partitions != 1:
        differs("partitions", "1, for its records are in total order", found.partitions)
    if plan.partitioned and found.partitions < plan.partitions and not ours:
        differs("partitions", f"{plan.partitions} (kafka.partitions)", found.partitions)
    policy = kept.get("cleanup.policy", "delete")
    if ("compact" in policy) != plan.compacted:
        differs("cleanup.policy", "compact" if plan.compacted else "delete, for every record counts", policy)
    if _number(kept, "max.message.bytes", plan.message_bytes_max) < plan.message_bytes_max:
        differs("max.message.bytes", f"at least {plan.message_bytes_max}", kept["max.message.bytes"])
    insync = _number(kept, "min.insync.replicas", 1)
    if insync > found.replication:
        differs("min.insync.replicas", f"at most its {found.replication} replicas, or nothing can be written", insync)
    if not can_read(kept.get("compression.type", "producer")):
        readable = "gzip or producer, for this Python has no library for it"
        differs("compression.type", readable, kept["compression.type"])
    if ours:
        return said
    if found.replication < plan.replication:
        differs("replication", f"{plan.replication} (kafka.replication)", found.replication)
    if insync < insync_min(found.replication):
        differs("min.insync.replicas", f"{insync_min(found.replication)} of {found.replication} replicas", insync)
    if kept.get("unclean.leader.election.enable", "false") != "false":
        differs("unclean.leader.election.enable", "false, for it forgets acknowledged records", "true")
    if not plan.compacted:
        retention = _number(kept, "retention.ms", FOREVER)
        if retention != FOREVER and (plan.retention_ms == FOREVER or retention < plan.retention_ms):
            forever = "-1 (for ever)" if plan.retention_ms == FOREVER else f"at least {plan.retention_ms}, or -1"
            differs("retention.ms", forever, retention)
        if (size := _number(kept, "retention.bytes", -1)) != -1:
            differs("retention.bytes", "-1, for only time may take a record", size)
    return said


def unequal_partitions(found: Sequence[tuple[TopicPlan, FoundTopic]], *, ours: bool) -> list[str]:
    """Return a line if topics that must have the same number of partitions do not.

    ours: only those count in which a group keeps its partition; the run's owner may have added partitions to them.
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
