"""Nothing of the user's in Kafka is touched: topics and consumer groups that are not ours are refused as they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.structs import OffsetAndMetadata

from services.local import Endpoints
from streams.clients import (
    committed_offsets,
    connect_admin,
    connect_group_consumer,
    connect_producer,
    create_derived_topics,
    create_topics,
    delete_made_topics,
    provisioned,
)
from streams.codec import encode_event
from streams.errors import DeliveryError
from streams.kafka_settings import KafkaSettings
from streams.provisioning import WITNESS, TakenError, look, read_witness
from streams.ranges import log_bounds, read_range
from streams.raw_log import RawLog
from streams.record_batches import body_of
from streams.replay import copy
from streams.stopping import Stop
from streams.topic_plans import plan_topics
from streams.topics import topic_name
from tests.kafka_cluster import wait_until
from tests.stored_events import reward


@pytest.fixture
def kafka(local_services: Endpoints) -> KafkaSettings:
    return KafkaSettings(bootstrap=local_services.kafka, partitions=1)


@pytest.fixture
def admin(kafka: KafkaSettings) -> Iterator[KafkaAdminClient]:
    client = connect_admin(kafka)
    yield client
    client.close()


def make(admin: KafkaAdminClient, name: str, *, partitions: int = 1, **settings: str) -> None:
    """Make a topic as a user would; `_` in a setting's name stands for a dot."""
    configs = {key.replace("_", "."): value for key, value in settings.items()}
    wanted = {name: {"num_partitions": partitions, "replication_factor": 1, "configs": configs}}
    admin.create_topics(wanted, wait_for_metadata=True)


def put(kafka: KafkaSettings, topic: str, *values: bytes) -> None:
    producer = connect_producer(kafka, client_id="test")
    for value in values:
        producer.send(topic, value=value, partition=0)
    producer.flush()
    producer.close()


def ours_of(admin: KafkaAdminClient, run: str) -> set[str]:
    return {name for name in admin.list_topics() if name.startswith(f"{run}.")}


def test_a_topic_with_somebody_elses_records_is_refused_and_nothing_is_made_beside_it(
    kafka: KafkaSettings, admin: KafkaAdminClient, unique_name: str, tmp_path: Path
) -> None:
    topic = topic_name(unique_name, "rewards")
    make(admin, topic, retention_ms="1234567890")
    put(kafka, topic, b"theirs")
    before = look(admin, [topic])
    for folder in (None, tmp_path):
        with pytest.raises(TakenError, match=rf"its topic {topic} holds records; choose another name"):
            create_topics(kafka, unique_name, folder=folder)
    assert ours_of(admin, unique_name) == {topic}
    assert look(admin, [topic]) == before
    assert [record.value for record in read_range(kafka, TopicPartition(topic, 0), 0, 1, client_id="t")] == [b"theirs"]
    assert not (tmp_path / WITNESS).exists()
    # Also where the records themselves are gone: it was in use.
    admin.delete_records({TopicPartition(topic, 0): 1})
    with pytest.raises(TakenError):
        create_topics(kafka, unique_name)


@pytest.mark.parametrize(
    ("kind", "made", "said"),
    [
        ("requests", {"partitions": 1}, r"partitions: expected 2 \(kafka.partitions\), found 1"),
        ("updates", {"partitions": 2}, "partitions: expected 1"),
        ("requests", {"partitions": 2, "cleanup_policy": "compact"}, "cleanup.policy: expected delete"),
        ("requests", {"partitions": 2, "retention_ms": "3600000"}, "retention.ms: expected at least 604800000, or -1"),
        ("updates", {}, r"retention.ms: expected -1 \(forever\), found 604800000"),
        ("rewards", {"partitions": 2, "max_message_bytes": "1048588"}, "max.message.bytes: expected at least 8454144"),
        ("rewards", {"partitions": 2, "min_insync_replicas": "2"}, "min.insync.replicas: expected at most its 1"),
    ],
)
def test_an_empty_topic_with_other_settings_is_refused_by_the_setting(
    kafka: KafkaSettings, admin: KafkaAdminClient, unique_name: str, kind: str, made: dict[str, Any], said: str
) -> None:
    topic = topic_name(unique_name, kind)
    make(admin, topic, **({"max_message_bytes": "20000000"} | made))
    with pytest.raises(DeliveryError, match=f"do not fit: {topic}: {said}.*Change these settings"):
        create_topics(msgspec.structs.replace(kafka, partitions=2), unique_name)
    assert ours_of(admin, unique_name) == {topic}


def test_empty_topics_that_an_administrator_made_are_used_and_the_others_have_as_many_partitions(
    kafka: KafkaSettings, admin: KafkaAdminClient, unique_name: str, tmp_path: Path
) -> None:
    topic = topic_name(unique_name, "requests")
    make(admin, topic, partitions=3, max_message_bytes="20000000")
    before = look(admin, [topic])
    names = create_topics(kafka, unique_name, folder=tmp_path)
    found = look(admin, names)
    assert set(found) == set(names) == ours_of(admin, unique_name)
    assert found[topic] == before[topic]
    counts = {name.rpartition(".")[2]: item.partitions for name, item in found.items()}
    assert counts["requests"] == counts["generations"] == counts["rewards"] == 3 and counts["updates"] == 1
    witness = read_witness(tmp_path)
    assert witness is not None and witness.topics == {name: item.topic_id for name, item in found.items()}


def test_a_run_goes_on_with_the_topics_of_its_witness_and_stops_where_one_was_lost(
    kafka: KafkaSettings, admin: KafkaAdminClient, unique_name: str, tmp_path: Path
) -> None:
    topic, updates = topic_name(unique_name, "requests"), topic_name(unique_name, "updates")
    create_topics(kafka, unique_name, folder=tmp_path)
    put(kafka, topic, b"ours")
    put(kafka, updates, b"ours")
    create_topics(kafka, unique_name, folder=tmp_path)
    # Its owner may keep it for less time, and may have asked for other numbers since.
    other = msgspec.structs.replace(kafka, partitions=2)
    create_topics(other, unique_name, folder=tmp_path)

    # Another run of that name: its folder was removed, and is there again.
    with pytest.raises(TakenError, match="hold records"):
        create_topics(kafka, unique_name, folder=tmp_path / "again")
    # A run of an older searchloop has no witness; that it has learned already speaks for it.
    create_topics(kafka, unique_name, folder=tmp_path / "older", known=True)
    assert read_witness(tmp_path / "older") == read_witness(tmp_path)

    whole = (tmp_path / WITNESS).read_bytes()
    (tmp_path / WITNESS).write_bytes(whole.replace(b'"cluster": "', b'"cluster": "another'))
    with pytest.raises(DeliveryError, match="its topics lie in the Kafka cluster 'another"):
        create_topics(kafka, unique_name, folder=tmp_path)
    (tmp_path / WITNESS).write_bytes(whole[:20])
    with pytest.raises(DeliveryError, match=r"topics.json: expected the ids of the run's topics"):
        create_topics(kafka, unique_name, folder=tmp_path)
    (tmp_path / WITNESS).write_bytes(whole)

    admin.delete_topics([updates])
    with pytest.raises(DeliveryError, match=rf"expected the topic {updates} with its records, but it is gone"):
        create_topics(kafka, unique_name, folder=tmp_path)
    make(admin, updates, max_message_bytes="20000000", retention_ms="-1")
    with pytest.raises(DeliveryError, match=rf"expected the topic {updates} .* deleted and made anew"):
        create_topics(kafka, unique_name, folder=tmp_path)


def test_a_derived_topic_is_made_anew_and_somebody_elses_is_refused(
    kafka: KafkaSettings, admin: KafkaAdminClient, unique_name: str, tmp_path: Path
) -> None:
    (topic,) = create_derived_topics(kafka, unique_name, folder=tmp_path)
    put(kafka, topic)
    admin.delete_topics([topic])
    create_derived_topics(kafka, unique_name, folder=tmp_path)
    first = look(admin, [topic])[topic]
    assert not first.used
    producer = connect_producer(kafka, client_id="test")
    producer.send(topic, key=b"k", value=b"theirs").get(timeout=30)
    producer.close()
    create_derived_topics(kafka, unique_name, folder=tmp_path)
    with pytest.raises(TakenError, match="windows holds records"):
        create_derived_topics(kafka, unique_name, folder=tmp_path / "another")


def test_what_a_failed_step_leaves_behind_is_what_it_made_and_no_more(
    kafka: KafkaSettings, admin: KafkaAdminClient, unique_name: str
) -> None:
    theirs = topic_name(unique_name, "requests")
    make(admin, theirs, max_message_bytes="20000000")
    plans = plan_topics(unique_name, partitions=1, replication=1)
    first = provisioned(kafka, plans, run=unique_name)
    assert set(first.names) == ours_of(admin, unique_name) and theirs not in first.made
    delete_made_topics(kafka, first)
    wait_until(lambda: ours_of(admin, unique_name) == {theirs}, "the topics to be gone")
    second = provisioned(kafka, plans, run=unique_name)
    delete_made_topics(kafka, first)  # Its ids are gone, and the topics of the same names are not touched.
    assert set(second.names) == ours_of(admin, unique_name)


def test_replicas_that_the_cluster_has_no_brokers_for_are_one_line(kafka: KafkaSettings, unique_name: str) -> None:
    with pytest.raises(DeliveryError, match=r"fewer brokers than kafka.replication requires") as raised:
        create_topics(msgspec.structs.replace(kafka, replication=3), unique_name)
    assert "\n" not in str(raised.value)


def test_a_consumer_group_that_is_somebody_elses_is_refused_and_keeps_its_offsets(
    kafka: KafkaSettings, admin: KafkaAdminClient, unique_name: str
) -> None:
    create_topics(kafka, unique_name)
    topic, orders = topic_name(unique_name, "requests"), f"{unique_name}-orders"
    make(admin, orders)
    reads_orders = f"{unique_name}.generator"
    theirs = {TopicPartition(orders, 0): 7}
    assert committed_offsets(admin, reads_orders) == {}
    admin.alter_group_offsets(reads_orders, {item: OffsetAndMetadata(at, "", -1) for item, at in theirs.items()})
    with pytest.raises(DeliveryError, match=rf"committed offsets of {orders}\[0\]: it is somebody else's"):
        connect_group_consumer(kafka, topic, group=reads_orders, member="w", records_max=1)
    assert committed_offsets(admin, reads_orders) == theirs

    has_members = f"{unique_name}.environment"
    stranger = KafkaConsumer(orders, bootstrap_servers=kafka.bootstrap, group_id=has_members, client_id="shop-reader")
    while not stranger.assignment():
        stranger.poll(timeout_ms=5000)
    with pytest.raises(DeliveryError, match=r"shop-reader at .* is in it: it is somebody else's"):
        connect_group_consumer(kafka, topic, group=has_members, member="w", records_max=1)
    assert not [item for item in committed_offsets(admin, has_members) if item.topic == topic]
    stranger.close()


def test_topics_are_compressed_and_are_copied_byte_for_byte(
    kafka: KafkaSettings, admin: KafkaAdminClient, unique_name: str
) -> None:
    create_topics(kafka, unique_name)
    create_topics(kafka, f"{unique_name}-copy")
    source, target = (TopicPartition(topic_name(run, "rewards"), 0) for run in (unique_name, f"{unique_name}-copy"))
    values = [encode_event(reward(number)) for number in range(200)]
    put(kafka, source.topic, *values)
    with RawLog(kafka, client_id="test") as raw:
        copy([(target, raw.read(source, 0, len(values)))], raw.writer(), stop=Stop())
        bodies = [record.body for record in raw.read(target, 0, len(values))]
    assert bodies == [body_of(None, value, ()) for value in values]
    assert log_bounds(kafka, [source]) == {source: (0, len(values))}
    whole = sum(map(len, values))
    for item in (source, target):
        assert [record.value for record in read_range(kafka, item, 0, len(values), client_id="t")] == values
        assert bytes_on_disk(admin, item) < whole / 2.5


def bytes_on_disk(admin: KafkaAdminClient, partition: TopicPartition) -> int:
    (broker,) = admin.describe_log_dirs([partition])
    topics = [topic for folder in broker["log_dirs"] for topic in folder["topics"]]
    return sum(each["partition_size"] for topic in topics for each in topic["partitions"])
