"""The owner of a consumer group: a group of ours reads one topic of one run, and nothing else.

Kafka cannot store an owner with a group. The rule is therefore: a group named `<run>.<stage>` is ours if it has
committed offsets of its stage's topic only, and if each of its living members is a worker of ours. A worker is a static
member whose instance id equals its client's name, and that subscribes to no other topic. The offsets of any other group
are never set.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kafka import KafkaAdminClient, TopicPartition

from streams.errors import DeliveryError
from streams.kafka_errors import asked
from streams.kafka_python import forget_coordinators


def require_own_group(
    admin: KafkaAdminClient, group: str, topics: Sequence[str], committed: Iterable[TopicPartition]
) -> None:
    """Return if the group is ours or belongs to nobody yet.

    topics: the topics that it is to read. committed: the partitions of which it has committed offsets.
    Raises DeliveryError if the group belongs to somebody else.
    """
    reason = why_not_ours(describe_group(admin, group), topics, committed)
    if reason:
        raise DeliveryError(
            f"consumer group {group!r}: expected one that only our workers use, to read {', '.join(topics)}, but "
            f"{reason}: it is somebody else's, and its offsets stay as they are. Choose another --run NAME"
        )


def describe_group(admin: KafkaAdminClient, group: str) -> Mapping[str, Any]:
    """Return what kafka-python's `describe_groups` says of a group; empty if there is none.

    Raises DeliveryError if the cluster does not say.
    """

    def describe() -> Mapping[str, Mapping[str, Any]]:
        forget_coordinators(admin)
        return admin.describe_groups([group])  # type: ignore[no-any-return]

    return asked(f"could not inspect the consumer group {group!r}", describe).get(group, {})


def why_not_ours(described: Mapping[str, Any], topics: Sequence[str], committed: Iterable[TopicPartition]) -> str:
    """Return why a group belongs to somebody else, or ''; described: the result of kafka-python's `describe_groups`."""
    others = sorted({f"{item.topic}[{item.partition}]" for item in committed if item.topic not in topics})
    if others:
        return f"it has committed offsets of {', '.join(others[:3])}"
    kind = described.get("protocol_type") or "consumer"
    if kind != "consumer":
        return f"it is a group of kind {kind!r}"
    for member in described.get("members") or ():
        name = member.get("client_id")
        if not name or member.get("group_instance_id") != name:
            return f"{name or 'a client without a name'} at {member.get('client_host') or 'an unknown host'} is in it"
        # While the group assigns its partitions, a member's subscription is not shown.
        metadata = member.get("member_metadata")
        subscribed = metadata.get("topics") if isinstance(metadata, dict) else None
        if strange := sorted(set(subscribed or ()) - set(topics)):
            return f"its member {name} reads {', '.join(strange[:3])}"
    return ""
