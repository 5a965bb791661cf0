"""Three brokers, three replicas: what is acknowledged is there exactly once, whichever of them dies or is cut off."""

from __future__ import annotations

import itertools
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from kafka import TopicPartition

from streams.clients import connect_group_consumer, connect_producer, create_topics
from streams.delivery import DeliverySettings, Outbox, commit, poll
from streams.errors import DeliveryError
from streams.kafka_settings import KafkaSettings
from streams.ranges import log_bounds, read_range
from streams.topics import topic_name
from tests.kafka_cluster import NODES, KafkaCluster, kafka_cluster, wait_until

RUN = "three"
TOPIC = topic_name(RUN, "requests")
PARTITIONS = [TopicPartition(TOPIC, number) for number in range(len(NODES))]
DELIVERY = DeliverySettings(records_max=64, ack_timeout_seconds=60)
AT_ONCE = 6
KILLS = 2  # `make faults` gives the larger dose, with the whole loop.
WRITE_SECONDS = 0.02


class Traffic:
    """A worker that writes numbers, and one that reads them; both end with an error as a worker does, and begin anew.

    acknowledged: the numbers by partition, in their order. seen: what the reader was given, by partition, in order, as
    offset and number. errors: what ended a worker, a line each.
    """

    def __init__(self, kafka: KafkaSettings) -> None:
        self._kafka = kafka
        self._written, self._read_out = threading.Event(), threading.Event()
        self.acknowledged: dict[int, list[int]] = {each.partition: [] for each in PARTITIONS}
        self.seen: dict[int, list[tuple[int, int]]] = {each.partition: [] for each in PARTITIONS}
        self.errors: list[str] = []
        self.crashes: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._worker, args=(work, stop))
            for work, stop in ((self._write, self._written), (self._read, self._read_out))
        ]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Stop the writer, and the reader when it has read what is acknowledged: on a busy machine it always lags."""
        self._written.set()
        self._threads[0].join()
        wait_until(self.all_seen, "the reader")
        self.stop()

    def stop(self) -> None:
        """Stop both where they are."""
        self._written.set()
        self._read_out.set()
        for thread in self._threads:
            thread.join()

    def all_seen(self) -> bool:
        """Return whether the reader has been given every number that is acknowledged by now."""
        wanted = {part: set(numbers) for part, numbers in self.acknowledged.items()}
        return all(numbers <= {number for _, number in self.seen[part]} for part, numbers in wanted.items())

    def wait_for_more(self) -> float:
        """Return how many seconds it takes until every partition has taken more records."""
        began, before = time.monotonic(), {part: len(numbers) for part, numbers in self.acknowledged.items()}
        wait_until(
            lambda: all(len(self.acknowledged[part]) > count for part, count in before.items()),
            "more on each partition",
        )
        return time.monotonic() - began

    def _worker(self, work: Callable[[], None], stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                work()
            except DeliveryError as error:
                self.errors.append(f"{work.__name__}: {error}")
            except BaseException as error:
                self.crashes.append(error)
                raise

    def _write(self) -> None:
        producer = connect_producer(self._kafka, client_id="writer")
        outbox = Outbox(producer, RUN, stage="requests", settings=DELIVERY)
        try:
            # What was not acknowledged is not written again here, so a number that is there twice was doubled by Kafka.
            while not self._written.is_set():
                numbers = [next(NUMBERS) for _ in range(AT_ONCE)]
                for number in numbers:
                    part = number % len(PARTITIONS)
                    outbox.forward(topic=TOPIC, partition=part, key=None, value=str(number).encode())
                outbox.flush()
                for number in numbers:
                    self.acknowledged[number % len(PARTITIONS)].append(number)
                self._written.wait(WRITE_SECONDS)
        finally:
            producer.close()

    def _read(self) -> None:
        consumer = connect_group_consumer(
            self._kafka, TOPIC, group=f"{RUN}.reader", member="reader", records_max=DELIVERY.records_max
        )
        try:
            while not self._read_out.is_set():
                records = poll(consumer, DELIVERY)
                for record in records:
                    self.seen[record.position.partition].append((record.position.offset, int(record.value or b"-1")))
                commit(consumer, records)
        finally:
            consumer.close()


NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def cluster() -> Iterator[KafkaCluster]:
    with tempfile.TemporaryDirectory(prefix="searchloop-three-") as home, kafka_cluster(Path(home)) as started:
        create_topics(started.settings, RUN)
        started.wait_in_sync([TOPIC])
        yield started


@pytest.fixture
def traffic(cluster: KafkaCluster) -> Iterator[Traffic]:
    flowing = Traffic(cluster.settings)
    try:
        flowing.wait_for_more()
        yield flowing
    finally:
        cluster.make_whole()
        flowing.stop()


def require_exactly_once(cluster: KafkaCluster, traffic: Traffic) -> None:
    """Every acknowledged number is in the log once, in order, and the reader was given it in order without a gap."""
    traffic.end()
    assert not traffic.crashes
    for item, (start, end) in log_bounds(cluster.settings, PARTITIONS).items():
        log = [int(record.value or b"-1") for record in read_range(cluster.settings, item, start, end, client_id="t")]
        assert [number for number, count in Counter(log).items() if count > 1] == [], "doubled"
        acknowledged = traffic.acknowledged[item.partition]
        assert set(acknowledged) <= set(log), "lost"
        kept = set(acknowledged)
        assert [number for number in log if number in kept] == acknowledged, "in another order"
        first = dict(traffic.seen[item.partition][::-1])
        assert sorted(first) == list(range(min(first), max(first) + 1)), "the reader has left one out"
        assert all(log[offset - start] == number for offset, number in first.items())


def test_every_acknowledged_record_is_there_once_after_leaders_were_killed(
    cluster: KafkaCluster, traffic: Traffic
) -> None:
    for item in PARTITIONS[:KILLS]:
        leader = cluster.leader(item)
        cluster.kill(leader)
        traffic.wait_for_more()
        cluster.start(leader)
        cluster.wait_in_sync([TOPIC])
    # Leadership goes back where it belongs, cleanly: nobody notices.
    before = len(traffic.errors)
    cluster.elect_preferred()
    wait_until(lambda: len({cluster.leader(item) for item in PARTITIONS}) == len(NODES), "the preferred leaders")
    traffic.wait_for_more()
    assert traffic.errors[before:] == []
    require_exactly_once(cluster, traffic)


def test_with_one_broker_left_nothing_is_acknowledged_and_a_worker_says_why_and_goes_on_later(
    cluster: KafkaCluster, traffic: Traffic
) -> None:
    alone, *others = NODES
    for node in others:
        cluster.kill(node)
    time.sleep(1)  # What was on its way may still be acknowledged.
    count = sum(map(len, traffic.acknowledged.values()))
    impatient = msgspec.structs.replace(DELIVERY, ack_timeout_seconds=3)
    producer = connect_producer(cluster.settings, client_id="impatient")
    outbox = Outbox(producer, RUN, stage="requests", settings=impatient)
    with pytest.raises(DeliveryError, match=r"requests: .*") as raised:
        for item in PARTITIONS:
            outbox.forward(topic=TOPIC, partition=item.partition, key=None, value=b"-1")
        outbox.flush()
    assert "\n" not in str(raised.value)
    began = time.monotonic()
    producer.close()
    assert time.monotonic() - began < 15, "a worker that stops waits for brokers that are away"
    assert sum(map(len, traffic.acknowledged.values())) == count, f"acknowledged by {alone} alone"
    for node in others:
        cluster.start(node)
    cluster.wait_in_sync([TOPIC])
    traffic.wait_for_more()
    require_exactly_once(cluster, traffic)


def test_a_leader_that_is_cut_off_from_its_followers_acknowledges_nothing_that_is_lost(
    cluster: KafkaCluster, traffic: Traffic
) -> None:
    leader = cluster.leader(PARTITIONS[0])
    if cluster.can_cut:
        # Clients still reach it, and it goes on taking itself for the leader until the others have another one.
        cluster.cut(leader)
    else:
        cluster.freeze(leader)
    wait_until(lambda: cluster.leader(PARTITIONS[0]) != leader, "another leader")
    traffic.wait_for_more()
    assert cluster.leader(PARTITIONS[0]) != leader, "it leads again while it is cut off"
    if cluster.can_cut:
        cluster.mend(leader)
    else:
        cluster.thaw(leader)
    cluster.wait_in_sync([TOPIC])
    require_exactly_once(cluster, traffic)
