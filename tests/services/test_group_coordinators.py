"""A coordinator that has moved: questions about a group find the new one, whatever the client remembers."""

from __future__ import annotations

from kafka import TopicPartition

from services.local import Endpoints
from streams.clients import committed_offsets, connect_admin, connect_group_consumer, connect_producer, create_topics
from streams.delivery import DeliverySettings, Outbox, commit, poll
from streams.group_ownership import require_own_group
from streams.kafka_settings import KafkaSettings
from streams.topics import topic_name
from tests.kafka_cluster import wait_until


def test_a_remembered_coordinator_that_is_none_any_more_is_asked_for_anew(
    local_services: Endpoints, unique_name: str
) -> None:
    kafka = KafkaSettings(bootstrap=local_services.kafka, partitions=1)
    create_topics(kafka, unique_name)
    topic, group = topic_name(unique_name, "requests"), f"{unique_name}.generator"
    producer = connect_producer(kafka, client_id="test")
    outbox = Outbox(producer, unique_name, stage="test", settings=DeliverySettings())
    outbox.forward(topic=topic, partition=0, key=None, value=b"x")
    outbox.flush()
    producer.close()
    consumer = connect_group_consumer(kafka, topic, group=group, member="w", records_max=10)
    commit(consumer, wait_until(lambda: poll(consumer, DeliverySettings()), "the record"))
    consumer.close()
    admin = connect_admin(kafka)
    try:
        assert committed_offsets(admin, group) == {TopicPartition(topic, 0): 1}
        remembered = admin._manager.cluster._coordinators
        assert remembered, "the library remembers coordinators, as the workaround expects"
        for key in remembered:
            remembered[key] = 4_711
        assert committed_offsets(admin, group) == {TopicPartition(topic, 0): 1}
        for key in remembered:
            remembered[key] = 4_711
        require_own_group(admin, group, [topic], committed_offsets(admin, group))
    finally:
        admin.close()
