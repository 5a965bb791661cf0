"""Records on a real broker: in order, acknowledged, buried whole, fenced, and never silently skipped."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import ClassVar

import pytest
from kafka import TopicPartition
from kafka.errors import CommitFailedError
from kafka.structs import ConsumerGroupMetadata, MemberState, OffsetAndMetadata

from streams.clients import connect_admin, connect_consumer, connect_group_consumer, connect_producer, create_topics
from streams.clock import now_ms
from streams.codec import decode
from streams.delivery import DeliverySettings, Outbox, commit, decode_or_bury, paused, poll, with_retries
from streams.errors import DeliveryError, TransientError
from streams.events import DeadLetter, Request
from streams.kafka_settings import KafkaSettings
from streams.lag import end_offsets, stage_lags
from streams.records import Received
from streams.stopping import Stop
from streams.topics import topic_name
from tests.outboxes import opened_outbox

DELIVERY = DeliverySettings(retry_first_seconds=0.01, retry_pause_seconds_max=0.05, retry_seconds_max=0.2)
names = itertools.count()


@pytest.fixture
def kafka(local_services: object) -> KafkaSettings:
    return KafkaSettings(bootstrap=local_services.kafka, partitions=2)  # type: ignore[attr-defined]


@pytest.fixture
def run(kafka: KafkaSettings, unique_name: str) -> str:
    create_topics(kafka, unique_name)
    return unique_name


@pytest.fixture
def outbox(kafka: KafkaSettings, run: str) -> Iterator[Outbox]:
    with opened_outbox(kafka, run, stage="generator", settings=DELIVERY) as outbox:
        yield outbox


def request(run: str, number: int) -> Request:
    return Request(request_id=str(number), run=run, query_id="q", query="x", index="i-1")


def read_all(consumer: object, count: int, deadline: Callable[[], bool]) -> list[Received]:
    records: list[Received] = []
    while len(records) < count and not deadline():
        records += poll(consumer, DELIVERY)  # type: ignore[arg-type]
    return records


def limit(seconds: float = 30) -> Callable[[], bool]:
    timer = threading.Event()
    threading.Timer(seconds, timer.set).start()
    return timer.is_set


def test_records_keep_their_order_and_a_group_goes_on_where_it_committed(
    kafka: KafkaSettings, run: str, outbox: Outbox
) -> None:
    for number in range(20):
        outbox.send(request(run, number), partition=0)
    outbox.flush()
    topic = topic_name(run, "requests")
    first = connect_group_consumer(kafka, topic, group=f"{run}.generator", member="w", records_max=5)
    records = poll_some(first)
    commit(first, records)
    done = len(records)
    assert [r.position.offset for r in records] == list(range(done))
    assert stage_lags(kafka, run)[0].records == 20 - done
    # As after a kill -9: nobody says goodbye, and a worker of the same name takes its partitions back at once.
    second = connect_group_consumer(kafka, topic, group=f"{run}.generator", member="w", records_max=5)
    again = poll_some(second)
    assert again[0].position.offset == done
    with pytest.raises(DeliveryError, match="another worker named 'w'"):
        while True:
            poll(first, DELIVERY)
            commit(first, records)
    second.close()


def poll_some(consumer: object) -> list[Received]:
    deadline = limit()
    while not deadline():
        if records := poll(consumer, DELIVERY, records_max=5):  # type: ignore[arg-type]
            return records
    return []


def test_what_is_no_event_is_buried_whole_and_the_stream_moves_on(
    kafka: KafkaSettings, run: str, outbox: Outbox
) -> None:
    producer = connect_producer(kafka, client_id="stranger")
    topic = topic_name(run, "requests")
    headers = [("who", b"\x00\xff")]
    producer.send(topic, value=b"\xff not json", key=b"k", headers=headers, partition=0)
    producer.send(topic, value=None, key=b"tombstone", partition=0)
    producer.flush()
    producer.close()
    outbox.send(request(run, 1), partition=0)
    outbox.flush()
    source = connect_consumer(kafka, {TopicPartition(topic, 0): None}, client_id="t", records_max=10)
    good = decode_or_bury(read_all(source, 3, limit()), Request, outbox)
    outbox.flush()
    assert [event.request_id for _, event in good] == ["1"]
    letters = connect_consumer(
        kafka, {TopicPartition(topic_name(run, "dead-letters"), 0): None}, client_id="t", records_max=10
    )
    buried = [decode(record.value) for record in read_all(letters, 2, limit())]
    assert all(isinstance(letter, DeadLetter) for letter in buried)
    first, second = (letter for letter in buried if isinstance(letter, DeadLetter))
    assert (first.value, first.key, first.headers) == (b"\xff not json", b"k", (("who", b"\x00\xff"),))
    assert (first.source.offset, second.source.offset, second.value) == (0, 1, None)
    assert "not an event" in first.error
    source.close()
    letters.close()


def test_an_offset_that_retention_has_taken_stops_loudly(kafka: KafkaSettings, run: str, outbox: Outbox) -> None:
    for number in range(5):
        outbox.send(request(run, number), partition=0)
    outbox.flush()
    partition = TopicPartition(topic_name(run, "requests"), 0)
    admin = connect_admin(kafka)
    admin.delete_records({partition: 4})
    admin.close()
    consumer = connect_consumer(kafka, {partition: 1}, client_id="t", records_max=10)
    with pytest.raises(DeliveryError, match="no longer holds the offsets"):
        read_all(consumer, 1, limit())
    consumer.close()


@pytest.mark.parametrize("seconds", [-3600, 86_400])
def test_a_worker_whose_clock_is_wrong_can_write(kafka: KafkaSettings, run: str, outbox: Outbox, seconds: int) -> None:
    topic, moment_ms = topic_name(run, "requests"), now_ms() + seconds * 1000
    outbox.forward(topic=topic, partition=0, key=None, value=b"late or early", timestamp_ms=moment_ms)
    outbox.flush()
    consumer = connect_consumer(kafka, {TopicPartition(topic, 0): 0}, client_id="t", records_max=10)
    assert read_all(consumer, 1, limit())[0].timestamp_ms == moment_ms
    consumer.close()


def test_a_transient_failure_is_tried_again_and_past_the_limit_given_up(
    kafka: KafkaSettings, run: str, outbox: Outbox
) -> None:
    partition = TopicPartition(topic_name(run, "requests"), 0)
    consumer = connect_consumer(kafka, {partition: None}, client_id="t", records_max=10)
    tries = itertools.count(1)

    def third_time() -> str:
        if next(tries) < 3:
            raise TransientError("down")
        return "scored"

    def never() -> str:
        next(tries)
        raise TransientError("still down")

    def give_up(error: TransientError, attempts: int) -> str:
        return f"{error}, {attempts} times"

    assert with_retries(third_time, give_up, consumer, Stop(), DELIVERY) == "scored"
    tries = itertools.count(0)
    given_up = with_retries(never, give_up, consumer, Stop(), DELIVERY)
    assert (attempts := next(tries)) > 2
    assert given_up == f"still down, {attempts} times"
    assert consumer.paused() == set()
    stopped = Stop()
    stopped.set()
    assert with_retries(never, give_up, consumer, stopped, DELIVERY) is None
    consumer.close()


class FakeRebalancedConsumer:
    """A consumer to which a poll brings another partition, together with its first records."""

    config: ClassVar = {"group_id": "run.generator"}

    def __init__(self) -> None:
        self.held = {TopicPartition("t", 0)}
        self.stopped: set[TopicPartition] = set()
        self.sought: dict[TopicPartition, int] = {}

    def assignment(self) -> set[TopicPartition]:
        return set(self.held)

    def pause(self, *partitions: TopicPartition) -> None:
        self.stopped |= set(partitions)

    def resume(self, *partitions: TopicPartition) -> None:
        self.stopped -= set(partitions)

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self.sought[partition] = offset

    def group_metadata(self) -> ConsumerGroupMetadata:
        return ConsumerGroupMetadata(state=MemberState.STABLE)

    def poll(self, timeout_ms: int, max_records: int | None) -> dict[TopicPartition, list[SimpleNamespace]]:
        new = TopicPartition("t", 1)
        self.held.add(new)
        return {} if new in self.stopped else {new: [SimpleNamespace(offset=7), SimpleNamespace(offset=8)]}


def test_records_of_a_partition_that_comes_while_paused_are_given_back() -> None:
    consumer = FakeRebalancedConsumer()
    with paused(consumer) as keep_alive:
        keep_alive()
        assert consumer.sought == {TopicPartition("t", 1): 7}
        assert consumer.stopped == consumer.held
        keep_alive()
    assert consumer.sought == {TopicPartition("t", 1): 7}
    assert not consumer.stopped


def test_a_worker_that_its_group_has_given_up_stops_and_says_why(
    kafka: KafkaSettings, run: str, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox.send(request(run, 1), partition=0)
    outbox.flush()
    consumer = connect_group_consumer(kafka, topic_name(run, "requests"), group=run, member="w", records_max=5)
    records = poll_some(consumer)

    def gone(_: object) -> None:
        raise CommitFailedError

    monkeypatch.setattr(consumer, "commit", gone)
    with pytest.raises(DeliveryError, match="continued without this worker"):
        commit(consumer, records)
    consumer.close()


class FakeSlowGroup:
    """A consumer whose coordinator answers only after a second; a poll that is shorter finds nothing, ever."""

    def __init__(self, group: str | None) -> None:
        self.config = {"group_id": group}
        self.held: set[TopicPartition] = set()
        self.polls: list[int] = []

    def assignment(self) -> set[TopicPartition]:
        return self.held

    def poll(self, timeout_ms: int, max_records: int) -> dict[TopicPartition, list[object]]:
        self.polls.append(timeout_ms)
        if timeout_ms >= 1000:
            self.held = {TopicPartition("t", 0)}
        return {}


def test_a_member_without_partitions_waits_long_enough_to_get_them() -> None:
    delivery = DeliverySettings(poll_timeout_seconds=0.2)
    member = FakeSlowGroup("run.environment")
    poll(member, delivery)
    poll(member, delivery)
    assert member.held and member.polls == [5000, 200]
    alone = FakeSlowGroup(None)
    poll(alone, delivery)
    assert alone.polls == [200]


def test_an_offset_once_committed_is_never_read_again_even_by_another_group_member(
    kafka: KafkaSettings, run: str, outbox: Outbox
) -> None:
    for number in range(10):
        outbox.send(request(run, number), partition=number % 2)
    outbox.flush()
    topic = topic_name(run, "requests")
    assert sum(end_offsets(kafka, [TopicPartition(topic, 0), TopicPartition(topic, 1)]).values()) == 10
    first = connect_group_consumer(kafka, topic, group=f"{run}.generator", member="a", records_max=100)
    records = read_all(first, 10, limit())
    assert len({(r.position.partition, r.position.offset) for r in records}) == 10
    first.commit({TopicPartition(topic, p): OffsetAndMetadata(5, "", -1) for p in (0, 1)})
    first.close()
    second = connect_group_consumer(kafka, topic, group=f"{run}.generator", member="b", records_max=100)
    outbox.send(request(run, 10), partition=0)
    outbox.flush()
    assert [r.position.offset for r in read_all(second, 1, limit())] == [5]
    second.close()
