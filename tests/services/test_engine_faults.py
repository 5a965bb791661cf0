"""An environment whose search engine misbehaves: every reward is the true one, or failed and among the dead letters."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from kafka import TopicPartition

from search_env.engine.client import ElasticsearchSettings, connect
from search_env.engine.index import build_index
from search_env.engine.searching import RetrievalSettings, Searcher
from search_env.leser.environment import LeserEnvironment, LeserEnvironmentSettings
from search_env.workers import run_environment
from streams.clients import connect_consumer, connect_producer, create_topics
from streams.codec import decode
from streams.delivery import DeliverySettings, Outbox, poll
from streams.events import DeadLetter, Generation, Position, Reward
from streams.kafka_settings import KafkaSettings
from streams.posts import Post
from streams.stopping import Stop
from streams.topics import topic_name
from tests.fault_proxy import FaultProxy, Mode, fault_proxy
from tests.services.test_environment import TeacupsAreMugs, answer, generation, inputs, products

GROUPS = 12
SECONDS_MAX = 60.0
QUICK = RetrievalSettings(batch_searches=7, item_retries=2, item_pause_seconds=0.01)


@pytest.fixture(scope="module")
def index(local_services: object) -> Iterator[str]:
    client = connect(ElasticsearchSettings(url=local_services.elasticsearch))  # type: ignore[attr-defined]
    version = build_index(client, "test-engine-faults", products(), installation="test")
    yield version.name
    client.indices.delete(index=version.name)
    client.close()


def group(number: int) -> Generation:
    texts = (answer("teacup"), answer("cup", f"kitchen{number}"), answer(), "no list")
    return generation(f"red mug {number}", *texts, number=number)


@contextmanager
def environment(url: str, index: str) -> Iterator[LeserEnvironment]:
    settings = ElasticsearchSettings(url=url, retries_max=1, backoff_first_seconds=0.01, timeout_seconds=5.0)
    client = connect(settings)
    retriever = Searcher(client, index, QUICK)
    yield LeserEnvironment(retriever, TeacupsAreMugs(), LeserEnvironmentSettings())
    retriever.close()
    client.close()


def worked(
    kafka: KafkaSettings, run: str, proxy: FaultProxy, index: str, delivery: DeliverySettings, until: Callable[[], None]
) -> tuple[list[Reward], list[DeadLetter]]:
    """Let an environment score GROUPS groups behind the proxy; `until` runs beside it."""
    create_topics(kafka, run)
    producer = connect_producer(kafka, client_id="test")
    outbox = Outbox(producer, run, stage="generator", settings=delivery)
    for number in range(GROUPS):
        outbox.send(group(number))
    outbox.flush()
    producer.close()
    stop = Stop()
    with environment(proxy.url, index) as scorer:
        post = Post(run=run, member="environment-1", kafka=kafka, delivery=delivery, stop=stop)
        worker = threading.Thread(target=run_environment, args=(post, scorer))
        worker.start()
        try:
            until()
            places = {TopicPartition(topic_name(run, kind), 0): 0 for kind in ("rewards", "dead-letters")}
            consumer = connect_consumer(kafka, dict(places), client_id="test", records_max=100)
            deadline = time.monotonic() + SECONDS_MAX
            events: list[object] = []
            while sum(isinstance(event, Reward) for event in events) < GROUPS:
                assert time.monotonic() < deadline, f"{len(events)} answers to {GROUPS} groups"
                events += [decode(record.value) for record in poll(consumer, delivery)]
            consumer.close()
        finally:
            stop.set()
            worker.join()
    return [e for e in events if isinstance(e, Reward)], [e for e in events if isinstance(e, DeadLetter)]


@pytest.mark.parametrize("mode", ["down", "slow", "busy", "partial", "reset", "truncated"])
def test_a_search_engine_that_misbehaves_makes_no_false_reward(
    local_services: object, unique_name: str, index: str, mode: Mode
) -> None:
    kafka = KafkaSettings(bootstrap=local_services.kafka, partitions=1)  # type: ignore[attr-defined]
    url = local_services.elasticsearch  # type: ignore[attr-defined]
    delivery = DeliverySettings(records_max=3, retry_first_seconds=0.05, retry_pause_seconds_max=0.2)
    with fault_proxy(url, share=0.3, delay_seconds=0.1) as proxy:
        proxy.mode = mode

        def until() -> None:
            if mode == "down":
                threading.Event().wait(1.0)  # So long it is away.
                proxy.mode = "well"

        rewards, letters = worked(kafka, unique_name, proxy, index, delivery, until)
        assert proxy.searches > 0 and (proxy.harmed > 0 or mode in ("down", "slow"))
    assert letters == []
    with environment(url, index) as undisturbed:
        for reward in rewards:
            ((event, _, digest),) = inputs(reward.generation)
            assert undisturbed.score(event, reward.source, digest) == reward
    assert [reward.source.offset for reward in rewards] == list(range(GROUPS))


def test_an_engine_that_stays_away_fails_its_groups_and_the_letters_say_how_often_it_was_tried(
    local_services: object, unique_name: str, index: str
) -> None:
    kafka = KafkaSettings(bootstrap=local_services.kafka, partitions=1)  # type: ignore[attr-defined]
    delivery = DeliverySettings(
        records_max=GROUPS, retry_first_seconds=0.02, retry_pause_seconds_max=0.05, retry_seconds_max=0.5
    )
    with fault_proxy(local_services.elasticsearch) as proxy:  # type: ignore[attr-defined]
        proxy.mode = "down"
        rewards, letters = worked(kafka, unique_name, proxy, index, delivery, lambda: None)
    assert {outcome.status for reward in rewards for outcome in reward.outcomes} == {"failed"}
    assert {outcome.reward for reward in rewards for outcome in reward.outcomes} == {None}
    topic = topic_name(unique_name, "generations")
    assert {letter.source for letter in letters} == {
        Position(topic=topic, partition=0, offset=number) for number in range(GROUPS)
    }
    assert all(letter.attempts > 2 for letter in letters)
