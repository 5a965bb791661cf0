"""A run that is going, seen by the pages: a sink holds the file, and the pages follow archive and Kafka themselves."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from services.local import Endpoints
from storage.ledger import LEDGER
from storage.log import rebuild_ledger
from storage.questions.asking import Refusal, ask, connect_reading
from storage.questions.sources import LedgerSource
from storage.questions.stream import Cursor, ends, news, read_cursor, show_cursor
from streams.clients import connect_producer, create_topics
from streams.delivery import DeliverySettings, Outbox
from streams.kafka_settings import KafkaSettings
from tests.commands import ROOT
from tests.kafka_cluster import wait_until
from tests.stored_events import generation, request, reward, update

SINK = """
import sys
from pathlib import Path
from storage.archive import ArchiveSettings
from storage.sink import SinkSettings
from storage.workers import run_sink
from streams.delivery import DeliverySettings
from streams.kafka_settings import KafkaSettings
from streams.posts import Post
from streams.stopping import Stop
run, database, bootstrap = sys.argv[1:]
stop = Stop().on_signals()
post = Post(run=run, member="sink", kafka=KafkaSettings(bootstrap=bootstrap), delivery=DeliverySettings(), stop=stop)
run_sink(post, database=Path(database), sink=SinkSettings(archive=ArchiveSettings(segment_seconds_max=1)))
"""
TOTALS = "SELECT (SELECT count(*) FROM first_rewards) AS groups, (SELECT count(*) FROM surviving_updates) AS updates"


class Going:
    """A run with a sink in a process of its own: DuckDB lets one process write a file, and no other read it then."""

    def __init__(self, folder: Path, run: str, kafka: KafkaSettings) -> None:
        self.folder, self.run, self.kafka = folder, run, kafka
        self.source = LedgerSource(folder, run, lambda: kafka)
        self.written = 0
        self._sink: subprocess.Popen[bytes] | None = None

    def write(self, groups: int) -> None:
        """Write groups, and an update for each four, onto the topics."""
        producer = connect_producer(self.kafka, client_id="writer")
        outbox = Outbox(producer, self.run, stage="requests", settings=DeliverySettings())
        for number in range(self.written, self.written + groups):
            outbox.send(request(number))
            outbox.send(generation(number))
            outbox.send(reward(number))
            if number % 4 == 3:
                outbox.send(update(number // 4 + 1, range(number - 3, number + 1)))
        outbox.flush()
        producer.close()
        self.written += groups

    def start_sink(self) -> None:
        """Start the sink, and return when it holds the file."""
        arguments = [self.run, str(self.folder / LEDGER), self.kafka.bootstrap]
        self._sink = subprocess.Popen([sys.executable, "-c", SINK, *arguments], cwd=ROOT)
        wait_until(lambda: (self.folder / LEDGER).exists() and self.is_held(), "the sink")

    def is_held(self) -> bool:
        try:
            connect_reading(self.folder / LEDGER).close()
        except duckdb.Error:
            return True
        return False

    def end_sink(self, number: int) -> None:
        """End the sink with a signal; a killed one leaves its file as it was."""
        assert self._sink is not None
        self._sink.send_signal(number)
        self._sink.wait()
        self._sink = None

    def totals(self) -> tuple[int, int]:
        """Return groups and updates as the pages count them now."""
        with self.source.cursor() as cursor:
            groups, updates = ask(cursor, TOTALS).rows[0]
        return groups, updates

    def close(self) -> None:
        if self._sink is not None:
            self.end_sink(signal.SIGKILL)
        self.source.close()


@pytest.fixture
def going(local_services: Endpoints, unique_name: str, tmp_path: Path) -> Iterator[Going]:
    kafka = KafkaSettings(bootstrap=local_services.kafka, partitions=1)
    create_topics(kafka, unique_name)
    (tmp_path / unique_name).mkdir()
    run = Going(tmp_path / unique_name, unique_name, kafka)
    try:
        yield run
    finally:
        run.close()


def test_what_a_run_writes_is_seen_while_its_sink_holds_the_file_and_after_it(going: Going) -> None:
    going.write(8)
    going.start_sink()
    wait_until(lambda: going.totals() == (8, 2), "the first groups")
    assert going.source.live
    going.write(12)
    wait_until(lambda: going.totals() == (20, 5), "more groups")
    assert going.is_held(), "the pages took the file from its sink"
    wait_until(lambda: going.source.state == "", "the end of the log")
    going.end_sink(signal.SIGTERM)
    wait_until(lambda: going.totals() == (20, 5) and not going.source.live, "the file itself")


def test_a_killed_sink_costs_the_pages_nothing_and_the_next_one_gets_the_file(going: Going) -> None:
    going.write(8)
    going.start_sink()
    wait_until(lambda: going.totals() == (8, 2), "the first groups")
    going.end_sink(signal.SIGKILL)
    going.write(4)
    going.start_sink()
    wait_until(lambda: going.totals() == (12, 3), "the groups of the second sink")
    assert going.source.live


def test_a_page_that_comes_back_loses_and_repeats_nothing_across_sinks(going: Going) -> None:
    seen: list[tuple[str, int]] = []
    cursor: Cursor = {}

    def read() -> int:
        nonlocal cursor
        with going.source.cursor() as connection:
            for each in news(connection, cursor):
                cursor = read_cursor(show_cursor(each.cursor)) or {}
                seen.extend((each.kind, row["record_offset"]) for row in each.rows)
        return len(seen)

    going.write(8)
    going.start_sink()
    wait_until(lambda: read() == 10, "eight groups and two updates")
    going.end_sink(signal.SIGKILL)
    read()
    going.write(8)
    # The copy is made anew here: it catches up from the archive and Kafka, and tells nothing twice on its way.
    going.source.close()
    going.start_sink()
    wait_until(lambda: read() == 20, "all groups and updates")
    going.end_sink(signal.SIGTERM)
    wait_until(lambda: not going.is_held(), "the file")
    read()
    assert sorted(seen) == sorted([("rewards", n) for n in range(16)] + [("updates", n) for n in range(4)])
    with going.source.cursor() as connection:
        assert {place: end for place, end in ends(connection).items() if end} == cursor


def test_a_rebuild_under_the_pages_changes_no_answer(going: Going) -> None:
    going.write(8)
    going.start_sink()
    wait_until(lambda: going.totals() == (8, 2), "the groups")
    going.end_sink(signal.SIGTERM)
    wait_until(lambda: not going.is_held(), "the file")
    answers = []
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path; from storage.log import rebuild_ledger\n"
            "for _ in range(3): rebuild_ledger(Path(sys.argv[1]))",
            str(going.folder),
        ],
        cwd=ROOT,
    )
    while process.poll() is None:
        answers.append(going.totals())
        time.sleep(0.01)
    assert process.returncode == 0 and len(answers) > 3
    assert set(answers) == {(8, 2)}
    assert rebuild_ledger(going.folder) > 0


def test_without_kafka_the_archive_is_shown_and_the_pages_say_so(going: Going) -> None:
    going.write(8)
    going.start_sink()
    wait_until(lambda: list((going.folder / "archive").rglob("*.parquet")), "a segment")
    alone = LedgerSource(going.folder, going.run, lambda: None)
    away = LedgerSource(going.folder, going.run, lambda: KafkaSettings(bootstrap="127.0.0.1:9"))

    def count(source: LedgerSource) -> int:
        with source.cursor() as cursor:
            return int(ask(cursor, "SELECT count(*) FROM first_rewards").rows[0][0])

    try:
        wait_until(lambda: count(alone) == 8, "the archive's groups")
        wait_until(lambda: count(away) == 8 and "newest records are missing" in away.state, "the archive's groups")
        assert alone.caught_up and not away.caught_up
    finally:
        alone.close()
        away.close()


def test_a_question_to_a_live_copy_cannot_change_it(going: Going) -> None:
    going.write(8)
    going.start_sink()
    wait_until(lambda: going.totals() == (8, 2), "the groups")
    for sql in (
        "DELETE FROM rewards",
        "WITH a AS (DELETE FROM rewards RETURNING 1) SELECT * FROM a",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM arriving",
    ):
        with going.source.cursor() as cursor, pytest.raises(Refusal):
            ask(cursor, sql)
    assert going.totals() == (8, 2)


def test_a_copy_says_that_it_has_caught_up_only_when_all_is_there(going: Going) -> None:
    going.write(40)
    going.start_sink()
    first = going.totals()
    while (state := going.source.state, going.source.caught_up) != ("", True):
        assert state or going.source.caught_up, "it lacks records, and does not say so"
    assert first <= (40, 10) == going.totals()
