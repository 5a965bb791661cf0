"""Consumers, producers and admin clients of kafka-python, built from settings."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.coordinator.assignors.range import RangePartitionAssignor
from kafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from kafka.errors import AuthorizationError, KafkaError, SaslAuthenticationFailedError

from streams.codec import LETTER_BYTES_MAX, RECORD_BYTES_MAX
from streams.doors import addresses, explain_silence, kafka_context, refused_login
from streams.errors import DeliveryError, SettingsError
from streams.group_ownership import require_own_group
from streams.kafka_errors import asked
from streams.kafka_python import forget_coordinators
from streams.kafka_settings import KafkaSettings
from streams.producers import Producer
from streams.provisioning import Provisioned, delete_made, provision
from streams.secrets import reveal
from streams.tls import guard_plain
from streams.topic_plans import TopicPlan, plan_derived_topics, plan_topics

EARLIEST = -2  # Kafka's own code for a partition's beginning in ListOffsets.
METADATA_SECONDS = 10  # The time until a client notices a topic's new partition; the default is 5 minutes.
HOUR_MS = 3_600_000
ATTEMPT_SECONDS = 3.0  # After waiting this long for a broker, we find out why there is none.


log = logging.getLogger(__name__)


def connect_producer(settings: KafkaSettings, *, client_id: str) -> KafkaProducer:
    """Return an idempotent producer that waits for every in-sync replica; records may be as large as the codec allows.

    Raises DeliveryError if no broker answers, as does every function here that connects.
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


class GroupConsumer(KafkaConsumer):  # type: ignore[misc]  # kafka-python has no types
    """A consumer that knows the first offset to read in a partition without a committed offset of its group.

    begin: returns the first offset per partition; partitions that it does not name start at 0. It is called only if it
    is needed.
    """

    begin: Callable[[], Mapping[int, int]] = dict

    def begin_where_nothing_is_committed(self) -> None:
        """Seek in each assigned partition without a committed offset.

        These are new partitions, and partitions whose offsets Kafka has forgotten.
        """
        lacking = [item for item in self.assignment() if self.committed(item) is None]
        begin = self.begin() if lacking else {}
        for item in lacking:
            self.seek(item, begin.get(item.partition, 0))


def connect_group_consumer(
    settings: KafkaSettings,
    topic: str,
    *,
    group: str,
    member: str,
    records_max: int,
    begin: Callable[[], Mapping[int, int]] = dict,
) -> GroupConsumer:
    """Return a consumer that shares a topic's partitions with the other members of its group.

    Offsets are committed by hand. begin: the first offset of each partition without a committed offset of the group;
    partitions that it does not name start at the first offset of the log. If an offset has fallen out of retention,
    `poll` raises; no offset is silently skipped. This also holds for the log's first offset.
    Raises DeliveryError if the group belongs to somebody else.
    """
    admin = connect_admin(settings)
    try:
        require_own_group(admin, group, [topic], committed_offsets(admin, group))
    finally:
        admin.close()
    consumer = _client(
        GroupConsumer,
        settings,
        member,
        **_fetching(records_max),
        group_id=group,
        group_instance_id=member,
        # A new worker takes over only as many partitions as it must. The second one is what older workers speak.
        partition_assignment_strategy=(StickyPartitionAssignor, RangePartitionAssignor),
        session_timeout_ms=int(settings.session_timeout_seconds * 1000),
        heartbeat_interval_ms=int(settings.session_timeout_seconds * 1000 / 4),
        max_poll_interval_ms=int(settings.poll_interval_seconds_max * 1000),
    )
    consumer.begin = begin
    consumer.subscribe([topic])
    return consumer  # type: ignore[no-any-return]


def connect_consumer(
    settings: KafkaSettings,
    positions: dict[TopicPartition, int | None],
    *,
    client_id: str,
    records_max: int,
    linger_seconds: float = 0.0,
) -> KafkaConsumer:
    """Return a consumer of exactly these partitions, starting at exactly these offsets (None: the beginning).

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
    except AuthorizationError as error:
        raise DeliveryError(
            f"topics {', '.join(wanted)}: Kafka hides them from the user {settings.sasl_username or 'anonymous'!r} "
            f"({error}). It needs the rights that this prints: searchloop doctor --acls {wanted[0].partition('.')[0]}"
        ) from error
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
    """Return those of these topics that exist. A run that an older searchloop made may lack some."""
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
    """Create the missing topics of the run, and return the names of all its topics.

    retention_ms: replaces each topic's own retention. A replay needs -1: its records keep their old times, and Kafka
    would otherwise delete them at once. folder, known: as in `streams.provisioning.provision`, which decides who owns a
    topic.
    Raises TakenError (a DeliveryError) if a topic is not this run's, and DeliveryError if a topic does not fit.
    """
    plans = plan_topics(
        run,
        partitions=settings.partitions,
        replication=settings.replication,
        retention_ms=retention_ms,
        live_ms=settings.live_retention_hours * HOUR_MS,
    )
    return list(provisioned(settings, plans, run=run, folder=folder, known=known).names)


def create_derived_topics(
    settings: KafkaSettings, run: str, *, folder: Path | None = None, known: bool = False
) -> list[str]:
    """Create the missing topics for the data that is derived from the run's log.

    Raises the errors of `create_topics`.
    """
    plans = plan_derived_topics(run, replication=settings.replication)
    return list(provisioned(settings, plans, run=run, folder=folder, known=known).names)


def provisioned(
    settings: KafkaSettings, plans: Sequence[TopicPlan], *, run: str, folder: Path | None = None, known: bool = False
) -> Provisioned:
    """Make the missing ones of these topics, as `streams.provisioning.provision` does."""
    admin = connect_admin(settings)
    try:
        return provision(admin, plans, run=run, folder=folder, known=known)
    finally:
        admin.close()


def delete_made_topics(settings: KafkaSettings, made: Provisioned) -> None:
    """Delete exactly the topics that `provisioned` made, to clean up after a failed first step."""
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
    Raises DeliveryError if that takes longer than `PATIENCE_SECONDS` of `kafka_errors`.
    """

    def ask() -> dict[TopicPartition, int]:
        forget_coordinators(admin)
        found = admin.list_group_offsets({group: None}).get(group, {})
        return {item: int(committed.offset) for item, committed in found.items()}

    return asked(f"could not read the offsets of the consumer group {group!r}", ask)


def follow_partitions(consumer: KafkaConsumer, topics: Iterable[str]) -> bool:
    """Assign new partitions of these topics from their start; return whether there were any."""
    assigned = consumer.assignment()
    known = {TopicPartition(name, each) for name in topics for each in consumer.partitions_for_topic(name)}
    if known <= assigned:
        return False
    consumer.assign(sorted(assigned | known))
    for item in sorted(known - assigned):
        consumer.seek(item, 0)
    return True


def _client(kind: Callable[..., Any], settings: KafkaSettings, client_id: str, **options: Any) -> Any:
    """Return a client of this kind that has reached a broker.

    It waits for a broker that does not listen or does not answer yet. Raises DeliveryError if the wait is over, or at
    once if waiting cannot help: a wrong address, password, certificate or protocol.
    """
    deadline = time.monotonic() + settings.connect_seconds
    while True:
        options["bootstrap_timeout_ms"] = int(1000 * max(min(ATTEMPT_SECONDS, deadline - time.monotonic()), 0.5))
        try:
            return kind(**connection_options(settings, client_id), **options)
        except SaslAuthenticationFailedError as error:
            raise DeliveryError(refused_login(settings)) from error
        except KafkaError as error:
            problem = explain_silence(settings)
            late = time.monotonic() >= deadline
            if problem is not None and (problem.lasting or late):
                raise DeliveryError(problem.text) from error
            if late:
                raise DeliveryError(
                    f"no Kafka broker answers at {settings.bootstrap!r} ({error}). Run: searchloop up, or set "
                    "kafka.bootstrap"
                ) from error
            log.info("%s", problem.text if problem else error)


def _fetching(records_max: int) -> dict[str, Any]:
    return {
        "max_poll_records": records_max,
        "enable_auto_commit": False,
        "auto_offset_reset": "none",
        # The broker answers as soon as there are records. This is only the interval at which an idle consumer asks
        # again, in pure Python: each took 1.6% of a core at 100 ms, and 0.7% at 500 ms.
        "fetch_max_wait_ms": 1000,
        "max_partition_fetch_bytes": RECORD_BYTES_MAX + 64 * 1024,
        "allow_auto_create_topics": False,
    }


def connection_options(settings: KafkaSettings, client_id: str) -> dict[str, Any]:
    """Return the options that every client of kafka-python needs: the address and the credentials.

    Raises SettingsError if the address is missing, a file cannot be read, or a password would travel unencrypted.
    """
    brokers = addresses(settings.bootstrap)
    options: dict[str, Any] = {
        "bootstrap_servers": settings.bootstrap.split(","),
        "client_id": client_id,
        "security_protocol": settings.security_protocol,
        "reconnect_backoff_max_ms": 1000,  # The default of 30 s far exceeds a broker's restart.
        "metadata_max_age_ms": METADATA_SECONDS * 1000,
    }
    if settings.security_protocol.startswith("SASL"):
        if not settings.sasl_username or not settings.sasl_password:
            raise SettingsError(
                f"kafka.sasl_username, kafka.sasl_password: expected both with {settings.security_protocol}, got "
                f"{'no password' if settings.sasl_username else 'no user name'}"
            )
        options |= {
            "sasl_mechanism": settings.sasl_mechanism or "PLAIN",
            "sasl_plain_username": settings.sasl_username,
            "sasl_plain_password": reveal(settings.sasl_password),
        }
    if settings.security_protocol == "SASL_PLAINTEXT":
        guard_plain(
            "kafka",
            what=f"a password by {settings.sasl_mechanism or 'PLAIN'}",
            hosts=[host for host, _ in brokers],
            instead="Set kafka.security_protocol = 'SASL_SSL'",
            allowed=settings.allow_insecure,
        )
    if (context := kafka_context(settings)) is not None:
        options["ssl_context"] = context
    return options
