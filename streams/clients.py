"""Consumers, producers and admin clients of kafka-python, built from settings."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import msgspec
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError, TopicAlreadyExistsError
from kafka.structs import OffsetAndMetadata

from streams.codec import RECORD_BYTES_MAX
from streams.errors import DeliveryError
from streams.topics import TOPICS, topic_name

EARLIEST = -2  # Kafka's own name for a partition's beginning, as ListOffsets takes it.
COORDINATOR_SECONDS = 30.0


class KafkaSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where Kafka is and how to be let in.

    bootstrap: "host:port[,host:port]"; empty means the local service that `searchloop up` starts.
    session_timeout_seconds: after this long without a heartbeat a worker's partitions go to another; a restarted worker
    of the same name takes its own partitions back at once (static membership).
    """

    bootstrap: str = ""
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = ""
    sasl_username: str = ""
    sasl_password: str = ""
    ssl_cafile: str = ""
    ssl_certfile: str = ""
    ssl_keyfile: str = ""
    partitions: Annotated[int, msgspec.Meta(ge=1, le=256)] = 1
    replication: Annotated[int, msgspec.Meta(ge=1, le=7)] = 1
    session_timeout_seconds: Annotated[float, msgspec.Meta(ge=6, le=300)] = 10.0

    def __repr__(self) -> str:
        return f"KafkaSettings(bootstrap={self.bootstrap!r}, security_protocol={self.security_protocol!r}, …)"


def connect_producer(settings: KafkaSettings, *, client_id: str) -> KafkaProducer:
    """Return an idempotent producer that waits for every replica; records may be as large as the codec allows."""
    return KafkaProducer(
        **_connection(settings, client_id),
        acks="all",
        enable_idempotence=True,
        linger_ms=5,
        batch_size=256 * 1024,
        max_request_size=RECORD_BYTES_MAX + 64 * 1024,
        allow_auto_create_topics=False,
    )


def connect_group_consumer(
    settings: KafkaSettings, topic: str, *, group: str, member: str, records_max: int
) -> KafkaConsumer:
    """Return a consumer that shares a topic's partitions with the other members of its group.

    Offsets are committed by hand. Where the group has none yet it begins at the log's beginning; an offset that has
    fallen out of retention raises in `poll`, and is never silently skipped.
    """
    _seed_offsets(settings, topic, group)
    consumer = KafkaConsumer(
        **_connection(settings, member),
        **_fetching(records_max),
        group_id=group,
        group_instance_id=member,
        session_timeout_ms=int(settings.session_timeout_seconds * 1000),
        heartbeat_interval_ms=int(settings.session_timeout_seconds * 1000 / 4),
    )
    consumer.subscribe([topic])
    return consumer


def connect_consumer(
    settings: KafkaSettings, positions: dict[TopicPartition, int | None], *, client_id: str, records_max: int
) -> KafkaConsumer:
    """Return a consumer of exactly these partitions, from exactly these offsets (None: the beginning)."""
    consumer = KafkaConsumer(**_connection(settings, client_id), **_fetching(records_max), group_id=None)
    consumer.assign(list(positions))
    for partition, offset in positions.items():
        if offset is None:
            consumer.seek_to_beginning(partition)
        else:
            consumer.seek(partition, offset)
    return consumer


def partitions_of(settings: KafkaSettings, topics: Iterable[str]) -> list[TopicPartition]:
    """Return every partition of these topics.

    Raises DeliveryError if one of them does not exist.
    """
    wanted = list(topics)
    admin = connect_admin(settings)
    try:
        found = {item["name"]: item for item in admin.describe_topics(wanted)}
    except KafkaError as error:
        raise DeliveryError(f"topics {', '.join(wanted)}: {error}. Run: searchloop train, which makes them") from error
    finally:
        admin.close()
    return [
        TopicPartition(name, part["partition_index"])
        for name in wanted
        for part in sorted(found[name]["partitions"], key=lambda item: int(item["partition_index"]))
    ]


def create_topics(settings: KafkaSettings, run: str) -> list[str]:
    """Create the run's topics where they do not exist yet, and return the names of all of them."""
    wanted = {
        topic_name(run, topic.kind): {
            "num_partitions": settings.partitions if topic.partitioned else 1,
            "replication_factor": settings.replication,
            "configs": {
                "retention.ms": str(topic.retention_ms),
                "max.message.bytes": str(RECORD_BYTES_MAX + 64 * 1024),
            },
        }
        for topic in TOPICS
    }
    admin = connect_admin(settings)
    try:
        missing = {name: options for name, options in wanted.items() if name not in set(admin.list_topics())}
        if missing:
            admin.create_topics(missing, wait_for_metadata=True)
    except TopicAlreadyExistsError:
        pass  # Another process of the same run was faster.
    except KafkaError as error:
        raise DeliveryError(f"could not create the topics of run {run!r}: {error}") from error
    finally:
        admin.close()
    return list(wanted)


def connect_admin(settings: KafkaSettings) -> KafkaAdminClient:
    """Return an admin client.

    Raises DeliveryError if no broker answers.
    """
    try:
        return KafkaAdminClient(**_connection(settings, "searchloop-admin"))
    except KafkaError as error:
        raise DeliveryError(
            f"no Kafka broker answers at {settings.bootstrap!r} ({error}). Run: searchloop up, or set kafka.bootstrap"
        ) from error


def committed_offsets(admin: KafkaAdminClient, group: str) -> dict[TopicPartition, int]:
    """Return the offsets that a consumer group has committed.

    Waits while the broker still elects the group's coordinator: the first group of a new cluster has none yet.
    Raises KafkaError if that takes longer than `COORDINATOR_SECONDS`.
    """
    deadline = time.monotonic() + COORDINATOR_SECONDS
    while True:
        try:
            found = admin.list_group_offsets({group: None}).get(group, {})
            return {item: int(committed.offset) for item, committed in found.items()}
        except KafkaError as error:
            if not error.retriable or time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def _seed_offsets(settings: KafkaSettings, topic: str, group: str) -> None:
    partitions = partitions_of(settings, [topic])
    admin = connect_admin(settings)
    try:
        committed = committed_offsets(admin, group)
        missing = [item for item in partitions if item not in committed]
        if missing:
            begin = admin.list_partition_offsets(dict.fromkeys(missing, EARLIEST))
            admin.alter_group_offsets(group, {item: OffsetAndMetadata(begin[item].offset, "", -1) for item in missing})
    except KafkaError as error:
        raise DeliveryError(f"could not read where group {group!r} stopped in {topic!r}: {error}") from error
    finally:
        admin.close()


def _fetching(records_max: int) -> dict[str, Any]:
    return {
        "max_poll_records": records_max,
        "enable_auto_commit": False,
        "auto_offset_reset": "none",
        "fetch_max_wait_ms": 100,
        "max_partition_fetch_bytes": RECORD_BYTES_MAX + 64 * 1024,
        "allow_auto_create_topics": False,
    }


def _connection(settings: KafkaSettings, client_id: str) -> dict[str, Any]:
    options: dict[str, Any] = {
        "bootstrap_servers": settings.bootstrap.split(","),
        "client_id": client_id,
        "security_protocol": settings.security_protocol,
        "reconnect_backoff_max_ms": 1000,  # The default of 30 s would outlast a broker's restart by far.
    }
    if settings.security_protocol.startswith("SASL"):
        options |= {
            "sasl_mechanism": settings.sasl_mechanism or "PLAIN",
            "sasl_plain_username": settings.sasl_username,
            "sasl_plain_password": settings.sasl_password,
        }
    if settings.security_protocol.endswith("SSL"):
        options |= {
            "ssl_cafile": settings.ssl_cafile or None,
            "ssl_certfile": settings.ssl_certfile or None,
            "ssl_keyfile": settings.ssl_keyfile or None,
        }
    return options
