"""Consumers, producers and admin clients of kafka-python, built from settings."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError
from kafka.structs import OffsetAndMetadata

from streams.codec import LETTER_BYTES_MAX, RECORD_BYTES_MAX
from streams.errors import DeliveryError
from streams.group_ownership import require_own_group
from streams.kafka_errors import asked
from streams.producers import Producer
from streams.provisioning import Provisioned, delete_made, provision
from streams.topic_plans import TopicPlan, plan_derived_topics, plan_topics

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
    """Return an idempotent producer that waits for every replica in sync; records may be as large as the codec allows.

    Raises DeliveryError if no broker answers, as all that connect do.
    """
    return _client(
        Producer,
        settings,
        client_id,
        acks="all",
        enable_idempotence=True,
        linger_ms=5,
        batch_size=256 * 1024,
        max_request_size=LETTER_BYTES_MAX + 64 * 1024,
        allow_auto_create_topics=False,
    )


def connect_group_consumer(
    settings: KafkaSettings, topic: str, *, group: str, member: str, records_max: int
) -> KafkaConsumer:
    """Return a consumer that shares a topic's partitions with the other members of its group.

    Offsets are committed by hand. Where the group has none yet it begins at the log's beginning; an offset that has
    fallen out of retention raises in `poll`, and is never silently skipped.
    """
    seed_offsets(settings, [topic], group=group)
    consumer = _client(
        KafkaConsumer,
        settings,
        member,
        **_fetching(records_max),
        group_id=group,
        group_instance_id=member,
        session_timeout_ms=int(settings.session_timeout_seconds * 1000),
        heartbeat_interval_ms=int(settings.session_timeout_seconds * 1000 / 4),
    )
    consumer.subscribe([topic])
    return consumer


def connect_consumer(
    settings: KafkaSettings,
    positions: dict[TopicPartition, int | None],
    *,
    client_id: str,
    records_max: int,
    linger_seconds: float = 0.0,
) -> KafkaConsumer:
    """Return a consumer of exactly these partitions, from exactly these offsets (None: the beginning).

    linger_seconds: how long the broker may hold back records until a megabyte of them has come.
    """
    fetching = _fetching(records_max)
    if linger_seconds > 0:
        fetching |= {"fetch_min_bytes": 2**20, "fetch_max_wait_ms": int(linger_seconds * 1000)}
    consumer = _client(KafkaConsumer, settings, client_id, **fetching, group_id=None)
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


def existing_topics(settings: KafkaSettings, topics: Iterable[str]) -> list[str]:
    """Return those of these topics that exist: a run that an older searchloop made may lack some."""
    admin = connect_admin(settings)
    try:
        known = set(asked("could not list the cluster's topics", admin.list_topics))
    finally:
        admin.close()
    return [name for name in topics if name in known]


def create_topics(
    settings: KafkaSettings,
    run: str,
    *,
    retention_ms: int | None = None,
    folder: Path | None = None,
    known: bool = False,
) -> list[str]:
    """Create the run's topics where they do not exist yet, and return the names of all of them.

    retention_ms: instead of each topic's own. A replay needs -1: its records keep their old times, by which Kafka would
    delete them at once. folder, known: as `streams.provisioning.provision` takes them, which says whose a topic is.
    Raises TakenError (a DeliveryError) if a topic is not this run's, DeliveryError if one does not fit.
    """
    plans = plan_topics(
        run, partitions=settings.partitions, replication=settings.replication, retention_ms=retention_ms
    )
    return list(provisioned(settings, plans, run=run, folder=folder, known=known).names)


def create_derived_topics(
    settings: KafkaSettings, run: str, *, folder: Path | None = None, known: bool = False
) -> list[str]:
    """Create the topics that hold what was derived from the run's log, where they do not exist yet.

    Raises as `create_topics` does.
    """
    plans = plan_derived_topics(run, replication=settings.replication)
    return list(provisioned(settings, plans, run=run, folder=folder, known=known).names)


def provisioned(
    settings: KafkaSettings, plans: Sequence[TopicPlan], *, run: str, folder: Path | None = None, known: bool = False
) -> Provisioned:
    """Make what is missing of these topics, as `streams.provisioning.provision` does."""
    admin = connect_admin(settings)
    try:
        return provision(admin, plans, run=run, folder=folder, known=known)
    finally:
        admin.close()


def delete_made_topics(settings: KafkaSettings, made: Provisioned) -> None:
    """Delete the topics that `provisioned` has made, and no other: what a first step that failed leaves behind."""
    admin = connect_admin(settings)
    try:
        delete_made(admin, made.made)
    finally:
        admin.close()


def connect_admin(settings: KafkaSettings) -> KafkaAdminClient:
    """Return an admin client."""
    return _client(KafkaAdminClient, settings, "searchloop-admin")


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


def seed_offsets(settings: KafkaSettings, topics: Sequence[str], *, group: str) -> None:
    """Commit the log's beginning for the partitions of these topics that the group has committed nothing of.

    Raises DeliveryError if a topic does not exist, if the group is somebody else's, or if the broker refuses.
    """
    partitions = partitions_of(settings, topics)
    admin = connect_admin(settings)
    try:
        committed = committed_offsets(admin, group)
        require_own_group(admin, group, topics, committed)
        missing = [item for item in partitions if item not in committed]
        if missing:
            begin = admin.list_partition_offsets(dict.fromkeys(missing, EARLIEST))
            admin.alter_group_offsets(group, {item: OffsetAndMetadata(begin[item].offset, "", -1) for item in missing})
    except KafkaError as error:
        raise DeliveryError(f"could not read where group {group!r} stopped in {', '.join(topics)}: {error}") from error
    finally:
        admin.close()


def _client(kind: Callable[..., Any], settings: KafkaSettings, client_id: str, **options: Any) -> Any:
    try:
        return kind(**connection_options(settings, client_id), **options)
    except KafkaError as error:
        raise DeliveryError(
            f"no Kafka broker answers at {settings.bootstrap!r} ({error}). Run: searchloop up, or set kafka.bootstrap"
        ) from error


def _fetching(records_max: int) -> dict[str, Any]:
    return {
        "max_poll_records": records_max,
        "enable_auto_commit": False,
        "auto_offset_reset": "none",
        # Records are answered with at once; this is only how often an idle consumer asks again, and it does so in pure
        # Python: at 100 ms each took 1.6 % of a core, at 500 ms .7 %.
        "fetch_max_wait_ms": 1000,
        "max_partition_fetch_bytes": RECORD_BYTES_MAX + 64 * 1024,
        "allow_auto_create_topics": False,
    }


def connection_options(settings: KafkaSettings, client_id: str) -> dict[str, Any]:
    """Return what every client of kafka-python is built with: the address, and how to be let in."""
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
