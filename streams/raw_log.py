"""Batches to and from the broker as bytes: kafka-python's consumer and producer, without building records in between.

If a process copies records of 15 kB through a consumer and a producer, it spends two and a half times the cost of
consuming them. This module copies them for about the cost of consuming them. Writes are as safe as the producer's:
every replica acknowledges, and the producer's id and sequence numbers let the broker drop duplicates of a retry.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from kafka import TopicPartition
from kafka.errors import (
    DuplicateSequenceNumberError,
    KafkaError,
    KafkaTimeoutError,
    LeaderNotAvailableError,
    NoError,
    OutOfOrderSequenceNumberError,
    for_code,
)
from kafka.future import Future
from kafka.net import KafkaConnectionManager, NetworkSelector
from kafka.protocol.consumer import FetchRequest
from kafka.protocol.producer import InitProducerIdRequest, ProduceRequest

from streams.clients import connection_options
from streams.codec import LETTER_BYTES_MAX, RECORD_BYTES_MAX
from streams.errors import DeliveryError
from streams.kafka_settings import KafkaSettings
from streams.record_batches import BATCH_BYTES, BatchBuilder, RawRecord, next_offset, read_records

FETCH_BYTES = RECORD_BYTES_MAX + 64 * 1024  # A broker also sends a larger batch if that batch comes first.
FETCH_WAIT_MS = 100
IN_FLIGHT_MAX = 4  # A broker remembers a producer's last five batches per partition and recognizes repeated ones.
RETRY_SECONDS = 0.2
CONNECT_SECONDS = 10.0


class RawLog:
    """Two connections to the cluster, one for reading and one for writing; while one waits, the other continues.

    patience_seconds: how long the broker may be silent, or defer a request, before that is an error.
    """

    def __init__(self, settings: KafkaSettings, *, client_id: str, patience_seconds: float = 60.0) -> None:
        self._patience = patience_seconds
        options = connection_options(settings, client_id) | {
            "receive_message_max_bytes": FETCH_BYTES + 2 * LETTER_BYTES_MAX
        }
        self._net = NetworkSelector(**options)
        self._reading = KafkaConnectionManager(self._net, **options)
        self._writing = KafkaConnectionManager(self._net, **options)
        try:
            for manager in (self._reading, self._writing):
                manager.bootstrap(timeout_ms=CONNECT_SECONDS * 1000)
        except KafkaError as error:
            self.close()
            raise DeliveryError(
                f"no Kafka broker answers at {settings.bootstrap!r} ({error}). Run: searchloop up, or set "
                "kafka.bootstrap"
            ) from error

    def __enter__(self) -> RawLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        for manager in (self._reading, self._writing):
            manager.close()
        self._net.close()

    def read(self, partition: TopicPartition, first: int, end: int) -> Iterator[RawRecord]:
        """Yield the records of one partition from offset `first` to offset `end` (exclusive), in order.

        The range must lie within the partition's bounds; offsets without a record are skipped.
        Raises DeliveryError if `first` has fallen out of retention, or if the broker is silent for too long.
        """
        if first >= end:
            return
        at = first
        asked = self._ask(self._reading, partition, _fetch(partition, at))
        while at < end:
            answer = self._answer(self._reading, partition, _fetch(partition, at), _fetch_error, asked=asked)
            fetched = bytes(answer.responses[0].partitions[0].records)
            wanted, at = at, next_offset(fetched) or end
            if at < end:
                asked = self._ask(self._reading, partition, _fetch(partition, at))  # Travels while this batch is used.
            for record in read_records(fetched):
                if wanted <= record.offset < end:
                    yield record

    def writer(self) -> RawWriter:
        """Return a new idempotent producer."""
        wanted = InitProducerIdRequest(transactional_id=None, transaction_timeout_ms=60_000, max_version=3)
        answer = self._answer(self._writing, None, wanted, lambda answer: _error(answer.error_code))
        return RawWriter(self, producer_id=answer.producer_id, producer_epoch=answer.producer_epoch)

    def produce(self, partition: TopicPartition, batch: bytes) -> Future:
        """Send a batch, and return the future that `settle` takes."""
        return self._ask(self._writing, partition, _produce(partition, batch))

    def settle(self, partition: TopicPartition, batch: bytes, asked: Future) -> None:
        """Wait until a batch is in the log, sending it again while the broker cannot take it.

        Batches of a partition must be settled in the order in which they were produced. The batches behind a failed one
        are refused as out of order, and are sent again in their turn.
        """
        self._answer(self._writing, partition, _produce(partition, batch), _produce_error, asked=asked)

    def _ask(self, manager: Any, partition: TopicPartition | None, request: Any) -> Future:
        if partition is None:
            return manager.send(request)
        known = manager.cluster.add_topic(partition.topic)
        if not known.is_done:
            self._net.poll(timeout_ms=CONNECT_SECONDS * 1000, future=known)
        leader = manager.cluster.leader_for_partition(partition)
        if leader is None or leader < 0:
            return Future().failure(LeaderNotAvailableError())
        return manager.send(request, node_id=leader)

    def _answer(
        self,
        manager: Any,
        partition: TopicPartition | None,
        request: Any,
        error_in: Callable[[Any], KafkaError | None],
        *,
        asked: Future | None = None,
    ) -> Any:
        """Return the answer to a request, repeated while the broker cannot answer. asked: the first attempt."""
        deadline = time.monotonic() + self._patience
        while True:
            future = asked or self._ask(manager, partition, request)
            self._net.poll(timeout_ms=max(deadline - time.monotonic(), 0.001) * 1000, future=future)
            if not future.is_done:
                error: KafkaError | None = KafkaTimeoutError()
            else:
                error = future.exception if future.failed() else error_in(future.value)
            if error is None:
                return future.value
            where = f"{partition.topic}[{partition.partition}]: " if partition else ""
            if not (error.retriable or isinstance(error, OutOfOrderSequenceNumberError)):
                raise DeliveryError(f"{where}{request.name} failed: {error}") from error
            if time.monotonic() > deadline:
                raise DeliveryError(
                    f"{where}{request.name} failed for {self._patience:g} s, most recently with: {error}. Look at the "
                    "broker with: searchloop status"
                ) from error
            asked = None
            self._net.poll(timeout_ms=RETRY_SECONDS * 1000)
            self._net.poll(timeout_ms=CONNECT_SECONDS * 1000, future=manager.cluster.request_update())


class RawWriter:
    """Writes records to partitions in batches of `BATCH_BYTES`; the records are safe after `flush`."""

    def __init__(self, log: RawLog, *, producer_id: int, producer_epoch: int) -> None:
        self._log = log
        self._producer = {"producer_id": producer_id, "producer_epoch": producer_epoch}
        self._partition: TopicPartition | None = None
        self._batch = BatchBuilder()
        self._sequences: dict[TopicPartition, int] = {}
        self._in_flight: deque[tuple[TopicPartition, bytes, Future]] = deque()

    def append(self, partition: TopicPartition, timestamp_ms: int, body: bytes) -> None:
        """Add a record at the end of a partition. Raises DeliveryError if an earlier one could not be written."""
        if partition != self._partition or self._batch.bytes + len(body) > BATCH_BYTES:
            self._send()
            self._partition = partition
        self._batch.append(timestamp_ms, body)

    def flush(self) -> None:
        """Wait until every record is acknowledged. Raises DeliveryError if one cannot be written."""
        self._send()
        while self._in_flight:
            self._log.settle(*self._in_flight.popleft())

    def _send(self) -> None:
        if self._partition is None or not self._batch.records:
            return
        sequence = self._sequences.get(self._partition, 0)
        batch = self._batch.build(**self._producer, sequence=sequence)
        self._sequences[self._partition] = sequence + self._batch.records
        self._batch = BatchBuilder()
        if len(self._in_flight) >= IN_FLIGHT_MAX:
            self._log.settle(*self._in_flight.popleft())
        self._in_flight.append((self._partition, batch, self._log.produce(self._partition, batch)))


def _fetch(partition: TopicPartition, offset: int) -> Any:
    topic = FetchRequest.FetchTopic
    wanted = topic.FetchPartition(
        partition=partition.partition,
        current_leader_epoch=-1,
        fetch_offset=offset,
        last_fetched_epoch=-1,
        log_start_offset=-1,
        partition_max_bytes=FETCH_BYTES,
    )
    return FetchRequest(
        max_wait_ms=FETCH_WAIT_MS,
        min_bytes=1,
        max_bytes=FETCH_BYTES,
        isolation_level=0,
        session_id=0,
        session_epoch=-1,
        topics=[topic(topic=partition.topic, partitions=[wanted])],
        forgotten_topics_data=[],
        rack_id="",
        min_version=4,
        max_version=12,  # From 13 on, requests name topics by ids.
    )


def _fetch_error(answer: Any) -> KafkaError | None:
    if answer.error_code:
        return _error(answer.error_code)
    found = answer.responses[0].partitions[0]
    if not found.error_code and next_offset(bytes(found.records or b"")) is None:
        return KafkaTimeoutError("no record came")
    return _error(found.error_code)


def _produce(partition: TopicPartition, batch: bytes) -> Any:
    topic = ProduceRequest.TopicProduceData
    content = topic.PartitionProduceData(index=partition.partition, records=batch)
    return ProduceRequest(
        transactional_id=None,
        acks=-1,
        timeout_ms=30_000,
        topic_data=[topic(name=partition.topic, partition_data=[content])],
        min_version=3,
        max_version=9,
    )


def _produce_error(answer: Any) -> KafkaError | None:
    error = _error(answer.responses[0].partition_responses[0].error_code)
    return None if isinstance(error, DuplicateSequenceNumberError) else error


def _error(code: int) -> KafkaError | None:
    kind = for_code(code)
    return None if kind is NoError else kind()
