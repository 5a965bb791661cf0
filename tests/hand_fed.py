"""A run on a broker that a test feeds by hand: one worker of it works, and the test is learner, user and reader."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from streams.clients import connect_producer, create_topics, partitions_of
from streams.codec import decode
from streams.delivery import DeliverySettings, Outbox
from streams.kafka_settings import KafkaSettings
from streams.posts import Post
from streams.ranges import log_bounds, read_range
from streams.stopping import Stop
from streams.topics import topic_name

DELIVERY = DeliverySettings()


class Run:
    """A run's topics, what stands in them, and a worker that works until enough stands there."""

    def __init__(self, kafka: KafkaSettings, name: str) -> None:
        self.kafka, self.name = kafka, name
        create_topics(kafka, name)
        self.outbox = Outbox(connect_producer(kafka, client_id="test"), name, stage="test", settings=DELIVERY)

    def events(self, kind: str) -> list[object]:
        bounds = log_bounds(self.kafka, partitions_of(self.kafka, [topic_name(self.name, kind)]))
        return [
            decode(record.value)
            for partition, (first, end) in bounds.items()
            for record in read_range(self.kafka, partition, first, end, client_id="test")
        ]

    def until(self, work: Callable[[Stop], None], kind: str, count: int) -> list[object]:
        """Let a worker work until a topic holds so many events, and return them; raises what the worker raises."""
        stop, failed = Stop(), list[BaseException]()

        def body() -> None:
            try:
                work(stop)
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=body, daemon=True)
        thread.start()
        try:
            found = self.wait_for(kind, count, unless=lambda: bool(failed))
        finally:
            stop.set()
            thread.join(30)
        if failed:
            raise failed[0]
        return found

    def wait_for(self, kind: str, count: int, *, unless: Callable[[], bool] = lambda: False) -> list[object]:
        """Wait until a topic holds so many events, or `unless` holds, and return them."""
        deadline = time.monotonic() + 60
        while len(found := self.events(kind)) < count and not unless():
            assert time.monotonic() < deadline, f"{len(found)} of {count} in {kind}"
            time.sleep(0.1)
        return found

    def post(self, member: str, stop: Stop) -> Post:
        return Post(run=self.name, member=member, kafka=self.kafka, delivery=DELIVERY, stop=stop)
