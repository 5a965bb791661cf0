"""Dead letters are found by run, topic, stage, reason and time, shown whole, and sent again once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result
from kafka import TopicPartition

from infra.app.app import App
from infra.app.home import Home
from infra.app.settings import Settings
from infra.commands.dead_letters import dead_letters
from infra.commands.times import moment_ms
from services.local import Endpoints
from storage.ledger import LEDGER
from storage.sink import Sink
from streams.clients import connect_producer, create_topics, partitions_of
from streams.codec import encode_event
from streams.delivery import DeliverySettings, Outbox
from streams.errors import SettingsError
from streams.events import DeadLetter, Generation, Position
from streams.kafka_settings import KafkaSettings
from streams.ranges import log_bounds, read_range
from streams.records import Received
from streams.resending import RESENT, topics_of
from streams.topics import topic_name
from tests.services.test_sink import QUICK
from tests.stored_events import generation, request

HOUR_MS = 3600 * 1000


def letter(run: str, kind: str, offset: int, value: bytes | None, *, stage: str, error: str) -> DeadLetter:
    return DeadLetter(
        source=Position(topic=topic_name(run, kind), partition=0, offset=offset),
        key=b"\x00key",
        value=value,
        headers=(("trace", b"\xff"),),
        stage=stage,
        error=error,
        attempts=3,
        made_at_ms=1,
    )


def asked_at(run: str, kind: str, partition: int = 0) -> Generation:
    """A group that says its request lies in this topic."""
    source = Position(topic=topic_name(run, kind), partition=partition, offset=2)
    return msgspec.structs.replace(generation(2), source=source)


def letters_of(run: str) -> list[DeadLetter]:
    return [
        letter(run, "requests", 0, b"{bad\x1b[31m", stage="generator", error="not an event: bad JSON"),
        letter(run, "requests", 1, None, stage="generator", error="expected an event, got an empty record"),
        letter(run, "generations", 4, encode_event(asked_at(run, "requests")), stage="environment", error="down"),
    ]


def recorded(run: str, letters: list[DeadLetter], *, now_ms: int) -> list[Received]:
    """The letters in their topic, each an hour after the one before, the last one now."""
    return [
        Received(
            position=Position(topic=topic_name(run, "dead-letters"), partition=0, offset=offset),
            timestamp_ms=now_ms - (len(letters) - 1 - offset) * HOUR_MS,
            key=b"k",
            value=encode_event(each),
        )
        for offset, each in enumerate(letters)
    ]


@pytest.fixture
def app(tmp_path: Path, unique_name: str, local_services: Endpoints) -> App:
    from streams.clock import now_ms

    folder = tmp_path / "runs" / unique_name
    with Sink(folder / LEDGER, QUICK) as sink:
        sink.write(recorded(unique_name, letters_of(unique_name), now_ms=now_ms()))
    (folder / "settings.json").write_bytes(
        msgspec.json.encode({"settings": {"delivery": msgspec.to_builtins(DeliverySettings())}})
    )
    settings = Settings(kafka=KafkaSettings(bootstrap=local_services.kafka, partitions=1))
    return App(Home(tmp_path), settings=settings).at(local_services)


@pytest.fixture
def sent(app: App, unique_name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[KafkaSettings]:
    """Give the run's topics, each with the records that the letters came from."""
    kafka = app.connections.kafka
    create_topics(kafka, unique_name)
    producer = connect_producer(kafka, client_id="test")
    outbox = Outbox(producer, unique_name, stage="test", settings=DeliverySettings())
    for kind, count in (("requests", 3), ("generations", 5)):
        for _ in range(count):
            outbox.forward(topic=topic_name(unique_name, kind), partition=0, key=b"k", value=b"{bad")
    outbox.flush()
    yield kafka
    producer.close()


def call(app: App, *arguments: str) -> Result:
    return CliRunner().invoke(dead_letters, arguments, obj=app, catch_exceptions=False)


def listed(app: App, run: str, *arguments: str) -> list[tuple[str, int]]:
    result = call(app, "list", "--run", run, "--json", *arguments)
    return [(row["topic"].removeprefix(f"{run}."), row["offset"]) for row in json.loads(result.stdout)]


def test_letters_are_chosen_by_topic_stage_reason_and_time(app: App, unique_name: str) -> None:
    everything = [("requests", 0), ("requests", 1), ("generations", 4)]
    assert listed(app, unique_name) == everything
    assert listed(app, unique_name, "--topic", "requests") == everything[:2]
    assert listed(app, unique_name, "--topic", f"{unique_name}.generations") == everything[2:]
    assert listed(app, unique_name, "--stage", "environment") == everything[2:]
    assert listed(app, unique_name, "--error", "BAD json") == everything[:1]
    assert listed(app, unique_name, "--since", "90m") == everything[1:]
    assert listed(app, unique_name, "--since", "90m", "--stage", "generator") == everything[1:2]
    assert listed(app, unique_name, "--stage", "sink") == []


def test_a_letter_is_shown_whole_and_steers_no_terminal(app: App, unique_name: str, tmp_path: Path) -> None:
    out = tmp_path / "value"
    result = call(app, "show", "--run", unique_name, "requests[0]@0", "--out", str(out))
    assert "not an event: bad JSON" in result.stdout and "attempts  3" in result.stdout
    assert "trace = base64 /w==" in result.stdout
    assert "\x1b" not in result.stdout
    assert out.read_bytes() == b"{bad\x1b[31m"
    (shown,) = json.loads(call(app, "show", "--run", unique_name, "requests[0]@1", "--json").stdout)
    assert shown["value"] is None and shown["key"] == "AGtleQ=="


def test_a_letter_that_is_not_there_is_an_error(app: App, unique_name: str) -> None:
    from storage.errors import StorageError

    with pytest.raises(StorageError, match="expected a dead letter of run"):
        call(app, "show", "--run", unique_name, "requests[0]@99")
    assert call(app, "show", "--run", unique_name, "requests").exit_code == 2
    assert "there is no topic" in call(app, "show", "--run", unique_name, "wishes[0]@1").output
    with pytest.raises(SettingsError, match="--since: expected a moment"):
        call(app, "list", "--run", unique_name, "--since", "yesterday")
    with pytest.raises(SettingsError, match="expected one of"):
        call(app, "list", "--run", "nothing")
    assert "expected a selection" in call(app, "resend", "--run", unique_name).output


def test_letters_are_sent_again_as_they_were_and_only_once(app: App, unique_name: str, sent: KafkaSettings) -> None:
    target = TopicPartition(topic_name(unique_name, "requests"), 0)

    def arrived() -> list[Received]:
        ((first, end),) = log_bounds(sent, [target]).values()
        return list(read_range(sent, target, max(first, 3), end, client_id="test"))

    assert "2 would be sent" in call(app, "resend", "--run", unique_name, "--stage", "generator", "--dry-run").stdout
    assert arrived() == []
    assert "2 sent, 0 were" in call(app, "resend", "--run", unique_name, "--stage", "generator").stdout
    first, second = arrived()
    assert (first.key, first.value) == (b"\x00key", b"{bad\x1b[31m")
    assert first.headers == (("trace", b"\xff"), (RESENT, f"{target.topic}[0]@0".encode()))
    assert second.value is None
    assert "0 sent, 2 were" in call(app, "resend", "--run", unique_name, "--stage", "generator").stdout
    place = f"{target.topic}[0]@0"
    assert "1 sent, 0 were" in call(app, "resend", "--run", unique_name, "--place", place, "--again").stdout
    assert len(arrived()) == 3


def test_a_group_that_has_failed_is_asked_again_as_a_new_request(
    app: App, unique_name: str, sent: KafkaSettings
) -> None:
    target = TopicPartition(topic_name(unique_name, "requests"), 0)
    (before,) = log_bounds(sent, [target]).values()
    result = call(app, "resend", "--run", unique_name, "--stage", "environment")
    assert "asked again, as a new request" in result.stdout
    (after,) = log_bounds(sent, [target]).values()
    assert after[1] == before[1] + 1
    (record,) = read_range(sent, target, before[1], after[1], client_id="test")
    assert record.value == encode_event(request(2)) and record.key == b"request-2"


def test_a_letter_writes_to_no_topic_of_another_run_and_to_no_partition_that_is_not_there(
    app: App, unique_name: str, sent: KafkaSettings
) -> None:
    other = f"{unique_name}-other"
    create_topics(sent, other)
    elsewhere = generation(3)  # Of the run "test": its request would be asked again there.
    mine = letter(unique_name, "requests", 0, b"{bad", stage="generator", error="bad")
    forged = [
        letter(other, "requests", 0, b"{bad", stage="generator", error="bad"),
        letter(unique_name, "generations", 4, encode_event(elsewhere), stage="environment", error="down"),
        letter(
            unique_name,
            "generations",
            3,
            encode_event(asked_at(unique_name, "rewards")),
            stage="environment",
            error="d",
        ),
        letter(
            unique_name,
            "generations",
            2,
            encode_event(asked_at(unique_name, "requests", 7)),
            stage="environment",
            error="d",
        ),
        *(
            msgspec.structs.replace(mine, source=Position(topic=topic, partition=partition, offset=0))
            for topic, partition in (
                ("__consumer_offsets", 0),
                (f"{unique_name}.wishes", 0),
                (f"{unique_name}.requests.requests", 0),
                (f"{other}.{unique_name}.requests", 0),
                (topic_name(unique_name, "requests"), 1),
                (topic_name(unique_name, "requests"), -1),
            )
        ),
    ]
    folder = app.home.run(unique_name)
    (folder / LEDGER).unlink()
    with Sink(folder / LEDGER, QUICK) as sink:
        sink.write(recorded(unique_name, [mine, *forged], now_ms=HOUR_MS * 100))
    topics = [*topics_of(unique_name), *topics_of(other)]
    bounds = {item: end for item, (_, end) in log_bounds(sent, partitions_of(sent, topics)).items()}
    for dry_run in (["--dry-run"], []):
        result = call(app, "resend", "--run", unique_name, "--error", "d", *dry_run)
        assert result.exit_code == 1
        assert result.stderr.count(": refused: ") == len(forged)
        assert f"expected a topic of run '{unique_name}', and it came from '{other}.requests'" in result.stderr
        assert "and its request would go to 'test.requests'" in result.stderr
        assert f"'{unique_name}.requests' has no partition 1" in result.stderr
        assert result.stdout.splitlines()[-1].endswith(f", 0 were sent again before, {len(forged)} refused")
    after = {item: end for item, (_, end) in log_bounds(sent, partitions_of(sent, topics)).items()}
    bounds[TopicPartition(topic_name(unique_name, "requests"), 0)] += 1  # The one letter of the run's own.
    assert after == bounds


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2h", 10**12 - 2 * HOUR_MS), ("1.5m", 10**12 - 90_000), ("2001-09-09T01:46:40+00:00", 10**12)],
)
def test_times_are_moments_or_how_long_ago(text: str, expected: int) -> None:
    assert moment_ms(text, now_ms=10**12, option="--since") == expected
