"""Consumers, producers and admin clients of kafka-python, built from settings."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, Literal

import msgspec
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import AuthorizationError, KafkaError, SaslAuthenticationFailedError, TopicAlreadyExistsError
from kafka.structs import OffsetAndMetadata

from streams.codec import LETTER_BYTES_MAX, RECORD_BYTES_MAX
from streams.doors import addresses, explain_silence, kafka_context, refused_login
from streams.errors import DeliveryError, SettingsError
from streams.events import DeadLetter
from streams.secrets import GuardedSettings, SecretText, reveal
from streams.tls import guard_plain
from streams.topics import DERIVED, TOPICS, topic_name

EARLIEST = -2  # Kafka's own name for a partition's beginning, as ListOffsets takes it.
COORDINATOR_SECONDS = 30.0
ATTEMPT_SECONDS = 3.0  # Of waiting for a broker, after which we look why there is none.
# Kafka refuses records from more than an hour ahead by default: a worker with a wrong clock could write nothing.
ANY_TIME = str(2**63 - 1)


log = logging.getLogger(__name__)


class KafkaSettings(GuardedSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where Kafka is and how to be let in (infra/SECURITY.md).

    bootstrap: "host:port[,host:port]"; empty means the local service that `searchloop up` starts.
    sasl_password, ssl_key_password: secrets; each may stand in a file of its own, which NAME_file points at.
    credentials: a folder with a file ROLE.toml for each role (sasl_username, sasl_password), for users with rights by
    role; empty: one user for all.
    ssl_cafile: the authorities that are trusted, PEM; empty: the system's. Certificates are always verified.
    ssl_certfile, ssl_keyfile: a client certificate and its key, PEM.
    allow_insecure: send a password beyond this machine without TLS. Never with PLAIN over a network.
    connect_seconds: how long a client waits for a broker that does not listen. What waiting does not mend, such as a
    wrong password or certificate, is told at once.
    session_timeout_seconds: after this long without a heartbeat a worker's partitions go to another; a restarted worker
    of the same name takes its own partitions back at once (static membership).
    """

    bootstrap: str = ""
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = ""
    sasl_username: str = ""
    sasl_password: SecretText = ""
    sasl_password_file: str = ""
    credentials: str = ""
    ssl_cafile: str = ""
    ssl_certfile: str = ""
    ssl_keyfile: str = ""
    ssl_key_password: SecretText = ""
    ssl_key_password_file: str = ""
    allow_insecure: bool = False
    connect_seconds: Annotated[float, msgspec.Meta(gt=0, le=600)] = 10.0
    partitions: Annotated[int, msgspec.Meta(ge=1, le=256)] = 1
    replication: Annotated[int, msgspec.Meta(ge=1, le=7)] = 1
    session_timeout_seconds: Annotated[float, msgspec.Meta(ge=6, le=300)] = 10.0

    def __post_init__(self) -> None:
        """Hide the secrets; raises ValueError for credentials where no client looks for them."""
        super().__post_init__()
        if "@" in self.bootstrap:
            raise ValueError(
                "bootstrap: expected host:port[,host:port] alone; user name and password belong in sasl_username and "
                "sasl_password"
            )

    def __repr__(self) -> str:
        return f"KafkaSettings(bootstrap={self.bootstrap!r}, security_protocol={self.security_protocol!r}, …)"


def connect_producer(settings: KafkaSettings, *, client_id: str) -> KafkaProducer:
    """Return an idempotent producer that waits for every replica; records may be as large as the codec allows.

    Raises DeliveryError if no broker answers, as all that connect do.
    """
    return _client(
        KafkaProducer,
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
    except AuthorizationError as error:
        raise DeliveryError(
            f"topics {', '.join(wanted)}: Kafka hides them from the user {settings.sasl_username or 'anonymous'!r} "
            f"({error}). It needs the rights that this prints: searchloop acls --run {wanted[0].partition('.')[0]}"
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
    """Return those of these topics that exist: a run that an older searchloop made may lack some."""
    admin = connect_admin(settings)
    try:
        known = set(admin.list_topics())
    finally:
        admin.close()
    return [name for name in topics if name in known]


def create_topics(settings: KafkaSettings, run: str, *, retention_ms: int | None = None) -> list[str]:
    """Create the run's topics where they do not exist yet, and return the names of all of them.

    retention_ms: instead of each topic's own. A replay needs -1: its records keep their old times, by which Kafka would
    delete them at once.
    """
    return _create(
        settings,
        {
            topic_name(run, topic.kind): _new_topic(
                settings,
                partitions=settings.partitions if topic.partitioned else 1,
                bytes_max=LETTER_BYTES_MAX if topic.event is DeadLetter else RECORD_BYTES_MAX,
                configs={"retention.ms": str(topic.retention_ms if retention_ms is None else retention_ms)},
            )
            for topic in TOPICS
        },
    )


def create_derived_topics(settings: KafkaSettings, run: str) -> list[str]:
    """Create the topics that hold what was derived from the run's log, where they do not exist yet."""
    compacted = {"cleanup.policy": "compact"}
    return _create(
        settings,
        {topic_name(run, topic.kind): _new_topic(settings, partitions=1, configs=compacted) for topic in DERIVED},
    )


def _new_topic(
    settings: KafkaSettings, *, partitions: int, configs: dict[str, str], bytes_max: int = RECORD_BYTES_MAX
) -> dict[str, Any]:
    return {
        "num_partitions": partitions,
        "replication_factor": settings.replication,
        "configs": configs
        | {
            "max.message.bytes": str(bytes_max + 64 * 1024),
            "message.timestamp.after.max.ms": ANY_TIME,
        },
    }


def _create(settings: KafkaSettings, wanted: dict[str, dict[str, Any]]) -> list[str]:
    admin = connect_admin(settings)
    try:
        missing = {name: options for name, options in wanted.items() if name not in set(admin.list_topics())}
        if missing:
            admin.create_topics(missing, wait_for_metadata=True)
    except TopicAlreadyExistsError:
        pass  # Another process of the same run was faster.
    except KafkaError as error:
        raise DeliveryError(f"could not create the topics {', '.join(wanted)}: {error}") from error
    finally:
        admin.close()
    return list(wanted)


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

    Raises DeliveryError if a topic does not exist or the broker refuses.
    """
    partitions = partitions_of(settings, topics)
    admin = connect_admin(settings)
    try:
        committed = committed_offsets(admin, group)
        missing = [item for item in partitions if item not in committed]
        if missing:
            begin = admin.list_partition_offsets(dict.fromkeys(missing, EARLIEST))
            admin.alter_group_offsets(group, {item: OffsetAndMetadata(begin[item].offset, "", -1) for item in missing})
    except KafkaError as error:
        raise DeliveryError(f"could not read where group {group!r} stopped in {', '.join(topics)}: {error}") from error
    finally:
        admin.close()


def _client(kind: Callable[..., Any], settings: KafkaSettings, client_id: str, **options: Any) -> Any:
    """Return a client of this kind that has met a broker.

    A broker that does not listen, or does not answer yet, is waited for; raises DeliveryError when that is over, or at
    once for what waiting does not mend: a wrong address, password, certificate or protocol.
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
        # Records are answered with at once; this is only how often an idle consumer asks again, and it does so in pure
        # Python: at 100 ms each took 1.6 % of a core, at 500 ms .7 %.
        "fetch_max_wait_ms": 1000,
        "max_partition_fetch_bytes": RECORD_BYTES_MAX + 64 * 1024,
        "allow_auto_create_topics": False,
    }


def connection_options(settings: KafkaSettings, client_id: str) -> dict[str, Any]:
    """Return what every client of kafka-python is built with: the address, and how to be let in.

    Raises SettingsError for no address, a file that cannot be read, or a password that would travel in the open.
    """
    brokers = addresses(settings.bootstrap)
    options: dict[str, Any] = {
        "bootstrap_servers": settings.bootstrap.split(","),
        "client_id": client_id,
        "security_protocol": settings.security_protocol,
        "reconnect_backoff_max_ms": 1000,  # The default of 30 s would outlast a broker's restart by far.
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
