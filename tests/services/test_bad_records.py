"""Records that nothing of ours would write, on a real broker: each one dead letter, whole, and the stream moves on."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from kafka import KafkaProducer, TopicPartition

from services.local import Endpoints
from storage.archive import ArchiveSettings
from storage.ledger import LEDGER
from storage.sink import Sink, SinkSettings
from streams.clients import connect_admin, connect_group_consumer, connect_producer, connection_options, create_topics
from streams.codec import RECORD_BYTES_MAX, decode, encode_event
from streams.delivery import DeliverySettings, Outbox, commit, decode_or_bury, poll
from streams.errors import EventError
from streams.events import DeadLetter, Event, Request
from streams.kafka_settings import KafkaSettings
from streams.ranges import log_bounds, read_range
from streams.raw_log import RawLog
from streams.records import Received
from streams.replay import copy
from streams.stopping import Stop
from streams.topics import topic_name
from tests.fuzz.decoders import EVENTS
from tests.fuzz.inputs import MONSTERS, inputs
from tests.stored_events import request

TOO_LARGE_FOR_A_LETTER = b"\xff" * 13_000_000
RECORDS = [*MONSTERS, b"\xff" * (RECORD_BYTES_MAX - 1000), *list(inputs(EVENTS, 120, seed=3))[len(MONSTERS) :]]


@pytest.fixture
def kafka(local_services: Endpoints) -> KafkaSettings:
    return KafkaSettings(bootstrap=local_services.kafka, partitions=1)


def produce(kafka: KafkaSettings, topic: str, values: list[bytes | None]) -> None:
    """As somebody else's producer might, with a limit of its own."""
    producer = KafkaProducer(**connection_options(kafka, "other"), max_request_size=20_000_000)
    for value in values:
        producer.send(topic, value=value, key=b"k", headers=[("trace", b"\x00\xff")], partition=0)
    producer.flush()
    producer.close()


def consume(kafka: KafkaSettings, run: str, outbox: Outbox, end: int) -> list[Request]:
    """Take the run's requests as a generator does, up to an offset, and return those that are some."""
    topic, found, at = topic_name(run, "requests"), [], 0
    consumer = connect_group_consumer(kafka, topic, group=f"{run}.generator", member="one", records_max=64)
    while at < end:
        records = poll(consumer, DeliverySettings())
        found += [event for _, event in decode_or_bury(records, Request, outbox)]
        outbox.flush()
        commit(consumer, records)
        at = max([at, *(record.position.offset + 1 for record in records)])
    consumer.close()
    return found


def whole_topic(kafka: KafkaSettings, topic: str) -> list[Received]:
    partition = TopicPartition(topic, 0)
    ((start, end),) = log_bounds(kafka, [partition]).values()
    return list(read_range(kafka, partition, start, end, client_id="test"))


def test_each_bad_record_is_one_dead_letter_with_its_bytes_and_the_stream_moves_on(
    kafka: KafkaSettings, unique_name: str, tmp_path: Path
) -> None:
    topic = topic_name(unique_name, "requests")
    admin = connect_admin(kafka)  # A topic of the user's own making, with room for what ours refuse.
    admin.create_topics(
        {topic: {"num_partitions": 1, "replication_factor": 1, "configs": {"max.message.bytes": "20000000"}}},
        wait_for_metadata=True,
    )
    admin.close()
    create_topics(kafka, unique_name)
    good = encode_event(request(1))
    values = [value for bad in RECORDS for value in (bad, good)]
    produce(kafka, topic, [*values, TOO_LARGE_FOR_A_LETTER, good])
    producer = connect_producer(kafka, client_id="test")
    outbox = Outbox(producer, unique_name, stage="generator", settings=DeliverySettings())
    requests = consume(kafka, unique_name, outbox, len(values) + 2)
    producer.close()
    records = whole_topic(kafka, topic)
    letters = [decode(record.value) for record in whole_topic(kafka, topic_name(unique_name, "dead-letters"))]
    assert all(isinstance(letter, DeadLetter) and letter.error for letter in letters)
    places = {letter.source for letter in letters if isinstance(letter, DeadLetter)}
    assert len(places) == len(letters), "one record gave two letters"
    assert len(requests) + len(letters) == len(records) == len(values) + 2
    assert len(requests) >= len(RECORDS) + 1, "a good record is missing"
    by_place = {letter.source: letter for letter in letters if isinstance(letter, DeadLetter)}
    *some, last = [record for record in records if record.position in by_place]
    for record in some:
        letter = by_place[record.position]
        assert (letter.key, letter.value, letter.headers) == (b"k", record.value, record.headers)
    assert by_place[last.position].value is None
    assert "13000000 bytes are too many for a letter" in by_place[last.position].error

    copied = f"{unique_name}-copy"
    create_topics(kafka, copied)
    source, target = (TopicPartition(topic_name(run, "dead-letters"), 0) for run in (unique_name, copied))
    with RawLog(kafka, client_id="test") as raw:
        copy([(target, raw.read(source, 0, len(letters)))], raw.writer(), stop=Stop())
    assert [item.value for item in whole_topic(kafka, target.topic)] == [
        item.value for item in whole_topic(kafka, source.topic)
    ]
    with Sink(tmp_path / LEDGER, SinkSettings(archive=ArchiveSettings(segment_mib_max=256))) as sink:
        sink.write(whole_topic(kafka, source.topic))
        sink.write(records)
        rows = sink.run(
            lambda ledger: ledger.execute("SELECT stage, count(*) FROM dead_letters GROUP BY ALL").fetchall()
        )
    # Records that are no event, and mutants that are dead letters themselves. The sink decodes of a reward only what it
    # stores, and skips the rest: a mutant that is wrong in the rest alone is a row, and its bytes are in the archive.
    events = [event_in(record.value) for record in records]
    stages = Counter(dict(rows))
    assert stages.pop("generator") == len(letters)
    expected = sum(event is None or isinstance(event, DeadLetter) for event in events)
    mutants = sum(
        b"reward/1" in (record.value or b"") for record, event in zip(records, events, strict=True) if not event
    )
    assert expected - mutants <= stages.total() <= expected


def event_in(value: bytes | None) -> Event | None:
    try:
        return decode(value)
    except EventError:
        return None
