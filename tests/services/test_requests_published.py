"""A requests topic of which one partition has what another one lacks, on a real broker."""

from __future__ import annotations

from kafka import TopicPartition

from services.local import Endpoints
from streams.clients import connect_admin, connect_producer, create_topics, partitions_of
from streams.delivery import DeliverySettings, Outbox
from streams.events import Request
from streams.kafka_settings import KafkaSettings
from streams.ranges import log_bounds, read_range
from streams.requests import RequestFeed, RequestSequence, request_number
from streams.resending import RESENT
from streams.topics import topic_name


def test_after_a_partial_failure_each_request_is_published_once_and_in_its_partition(
    local_services: Endpoints, unique_name: str
) -> None:
    kafka = KafkaSettings(bootstrap=local_services.kafka, partitions=2)
    create_topics(kafka, unique_name)
    topic = topic_name(unique_name, "requests")
    producer = connect_producer(kafka, client_id="test")
    outbox = Outbox(producer, unique_name, stage="requests", settings=DeliverySettings())
    asked = [Request(request_id="", run="", query_id=f"q{n}", query=f"red {n}", index="i-1") for n in range(7)]
    sequence = RequestSequence(asked, run=unique_name, seed=0)

    def published() -> list[list[int]]:
        bounds = log_bounds(kafka, partitions_of(kafka, [topic]))
        records = [read_range(kafka, item, *bounds[item], client_id="test") for item in sorted(bounds)]
        numbers = [[request_number(record, unique_name) for record in of] for of in records]
        return [[number for number in of if number is not None] for of in numbers]

    for number in (0, 1, 2, 4, 6):  # A batch of the second partition never arrived.
        outbox.send(sequence[number], partition=number % 2)
    outbox.forward(topic=topic, partition=1, key=b"", value=b"{")
    again = [(RESENT, f"{topic}[0]@0".encode())]
    outbox.forward(topic=topic, partition=1, key=b"", value=None, headers=again)
    outbox.flush()
    feed = RequestFeed(sequence, kafka, outbox, unique_name)
    feed.publish_until(5)
    assert published() == [[0, 2, 4, 6], [1, 3, 5]]
    feed.publish_until(9)
    assert published() == [[0, 2, 4, 6, 8], [1, 3, 5, 7]]

    admin = connect_admin(kafka)
    admin.create_partitions({topic: 3})
    admin.close()
    while len(partitions_of(kafka, [topic])) < 3:
        pass
    producer.close()
    producer = connect_producer(kafka, client_id="test")  # A run that is started again.
    outbox = Outbox(producer, unique_name, stage="requests", settings=DeliverySettings())
    RequestFeed(sequence, kafka, outbox, unique_name).publish_until(13)
    assert published() == [[0, 2, 4, 6, 8, 9, 12], [1, 3, 5, 7, 10], [11]]
    bounds = log_bounds(kafka, [TopicPartition(topic, number) for number in range(3)])
    RequestFeed(sequence, kafka, outbox, unique_name).publish_until(13)
    assert log_bounds(kafka, [TopicPartition(topic, number) for number in range(3)]) == bounds
    producer.close()
