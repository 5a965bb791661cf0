"""Windows of a real log are copied byte for byte, also past retention, at the speed that was asked for."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result
from kafka import TopicPartition
from kafka.errors import KafkaConnectionError
from kafka.future import Future

from infra.app.app import App
from infra.app.home import Home
from infra.app.settings import Settings
from infra.commands.replay import replay as replay_verb
from infra.runs.verification import run_topics, verify_run
from services.local import Endpoints
from storage.archive import ARCHIVE, ArchiveSettings, find_segments
from storage.errors import StorageError
from storage.ledger import LEDGER
from storage.log import open_log, rebuild_ledger
from storage.recorded import Limits, Recorded
from storage.sink import Sink, SinkSettings
from storage.verification.verify import Circumstances, verify_log
from streams.clients import connect_admin, connect_producer, create_topics
from streams.delivery import DeliverySettings, Outbox
from streams.errors import DeliveryError, SettingsError
from streams.events import Position
from streams.kafka_settings import KafkaSettings
from streams.ranges import log_bounds, read_range
from streams.raw_log import RawLog
from streams.record_batches import BatchBuilder, body_of
from streams.records import Received
from streams.replay import in_recorded_order, parse_speed, replay
from streams.stopping import Stop
from streams.topics import topic_name
from tests.stored_events import small_run

AT_ONCE = SinkSettings(open_timeout_seconds=0, archive=ArchiveSettings(segment_seconds_max=1e-9))
BEGAN_MS = 1_700_000_000_000
STEP_MS = 1000


@pytest.fixture
def app(tmp_path: Path, local_services: Endpoints) -> App:
    return App(Home(tmp_path), settings=Settings(kafka=KafkaSettings(bootstrap=local_services.kafka, partitions=1))).at(
        local_services
    )


@pytest.fixture
def recorded(app: App, unique_name: str) -> Iterator[list[Received]]:
    """A run in Kafka, in a ledger and in an archive of seven records a segment; odd bytes and old times among them."""
    kafka = app.connections.kafka
    create_topics(kafka, unique_name, retention_ms=-1)
    producer = connect_producer(kafka, client_id="test")
    outbox = Outbox(producer, unique_name, stage="test", settings=DeliverySettings())
    sent: list[Received] = []
    ends: dict[str, int] = {}
    for number, item in enumerate(small_run(12)):
        kind = item.position.topic.removeprefix("test.")
        topic = topic_name(unique_name, kind)
        odd = number % 5 == 4 and kind == "requests"
        record = Received(
            position=Position(topic=topic, partition=0, offset=ends.get(topic, 0)),
            timestamp_ms=BEGAN_MS + number * STEP_MS,
            key=None if odd else item.key,
            value=b"\x00\xff not json" if odd else item.value,
            headers=(("trace", b"\x00\xff"), ("trace", b"")) if odd else (),
        )
        ends[topic] = record.position.offset + 1
        outbox.forward(
            topic=topic,
            partition=0,
            key=record.key,
            value=record.value,
            headers=record.headers,
            timestamp_ms=record.timestamp_ms,
        )
        sent.append(record)
    outbox.flush()
    producer.close()
    with Sink(app.home.run(unique_name) / LEDGER, AT_ONCE) as sink:
        for first in range(0, len(sent), 7):
            sink.write(sent[first : first + 7])
    yield sent


def of_kind(records: list[Received], run: str, kind: str) -> list[Received]:
    return [item for item in records if item.position.topic == topic_name(run, kind)]


def in_kafka(app: App, run: str, kind: str) -> list[Received]:
    partition = TopicPartition(topic_name(run, kind), 0)
    ((start, end),) = log_bounds(app.connections.kafka, [partition]).values()
    return list(read_range(app.connections.kafka, partition, start, end, client_id="test"))


def moved(records: list[Received], run: str, into: str) -> list[Received]:
    """The records as they must lie in the other run's topics, from offset 0."""
    ends: dict[str, int] = {}
    found = []
    for item in records:
        topic = item.position.topic.replace(run, into)
        position = Position(topic=topic, partition=0, offset=ends.get(topic, 0))
        ends[topic] = position.offset + 1
        found.append(msgspec.structs.replace(item, position=position))
    return found


def forget(app: App, run: str, kind: str, before: int) -> None:
    """Let retention take what lies before an offset."""
    admin = connect_admin(app.connections.kafka)
    admin.delete_records({TopicPartition(topic_name(run, kind), 0): before})
    admin.close()


def call(app: App, *arguments: str) -> Result:
    return CliRunner().invoke(replay_verb, arguments, obj=app, catch_exceptions=False)


def test_a_window_is_copied_byte_for_byte_with_key_headers_and_times(
    app: App, unique_name: str, recorded: list[Received]
) -> None:
    into = f"{unique_name}-copy"
    said = call(app, "copy", "--run", unique_name, "--topic", "requests", "--from", "3", "--to", "9", "--into", into)
    assert "copied" in said.output
    assert in_kafka(app, into, "requests") == moved(of_kind(recorded, unique_name, "requests")[3:9], unique_name, into)
    assert in_kafka(app, into, "rewards") == []


def test_many_large_records_of_several_partitions_are_copied_in_order_in_batches_of_their_own(
    app: App, unique_name: str
) -> None:
    kafka = msgspec.structs.replace(app.connections.kafka, partitions=2)
    create_topics(kafka, unique_name, retention_ms=-1)
    producer = connect_producer(kafka, client_id="test")
    outbox = Outbox(producer, unique_name, stage="test", settings=DeliverySettings())
    chance = random.Random(0)
    for number in range(300):
        content = chance.randbytes(3 * 2**20 if number % 100 == 50 else chance.randrange(60_000))
        outbox.forward(
            topic=f"{unique_name}.rewards",
            partition=number % 2,
            key=None,
            value=content or None,
            timestamp_ms=BEGAN_MS - number,
        )
    outbox.flush()
    producer.close()
    app.home.run(unique_name).mkdir(parents=True)
    into = f"{unique_name}-copy"
    said = call(app, "copy", "--run", unique_name, "--topic", "rewards", "--into", into, "--json")
    assert json.loads(said.stdout)["records"] == 300
    for number in (0, 1):
        ends = []
        for run in (unique_name, into):
            partition = TopicPartition(f"{run}.rewards", number)
            ((_, end),) = log_bounds(kafka, [partition]).values()
            ends.append([content_of(item) for item in read_range(kafka, partition, 0, end, client_id="test")])
        assert ends[0] == ends[1] and len(ends[0]) == 150


def content_of(item: Received) -> tuple[object, ...]:
    return item.timestamp_ms, item.key, item.value, item.headers


def test_a_batch_that_is_sent_again_is_in_the_log_once_and_in_its_place(app: App, unique_name: str) -> None:
    kafka = app.connections.kafka
    create_topics(kafka, unique_name)
    partition = TopicPartition(topic_name(unique_name, "requests"), 0)

    def batch(first: int) -> bytes:
        builder = BatchBuilder()
        for number in range(first, first + 3):
            builder.append(BEGAN_MS, body_of(None, str(number).encode(), ()))
        return builder.build(producer_id=writer._producer["producer_id"], producer_epoch=0, sequence=first)

    with RawLog(kafka, client_id="test") as raw:
        writer = raw.writer()
        sent = [(batch(first), raw.produce(partition, batch(first))) for first in (0, 3)]
        for content, asked in sent:
            raw.settle(partition, content, asked)
            raw.settle(partition, content, raw.produce(partition, content))  # As after an answer that was lost.
        lost = Future().failure(KafkaConnectionError("the broker never saw it"))
        behind = raw.produce(partition, batch(9))  # Is refused: what comes before it is not there.
        raw.settle(partition, batch(6), lost)
        raw.settle(partition, batch(9), behind)
    ((_, end),) = log_bounds(kafka, [partition]).values()
    values = [item.value for item in read_range(kafka, partition, 0, end, client_id="test")]
    assert values == [str(number).encode() for number in range(12)]


def test_a_broker_that_is_gone_or_says_nothing_ends_a_copy_with_an_error(app: App, unique_name: str) -> None:
    kafka = app.connections.kafka
    create_topics(kafka, unique_name)
    partition = TopicPartition(topic_name(unique_name, "requests"), 0)
    with RawLog(kafka, client_id="test", patience_seconds=0.5) as raw:
        with pytest.raises(DeliveryError, match=r"requests\[0\]: FetchRequest failed for 0.5 s"):
            list(raw.read(partition, 0, 1))
        with pytest.raises(DeliveryError, match=r"requests\[0\]: FetchRequest failed: .*OffsetOutOfRange"):
            list(raw.read(partition, 5, 9))
        writer = raw.writer()
        writer.append(TopicPartition(f"{unique_name}.nowhere", 0), 0, body_of(None, b"x", ()))
        with pytest.raises(DeliveryError, match=r"nowhere\[0\]: ProduceRequest failed for 0.5 s"):
            writer.flush()
    with pytest.raises(DeliveryError, match="no Kafka broker answers"):
        RawLog(KafkaSettings(bootstrap="127.0.0.1:9"), client_id="test")


def test_past_retention_the_archive_gives_the_same_bytes(app: App, unique_name: str, recorded: list[Received]) -> None:
    forget(app, unique_name, "requests", 8)
    forget(app, unique_name, "rewards", 12)
    into = f"{unique_name}-copy"
    call(app, "copy", "--run", unique_name, "--into", into)
    for kind in ("requests", "generations", "rewards", "updates", "policy-versions"):
        assert in_kafka(app, into, kind) == moved(of_kind(recorded, unique_name, kind), unique_name, into), kind
    with pytest.raises(DeliveryError, match="hold records; choose another name"):
        call(app, "copy", "--run", unique_name, "--into", into)


def test_past_retention_the_ledger_is_rebuilt_and_proved_from_the_archive(
    app: App, unique_name: str, recorded: list[Received]
) -> None:
    for kind in ("requests", "generations", "rewards"):
        forget(app, unique_name, kind, 8)
    folder = app.home.run(unique_name)
    for rebuilt in (False, True):
        if rebuilt:
            (folder / LEDGER).unlink()
            assert rebuild_ledger(folder) == len(recorded)
        with open_log(folder) as log:
            topics = run_topics(app.connections.kafka, unique_name)
            account = verify_log(log, run=unique_name, topics=topics, known=Circumstances(head=None), rebuild=True)
        assert {finding.rule for finding in account.findings} <= {"lineage", "rewards answer generations"}
        assert all(row.residual == 0 and row.gaps == 0 for row in account.partitions)
        assert {row.start for row in account.partitions if row.topic.endswith("requests")} == {8}
        assert account.tables["rewards"].startswith("12 rows")


def test_times_choose_a_window_in_kafka_and_in_the_archive(
    app: App, unique_name: str, recorded: list[Received]
) -> None:
    requests = of_kind(recorded, unique_name, "requests")
    source = Recorded(app.home.run(unique_name), unique_name, app.connections.kafka)
    begin, end = Limits(moment_ms=requests[4].timestamp_ms), Limits(moment_ms=requests[9].timestamp_ms - 1)
    for _ in range(2):
        (window,) = source.windows("requests", begin, end)
        assert (window.first, window.end) == (4, 9)
        assert list(source.read(window)) == requests[4:9]
        forget(app, unique_name, "requests", 7)
    alone = Recorded(app.home.run(unique_name), unique_name, None)
    (window,) = alone.windows("requests", begin, end)
    assert list(alone.read(window)) == requests[4:9]


def test_a_window_that_does_not_exist_and_a_missing_segment_are_clear_errors(
    app: App, unique_name: str, recorded: list[Received]
) -> None:
    into = f"{unique_name}-copy"
    for begin, end in (("5", "99"), ("7", "3"), ("12", "13")):
        with pytest.raises(DeliveryError, match=r"\.requests\[0\]: expected a window within offsets 0-11, got"):
            call(app, "copy", "--run", unique_name, "--topic", "requests", "--from", begin, "--to", end, "--into", into)
    with pytest.raises(DeliveryError, match="no record lies in this window"):
        call(app, "copy", "--run", unique_name, "--topic", "requests", "--from", "1m", "--into", into)
    with pytest.raises(DeliveryError, match=r"--partition: .* has 0, got 3"):
        call(app, "copy", "--run", unique_name, "--topic", "requests", "--partition", "3", "--into", into)
    with pytest.raises(SettingsError, match="never writes to its source"):
        call(app, "copy", "--run", unique_name, "--into", unique_name)
    forget(app, unique_name, "requests", 8)
    segments = [p for p in find_segments(app.home.run(unique_name) / ARCHIVE) if "requests" in str(p)]
    segments[1].unlink()
    with pytest.raises(StorageError, match=r"no segment holds .*requests\[0\]@\d+-\d+\. Restore"):
        call(app, "copy", "--run", unique_name, "--topic", "requests", "--into", into)


def test_traffic_is_imported_into_topics_and_ledger(app: App, unique_name: str, tmp_path: Path) -> None:
    rows = [
        {"application": "shop", "query_id": f"q{n}", "user_query": "red shoe", "timestamp": 10**12 + n}
        for n in range(3)
    ]
    (tmp_path / "queries").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (tmp_path / "events").write_text("")
    arguments = ["--queries", str(tmp_path / "queries"), "--events", str(tmp_path / "events"), "--into", unique_name]
    said = call(app, "import-ubi", *arguments, "--json")
    assert json.loads(said.stdout)["searches"] == 3
    assert [item.timestamp_ms for item in in_kafka(app, unique_name, "feedback")] == [10**12 + n for n in range(3)]
    with open_log(app.home.run(unique_name)) as log:
        assert [row["query_id"] for row in log.rows("FROM first_feedback ORDER BY at_ms")] == ["q0", "q1", "q2"]
    assert verify_run(app, unique_name, rebuild=True, offline=False).sound
    with pytest.raises(DeliveryError, match="expected a new run"):
        call(app, "import-ubi", *arguments)
    path = tmp_path / "sessions.csv"
    path.write_text("session_id,query,rank0,doc_id,clicked\n1,red shoe,0,d1,1\n")
    said = call(app, "import-sessions", str(path), "--into", f"{unique_name}-clicks")
    assert "searches 1, sessions 1, rows 1, clicks 1" in said.stdout


@pytest.mark.parametrize("text", ["0", "x0", "-1", "nan", "fast", ""])
def test_a_speed_of_nothing_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="--speed: expected recorded, max, or a number above 0"):
        parse_speed(text)


def test_speeds_are_recorded_times_as_fast_or_max() -> None:
    assert (parse_speed("recorded"), parse_speed("x4"), parse_speed("0.5"), parse_speed("max")) == (1, 4, 0.5, math.inf)


class FakeOutbox:
    def __init__(self) -> None:
        self.sent: list[tuple[str, int | None]] = []

    def forward(self, *, topic: str, timestamp_ms: int | None, **_: object) -> None:
        self.sent.append((topic, timestamp_ms))

    def flush(self) -> None:
        pass


class FakeStop(Stop):
    """A clock that only waiting moves."""

    def __init__(self) -> None:
        super().__init__()
        self.waited: list[float] = []

    def wait(self, seconds: float) -> bool:
        self.waited.append(seconds)
        return self()


def test_a_replay_keeps_the_recorded_pauses_divided_by_its_speed() -> None:
    records = [
        Received(position=Position(topic="a.requests", partition=0, offset=n), timestamp_ms=ms, key=None, value=b"x")
        for n, ms in enumerate([0, 400_000, 600_000, 500_000])
    ]
    for speed, expected in ((100.0, [4.0, 6.0, 5.0]), (math.inf, [])):
        stop, outbox = FakeStop(), FakeOutbox()
        count = replay(records, outbox, into="b", speed=speed, keep_times=True, stop=stop)  # type: ignore[arg-type]
        assert stop.waited == pytest.approx(expected, abs=0.5)
        assert outbox.sent == [("b.requests", item.timestamp_ms) for item in records]
        assert (count.records, count.bytes) == (4, 4)
    stop = FakeStop()
    stop.set()
    assert replay(records, FakeOutbox(), into="b", speed=1, keep_times=True, stop=stop).records == 0  # type: ignore[arg-type]


def test_partitions_are_merged_by_time_and_keep_their_own_order() -> None:
    def record(partition: int, offset: int, ms: int) -> Received:
        position = Position(topic="a.requests", partition=partition, offset=offset)
        return Received(position=position, timestamp_ms=ms, key=None, value=None)

    one = [record(0, 0, 5), record(0, 1, 3), record(0, 2, 9)]
    other = [record(1, 0, 4), record(1, 1, 8)]
    merged = list(in_recorded_order([one, other]))
    assert [r for r in merged if r.position.partition == 0] == one
    assert [r for r in merged if r.position.partition == 1] == other
    assert merged[0] == other[0]
