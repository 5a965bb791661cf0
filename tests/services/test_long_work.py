"""Work that outlasts every patience of its consumer group: done once, committed once, given up when told to stop."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from kafka import TopicPartition
from kafka.structs import ConsumerGroupMetadata, MemberState

from search_env.environments import Inputs
from search_env.workers import run_environment
from streams.clients import (
    committed_offsets,
    connect_admin,
    connect_consumer,
    connect_group_consumer,
    connect_producer,
    create_topics,
)
from streams.codec import decode
from streams.delivery import DeliverySettings, Outbox, commit, poll
from streams.errors import DeliveryError
from streams.events import Outcome, Reward
from streams.kafka_settings import KafkaSettings
from streams.posts import Post
from streams.records import Received
from streams.stopping import Stop
from streams.topics import topic_name
from streams.working import Working
from tests.stored_events import generation

INTERVAL_SECONDS = 2.0
DELIVERY = DeliverySettings(records_max=4, stall_seconds=1)
GROUPS = 4
DEADLINE_SECONDS = 60.0


class SlowEnvironment:
    """Takes its time, and says how often it was asked to score each group."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.asked: Counter[str] = Counter()
        self.working = threading.Event()
        self.go_on = threading.Event()

    def score_many(self, generations: Inputs) -> list[Reward]:
        self.asked.update(event.group_id for event, _, _ in generations)
        self.working.set()
        self.go_on.wait(self.seconds)
        return [
            Reward(
                group_id=event.group_id,
                generation=event,
                source=source,
                content_sha256=digest,
                outcomes=tuple(Outcome(status="scored", valid=True, reward=1.0) for _ in event.completions),
                index="i-1",
                relevance_model="none",
                reward_sha256="r",
                made_at_ms=event.made_at_ms,
            )
            for event, source, digest in generations
        ]

    def failed_many(self, generations: Inputs, *, error: str) -> list[Reward]:
        raise AssertionError(error)


@pytest.fixture
def kafka(local_services: object) -> KafkaSettings:
    return KafkaSettings(
        bootstrap=local_services.kafka,  # type: ignore[attr-defined]
        partitions=2,
        session_timeout_seconds=6,
        poll_interval_seconds_max=INTERVAL_SECONDS,
    )


@pytest.fixture
def run(kafka: KafkaSettings, unique_name: str) -> str:
    create_topics(kafka, unique_name)
    producer = connect_producer(kafka, client_id="test")
    outbox = Outbox(producer, unique_name, stage="generator", settings=DELIVERY)
    for number in range(GROUPS):
        outbox.send(generation(number), partition=number % 2)
    outbox.flush()
    producer.close()
    return unique_name


@contextmanager
def environment_at_work(run: str, kafka: KafkaSettings, environment: SlowEnvironment, member: str) -> Iterator[Stop]:
    stop = Stop()
    failed: list[BaseException] = []

    def body() -> None:
        try:
            run_environment(Post(run=run, member=member, kafka=kafka, delivery=DELIVERY, stop=stop), environment)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    try:
        yield stop
    finally:
        stop.set()
        thread.join(30)
    assert not thread.is_alive() and not failed, failed


def committed(kafka: KafkaSettings, run: str) -> int:
    admin = connect_admin(kafka)
    try:
        return sum(committed_offsets(admin, f"{run}.environment").values())
    finally:
        admin.close()


def rewards(kafka: KafkaSettings, run: str) -> list[str]:
    topic = topic_name(run, "rewards")
    places: dict[TopicPartition, int | None] = dict.fromkeys([TopicPartition(topic, 0), TopicPartition(topic, 1)])
    consumer = connect_consumer(kafka, places, client_id="t", records_max=100)
    try:
        ends = consumer.end_offsets(list(places))
        found: list[Received] = []
        while len(found) < sum(ends.values()):
            found += poll(consumer, DELIVERY)
        events = [decode(record.value) for record in found]
        return sorted(event.group_id for event in events if isinstance(event, Reward))
    finally:
        consumer.close()


def until(what: str, condition: object) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def expected() -> list[str]:
    return sorted(generation(number).group_id for number in range(GROUPS))


def test_work_of_four_times_the_poll_interval_is_done_once_and_committed_once(
    kafka: KafkaSettings, run: str, caplog: pytest.LogCaptureFixture
) -> None:
    environment = SlowEnvironment(4 * INTERVAL_SECONDS)
    with environment_at_work(run, kafka, environment, "a"):
        until("it commits", lambda: committed(kafka, run) == GROUPS)
    assert set(environment.asked.values()) == {1}
    assert rewards(kafka, run) == expected()
    assert any(
        "no progress for" in record.message and "waiting for the scores of" in record.message
        for record in caplog.records
    )


def test_a_second_worker_that_joins_in_the_middle_of_the_work_repeats_nothing_that_is_kept(
    kafka: KafkaSettings, run: str
) -> None:
    first, second = SlowEnvironment(DEADLINE_SECONDS), SlowEnvironment(0)
    with environment_at_work(run, kafka, first, "a"):
        assert first.working.wait(DEADLINE_SECONDS)
        with environment_at_work(run, kafka, second, "b"):
            # Half of the partitions go to it, while the first one still works on what lies in both.
            until("the second one works", second.working.is_set)
            first.go_on.set()
            until("both commit", lambda: committed(kafka, run) == GROUPS)
    assert rewards(kafka, run) == expected()
    assert sum(second.asked.values()) == GROUPS // 2


def test_work_that_is_asked_to_stop_is_given_up_and_nothing_of_it_is_committed(kafka: KafkaSettings, run: str) -> None:
    environment = SlowEnvironment(DEADLINE_SECONDS)
    with environment_at_work(run, kafka, environment, "a") as stop:
        assert environment.working.wait(DEADLINE_SECONDS)
        stop.set()
        asked = time.monotonic()
    assert time.monotonic() - asked < 5
    environment.go_on.set()
    assert (committed(kafka, run), rewards(kafka, run)) == (0, [])


def test_a_commit_that_comes_too_late_says_which_patience_ended(kafka: KafkaSettings, run: str) -> None:
    consumer = connect_group_consumer(
        kafka, topic_name(run, "generations"), group=f"{run}.environment", member="a", records_max=4
    )
    records: Sequence[Received] = []
    until("it gets records", lambda: records or records.extend(poll(consumer, DELIVERY)))  # type: ignore[attr-defined]
    coordinator = consumer._coordinator
    until("it leaves by itself", lambda: coordinator.need_rejoin())
    with pytest.raises(DeliveryError, match=r"did not poll for 2 s \(kafka\.poll_interval_seconds_max\)"):
        commit(consumer, records)
    consumer.close()


class FakeConsumer:
    """Nothing but what work asks of a consumer."""

    def __init__(self) -> None:
        self.config = {"max_poll_interval_ms": 200}
        self.polls = 0

    def assignment(self) -> set[TopicPartition]:
        return set()

    def group_metadata(self) -> ConsumerGroupMetadata:
        return ConsumerGroupMetadata(state=MemberState.STABLE)

    def pause(self, *_: TopicPartition) -> None: ...
    def resume(self, *_: TopicPartition) -> None: ...
    def poll(self, timeout_ms: int) -> dict[TopicPartition, list[object]]:
        self.polls += 1
        return {}


def test_an_error_in_the_work_comes_out_where_the_work_was_asked_for() -> None:
    work = Working(FakeConsumer(), Stop())

    def fail() -> None:
        raise TimeoutError("of the work itself")

    with pytest.raises(TimeoutError, match="of the work itself"):
        work(fail)
    assert work(lambda: threading.current_thread().name) == "searchloop-work"
    work.close()
