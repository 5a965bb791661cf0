"""Workarounds for faults of kafka-python 3.0.12; the only module that uses that library's private names.

Each function names its fault. It may go when the pinned version no longer has the fault.
"""

from __future__ import annotations

import math
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.errors import NoOffsetForPartitionError
from kafka.structs import MemberState

# A poll that ends before the group's coordinator has answered restarts the search for it. On a starved machine, where
# the answer takes longer than `poll_timeout_seconds`, a worker repeated this forever. So a member without partitions
# waits longer.
JOIN_SECONDS = 5.0


def poll_records(
    consumer: KafkaConsumer, *, timeout_ms: int, records_max: int | None = None
) -> dict[TopicPartition, list[Any]]:
    """Poll, and set the first offset in each partition without a committed offset of the group."""
    _forget_read_fetch(consumer)
    try:
        return consumer.poll(timeout_ms=timeout_ms, max_records=records_max)  # type: ignore[no-any-return]
    except NoOffsetForPartitionError:
        consumer.begin_where_nothing_is_committed()
        return {}


def forget_coordinators(admin: KafkaAdminClient) -> None:
    """Let an admin client ask anew which broker coordinates a group.

    It remembers the answer, also when that broker says that it is not the coordinator any more. After a broker had
    died, each question about a group was refused for as long as the client lived.
    """
    coordinators: Any = getattr(getattr(getattr(admin, "_manager", None), "cluster", None), "_coordinators", None)
    if coordinators:
        coordinators.clear()


def joining_ms(consumer: KafkaConsumer) -> int:
    """Return the least duration of a poll with which a paused consumer can rejoin its group.

    If the group is assigning its partitions, or its topic has got another partition, a poll of 0 ms begins to join and
    never finishes. The other members would then wait for this one until `kafka.poll_interval_seconds_max`, and a group
    of one would have no member. Only the private coordinator shows that the topic has changed.
    """
    if consumer.config["group_id"] is None:
        return 0
    coordinator = getattr(consumer, "_coordinator", None)
    must_join = coordinator is not None and coordinator.need_rejoin()
    settled = consumer.group_metadata().state == MemberState.STABLE and not must_join
    return 0 if settled else int(JOIN_SECONDS * 1000)


def polled_at(consumer: KafkaConsumer) -> float:
    """Return the monotonic time of the last poll; infinity if the library does not provide it.

    A member that polls too rarely leaves the group by itself. Its next commit then fails with the same error as that of
    a member whose heartbeats did not arrive. Only this private clock distinguishes the two.
    """
    heartbeat = getattr(getattr(consumer, "_coordinator", None), "heartbeat", None)
    return float(getattr(heartbeat, "last_poll", math.inf))


def _forget_read_fetch(consumer: KafkaConsumer) -> None:
    """Let a partition that was paused with records at hand continue when it is resumed.

    The library returns parked records only if no fetch is queued, and it leaves a fully read fetch in the queue. If the
    other partitions are at their ends, no further fetch comes, and the parked records are never read. A generator of
    two partitions stood still for this reason.
    """
    fetcher: Any = getattr(consumer, "_fetcher", None)
    if getattr(fetcher, "_next_partition_records", None) is not None and not fetcher._next_partition_records:
        fetcher._next_partition_records = None
