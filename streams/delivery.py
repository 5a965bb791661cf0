"""Delivery: bounded polls, acknowledged produces, then the commit.

The order is poll → handle → produce → wait for every acknowledgement → commit. A worker that is killed at any point
repeats work and never skips it. The deterministic ids make the repetition harmless.
"""

from __future__ import annotations

import contextlib
import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, TypeVar

import msgspec
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import (
    CommitFailedError,
    FencedInstanceIdError,
    KafkaError,
    KafkaTimeoutError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
)
from kafka.structs import OffsetAndMetadata

from streams.beats import beat
from streams.clients import METADATA_SECONDS
from streams.clock import now_ms
from streams.codec import decode, encode_event
from streams.descriptions import describe
from streams.errors import DeliveryError, EventError, TransientError
from streams.events import DeadLetter, Event, Position, Request
from streams.failpoints import failpoint
from streams.kafka_errors import explain_kafka_error
from streams.kafka_python import JOIN_SECONDS, joining_ms, poll_records, polled_at
from streams.records import Received
from streams.stopping import Stop
from streams.topics import BY_EVENT, topic_name
from streams.tracing import Headers, current_tracing, taken_ns

log = logging.getLogger(__name__)
E = TypeVar("E")


class DeliverySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Polling, retries and stalls of a worker."""

    records_max: Annotated[
        int,
        msgspec.Meta(ge=1, le=10_000),
        describe("Most records per poll, and thus the most records that a worker ever holds."),
    ] = 64
    poll_timeout_seconds: Annotated[
        float, msgspec.Meta(gt=0, le=60), describe("Longest wait of one poll for a first record.")
    ] = 0.5
    ack_timeout_seconds: Annotated[
        float,
        msgspec.Meta(gt=0, le=600),
        describe("Longest wait until the broker acknowledges sent records. A longer wait is an error."),
    ] = 60.0
    retry_first_seconds: Annotated[
        float,
        msgspec.Meta(gt=0, le=60),
        describe("Pause before the first retry of a poll's records. It doubles with each further retry."),
    ] = 0.2
    retry_pause_seconds_max: Annotated[
        float, msgspec.Meta(gt=0, le=600), describe("Upper limit of the pause between two retries.")
    ] = 5.0
    retry_seconds_max: Annotated[
        float,
        msgspec.Meta(ge=0),
        describe(
            "Time for which the records of one poll are retried. After that they end as `failed` and as dead letters."
        ),
    ] = 900.0
    # Twice the default length of the slowest single step: the wait of `batch.wait_seconds` for a batch that does not
    # fill.
    stall_seconds: Annotated[
        float,
        msgspec.Meta(ge=1, le=86_400),
        describe(
            "Time without progress after which a run or a worker that has work is stalled. A stall shows in its "
            "log, in `status` and `watch`, and as an alert."
        ),
    ] = 60.0


class Outbox:
    """The exit of a worker's events: it remembers every send until the broker has acknowledged it."""

    def __init__(self, producer: KafkaProducer, run: str, *, stage: str, settings: DeliverySettings) -> None:
        self._producer = producer
        self._run = run
        self._stage = stage
        self._settings = settings
        self._pending: list[Any] = []

    def send(self, event: Event, *, partition: int = 0, headers: Headers = ()) -> None:
        """Hand an event to the producer; it counts as written only after `flush`."""
        topic = BY_EVENT[type(event)]
        value, name, key = encode_event(event), topic_name(self._run, topic.kind), topic.key(event)
        if isinstance(event, Request) and (tracing := current_tracing()) is not None:
            headers = tracing.sent(name, key)
        partition = partition if topic.partitioned else 0
        self.forward(topic=name, partition=partition, key=key.encode(), value=value, headers=headers)

    def forward(
        self,
        *,
        topic: str,
        partition: int,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes]] = (),
        timestamp_ms: int | None = None,
    ) -> None:
        """Hand a record to the producer unchanged; it counts as written only after `flush`.

        Raises DeliveryError if the producer does not take it.
        """
        deadline = time.monotonic() + 2 * METADATA_SECONDS
        while True:
            try:
                future = self._producer.send(
                    topic,
                    value=value,
                    key=key,
                    headers=list(headers) or None,
                    partition=partition,
                    timestamp_ms=timestamp_ms,
                )
                break
            except ValueError as error:  # The client does not know the partition; it may be new.
                if "Unrecognized partition" not in str(error):
                    raise DeliveryError(f"{self._stage}: could not produce to {topic!r}: {error}") from error
                if time.monotonic() > deadline:
                    raise DeliveryError(
                        f"{self._stage}: expected a partition {partition} of {topic!r}, because the records to "
                        f"answer lie in a partition of that number, found none ({error}). Give the run's "
                        "requests, generations and rewards the same number of "
                        "partitions: kafka-topics --alter --partitions N"
                    ) from error
                time.sleep(METADATA_SECONDS / 10)
            except KafkaError as error:
                raise DeliveryError(
                    f"{self._stage}: could not produce to {topic!r}: {explain_kafka_error(error)}"
                ) from error
        self._pending.append(future)
        if (tracing := current_tracing()) is not None:
            tracing.count_sent(topic)

    def answer(self, record: Received, event: Event) -> None:
        """Send the answer to a record, in the record's partition; bury the record if the answer is too large.

        An answer contains its record. So if the record is nearly as large as the codec allows, every answer exceeds the
        limit and could not be read back.
        """
        try:
            self.send(event, partition=record.position.partition, headers=self._answered(record, event))
        except EventError as error:
            self.bury(record, str(error))

    def bury(self, record: Received, error: str, *, attempts: int = 1) -> None:
        """Send a record, whole, to the dead letters, with the reason.

        If the record is too large for a dead letter (12 MiB and more, which our own topics do not take), the letter
        says so and keeps only its position.
        """
        log.warning("dead letter from %s: %s", _where(record.position), error)
        letter = DeadLetter(
            source=record.position,
            key=record.key,
            value=record.value,
            headers=record.headers,
            stage=self._stage,
            error=error,
            attempts=attempts,
            made_at_ms=now_ms(),
        )
        headers = self._answered(record, letter, error)
        try:
            self.send(letter, headers=headers)
        except EventError:
            size = len(record.value or b"")
            error = f"{error}; its {size} bytes are too many for a letter, and lie at its place alone"
            self.send(msgspec.structs.replace(letter, value=None, key=None, headers=(), error=error), headers=headers)

    def _answered(self, record: Received, event: Event, error: str = "") -> Headers:
        """Return the headers of the event that answers a record: its trace goes on there."""
        tracing, topic = current_tracing(), BY_EVENT[type(event)]
        if tracing is None:
            return ()
        return tracing.answered(record, topic_name(self._run, topic.kind), topic.key(event), error=error)

    def flush(self) -> None:
        """Wait until the broker has acknowledged everything that was sent.

        Raises DeliveryError if one acknowledgement fails or takes too long. The caller may then commit nothing.
        """
        pending, self._pending = self._pending, []
        deadline = time.monotonic() + self._settings.ack_timeout_seconds
        for future in pending:
            try:
                future.get(timeout=max(deadline - time.monotonic(), 0.001))
            except KafkaTimeoutError as error:
                raise DeliveryError(
                    f"{self._stage}: Kafka did not acknowledge a record within "
                    f"{self._settings.ack_timeout_seconds:g} s (delivery.ack_timeout_seconds): {error}"
                ) from error
            except KafkaError as error:
                raise DeliveryError(
                    f"{self._stage}: Kafka did not take a record: {explain_kafka_error(error)}"
                ) from error
        if pending:
            failpoint(f"{self._stage}.after-produce")


def poll(
    consumer: KafkaConsumer,
    settings: DeliverySettings,
    *,
    records_max: int | None = None,
    timeout_seconds: float | None = None,
) -> list[Received]:
    """Return the next records, at most `records_max`, in order within each partition.

    timeout_seconds: how long to wait for the first record; None means `poll_timeout_seconds`. A group member that has
    no partitions (yet) waits at least `JOIN_SECONDS`.
    Raises DeliveryError if the consumer's offset has fallen out of retention: those records are lost to this worker,
    and continuing from `latest` would hide the loss.
    """
    seconds = settings.poll_timeout_seconds if timeout_seconds is None else timeout_seconds
    if consumer.config["group_id"] is not None and not consumer.assignment():
        seconds = max(seconds, JOIN_SECONDS)
    beat()
    try:
        fetched = poll_records(
            consumer, timeout_ms=int(seconds * 1000), records_max=records_max or settings.records_max
        )
    except FencedInstanceIdError as error:
        raise _fenced(consumer) from error
    except OffsetOutOfRangeError as error:
        raise DeliveryError(
            f"the log no longer holds the offsets to read next ({error}): retention was shorter than the lag. "
            "Rebuild from the archive, or start a new run"
        ) from error
    except KafkaError as error:
        raise DeliveryError(f"{_reader(consumer)}: could not poll: {explain_kafka_error(error)}") from error
    taken = taken_ns(fetched)
    return [_received(record, taken) for records in fetched.values() for record in records]


def commit(consumer: KafkaConsumer, records: Sequence[Received]) -> None:
    """Commit, per partition, the offset after the last of these records.

    Raises DeliveryError if a worker of the same name has taken over, or if the partitions went to another worker during
    a long silence of this one. This worker must then stop; the new owner repeats its work.
    """
    offsets = {TopicPartition(r.position.topic, r.position.partition): r.position.offset + 1 for r in records}
    if not offsets:
        return
    stage = str(consumer.config["group_id"]).rpartition(".")[-1]
    failpoint(f"{stage}.before-commit")
    try:
        consumer.commit({item: OffsetAndMetadata(offset, "", -1) for item, offset in offsets.items()})
    except FencedInstanceIdError as error:
        raise _fenced(consumer) from error
    except CommitFailedError as error:
        raise DeliveryError(_left_behind(consumer)) from error
    except KafkaError as error:
        raise DeliveryError(f"{_reader(consumer)}: could not commit: {explain_kafka_error(error)}") from error
    failpoint(f"{stage}.after-commit")


def decode_or_bury(records: Sequence[Received], kind: type[E], outbox: Outbox) -> list[tuple[Received, E]]:
    """Return the records that hold an event of this kind; bury all others as dead letters."""
    good: list[tuple[Received, E]] = []
    for record in records:
        try:
            event = decode(record.value)
        except EventError as error:
            outbox.bury(record, str(error))
            continue
        if isinstance(event, kind):
            good.append((record, event))
        else:
            outbox.bury(record, f"expected {kind.__name__} in this topic, got {type(event).__name__}")
    return good


@contextlib.contextmanager
def paused(consumer: KafkaConsumer) -> Iterator[Callable[[], None]]:
    """Pause all partitions; the yielded function keeps the membership alive and brings no records.

    A partition that a rebalance brings meanwhile is not paused yet. Records that the poll has taken from it are given
    back.
    """

    def keep_alive() -> None:
        beat()
        for partition, records in poll_records(consumer, timeout_ms=joining_ms(consumer)).items():
            consumer.seek(partition, records[0].offset)
        consumer.pause(*consumer.assignment())

    consumer.pause(*consumer.assignment())
    try:
        yield keep_alive
    finally:
        consumer.resume(*consumer.assignment())


def with_retries(
    act: Callable[[], E],
    give_up: Callable[[TransientError, int], E],
    consumer: KafkaConsumer,
    stop: Stop,
    settings: DeliverySettings,
) -> E | None:
    """Return the result of `act`, retrying with back-off and jitter while it raises TransientError.

    The partitions stay paused meanwhile, so memory stays bounded and the group membership stays alive. After
    `retry_seconds_max` the result is that of `give_up`, which gets the number of attempts. Returns None, without a
    decision, if a stop is requested during the wait.
    """
    began = time.monotonic()
    pause = settings.retry_first_seconds
    attempts = 0
    while True:
        attempts += 1
        try:
            return act()
        except TransientError as error:
            if time.monotonic() - began >= settings.retry_seconds_max:
                return give_up(error, attempts)
            log.warning("will try again in about %.1f s: %s", pause, error)
            with paused(consumer) as keep_alive:
                resume_at = time.monotonic() + pause * random.uniform(0.5, 1.5)
                while time.monotonic() < resume_at:
                    keep_alive()
                    if stop.wait(min(0.5, max(resume_at - time.monotonic(), 0.001))):
                        return None
            pause = min(pause * 2, settings.retry_pause_seconds_max)


def known_position(consumer: KafkaConsumer, partition: TopicPartition) -> int | None:
    """Return the next offset to read in a partition; None before the first poll has settled it."""
    try:
        return consumer.position(partition, timeout_ms=0)  # type: ignore[no-any-return]
    except NoOffsetForPartitionError:
        return None


def _received(record: Any, taken: int) -> Received:
    return Received(
        position=Position(topic=record.topic, partition=record.partition, offset=record.offset),
        timestamp_ms=record.timestamp,
        key=record.key,
        value=record.value,
        headers=tuple((str(name), bytes(value or b"")) for name, value in record.headers or ()),
        taken_ns=taken,
    )


def _reader(consumer: KafkaConsumer) -> str:
    """Return the consumer's name: its group, or its client id if it has no group."""
    return str(consumer.config["group_id"] or consumer.config["client_id"])


def _fenced(consumer: KafkaConsumer) -> DeliveryError:
    name, group = consumer.config["group_instance_id"], consumer.config["group_id"]
    return DeliveryError(
        f"another worker named {name!r} has joined {group!r}; this one stops. Give an additional worker its own name: "
        "searchloop run … --worker 2"
    )


def _left_behind(consumer: KafkaConsumer) -> str:
    """Return why a commit came too late: either no poll or no heartbeat for too long."""
    group, config = consumer.config["group_id"], consumer.config
    polled, heard = config["max_poll_interval_ms"] / 1000, config["session_timeout_ms"] / 1000
    if time.monotonic() - polled_at(consumer) > polled:
        why = f"did not poll for {polled:g} s (kafka.poll_interval_seconds_max): its work between two polls took longer"
    else:
        why = (
            f"was not heard by the broker for {heard:g} s (kafka.session_timeout_seconds): the process was frozen or "
            "starved, or the network was gone"
        )
    return (
        f"group {group!r} continued without this worker, which {why}. This worker stops, and its uncommitted "
        "work is repeated. If this happens again, raise that setting"
    )


def _where(position: Position) -> str:
    return f"{position.topic}[{position.partition}]@{position.offset}"
