"""The sink on a real DuckDB file: every record once, whatever is repeated, killed, full or damaged."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import storage.sink
from storage.archive import ArchiveSettings
from storage.columns import HEADERS
from storage.errors import StorageError
from storage.ledger import LEDGER, build_batch, store_batch
from storage.log import open_log
from storage.schema import Migration, migrate, migrations
from storage.sink import Sink, SinkSettings
from streams.codec import decode, encode_event
from streams.errors import EventError
from streams.events import DeadLetter, PolicyRef, Position
from streams.records import Received
from tests.stored_events import (
    GROUP,
    decision,
    dev_score,
    feedback,
    generation,
    impression,
    impression_outcome,
    raw_record,
    record,
    request,
    reward,
    small_run,
    update,
    user_action,
    version,
)

ROOT = Path(__file__).parents[2]
TABLES = (
    "requests",
    "generations",
    "candidates",
    "rewards",
    "outcomes",
    "updates",
    "update_groups",
    "policy_versions",
    "dev_scores",
    "feedback",
    "impressions",
    "user_actions",
    "impression_outcomes",
    "dead_letters",
)
VIEWS = ("candidate_outcomes", "group_rewards", "surviving_updates", "surviving_groups", "staleness", "version_lineage")
NEVER = ArchiveSettings(segment_seconds_max=1e9, segment_mib_max=4096)
QUICK = SinkSettings(open_timeout_seconds=0, archive=NEVER)


def contents(folder: Path, names: tuple[str, ...] = (*TABLES, "sink_offsets")) -> dict[str, list[str]]:
    """Return the rows of each table, in an order that does not depend on how they were written."""
    with open_log(folder) as log:
        assert not log.live
        return {name: sorted(repr(row.items()) for row in log.rows(f'SELECT * FROM "{name}"')) for name in names}


def one(folder: Path, sql: str) -> object:
    with open_log(folder) as log:
        (row,) = log.rows(sql)
        (value,) = row.values()
        return value


def test_every_event_becomes_its_rows(tmp_path: Path) -> None:
    with Sink(tmp_path / LEDGER, QUICK) as sink:
        assert sink.positions() == {}
        assert sink.write(small_run(12)) == 1 + 36 + 6
        assert sink.positions()["test.rewards", 0] == 12
    with open_log(tmp_path) as log:
        counts = {name: log.rows(f"SELECT count(*) AS n FROM {name}")[0]["n"] for name in TABLES}
        assert counts == {
            "requests": 12,
            "generations": 12,
            "candidates": 12 * GROUP,
            "rewards": 12,
            "outcomes": 12 * GROUP,
            "updates": 3,
            "update_groups": 12,
            "policy_versions": 4,
            "dev_scores": 0,
            "feedback": 0,
            "impressions": 0,
            "user_actions": 0,
            "impression_outcomes": 0,
            "dead_letters": 0,
        }
        event = reward(3, step=0)
        rows = log.rows("SELECT * FROM outcomes WHERE record_offset = 3 ORDER BY candidate")
        for row, outcome, completion in zip(rows, event.outcomes, event.generation.completions, strict=True):
            assert row["reward"] == outcome.reward
            assert row["components"] == outcome.components
            assert tuple(row["expansions"]) == outcome.expansions
            assert [hit["document_id"] for hit in row["hits"]] == [hit.document_id for hit in outcome.hits]
            assert row["text"] == completion.text
        assert log.rows("SELECT DISTINCT outcome, uses FROM candidate_outcomes") == [{"outcome": "scored", "uses": 1}]
        assert [row["step"] for row in log.rows("SELECT * FROM reward_by_version")] == [0, 1, 2]
        assert log.rows("SELECT DISTINCT lag_versions FROM staleness") == [{"lag_versions": 0}]


def test_a_dev_score_is_one_row_and_a_second_one_of_the_same_version_does_not_count(tmp_path: Path) -> None:
    with Sink(tmp_path / LEDGER, QUICK) as sink:
        sink.write([record(dev_score(20), 0), record(dev_score(20), 1), record(dev_score(40), 2)])
    with open_log(tmp_path) as log:
        assert log.rows("SELECT step, record_offset FROM first_dev_scores ORDER BY step") == [
            {"step": 20, "record_offset": 0},
            {"step": 40, "record_offset": 2},
        ]
        (row,) = log.rows("SELECT * FROM dev_scores WHERE record_offset = 2")
    assert (row["measure"], row["value"], row["weights_sha256"]) == ("nDCG@10", 0.25, f"{40:064x}")
    assert row["sets"] == [{"name": "dev", "queries": 300, "measures": {"nDCG@10": 0.25, "R@100": 0.5}}]


def test_what_people_saw_and_did_are_rows_and_only_the_first_final_outcome_counts(tmp_path: Path) -> None:
    with Sink(tmp_path / LEDGER, QUICK) as sink:
        sink.write([record(impression(0), 0), record(impression(0), 1), record(user_action(0), 0)])
        outcomes = [impression_outcome(0, final=False), impression_outcome(0), impression_outcome(0)]
        sink.write([record(event, offset) for offset, event in enumerate(outcomes)])
    with open_log(tmp_path) as log:
        (seen,) = log.rows("SELECT * FROM first_impressions")
        (done,) = log.rows("SELECT * FROM first_user_actions")
        (final,) = log.rows("SELECT * FROM final_outcomes")
    assert (seen["impression_id"], seen["record_offset"], seen["client"], seen["index"]) == ("i0", 0, "c1", "shop-1")
    assert seen["offered"] == {"": 0.2, "1-abcdef-000002": 0.8}
    assert (done["kind"], done["document_id"], done["impression_id"]) == ("click", "d2", "i0")
    assert (final["record_offset"], final["policy"], final["action_propensity"]) == (1, "1-abcdef-000002", 0.8)
    assert [(each["kind"], each["document_id"]) for each in final["actions"]] == [("click", "d2")]


def test_a_search_and_what_was_done_with_it_are_one_row(tmp_path: Path) -> None:
    with Sink(tmp_path / LEDGER, QUICK) as sink:
        sink.write([record(feedback(0), 0), record(feedback(1), 1), record(feedback(0), 2)])
    with open_log(tmp_path) as log:
        (row,) = log.rows("FROM feedback WHERE record_offset = 1")
        assert row["shown"] == [{"document_id": "d1", "rank": 1}, {"document_id": "d2", "rank": 2}]
        assert row["actions"] == [{"kind": "click", "document_id": "d2", "rank": 2, "at_ms": 0}]
        assert log.rows("SELECT record_offset FROM first_feedback ORDER BY 1") == [
            {"record_offset": 0},
            {"record_offset": 1},
        ]


def test_a_redelivery_writes_nothing(tmp_path: Path) -> None:
    records = small_run(8)
    with Sink(tmp_path / LEDGER, QUICK) as sink:
        sink.write(records)
        assert sink.write(records) == 0
        assert sink.write([*records[-5:], *records]) == 0
    before = contents(tmp_path)
    with Sink(tmp_path / LEDGER, QUICK) as sink:
        assert sink.write(records) == 0
    assert contents(tmp_path) == before


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_deliveries_repeated_and_mixed_give_the_same_tables(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """A consumer that goes back to an earlier offset at any time, per partition, and polls partitions in any order."""
    partitions: dict[tuple[str, int], list[Received]] = {}
    for item in small_run(8):
        partitions.setdefault((item.position.topic, item.position.partition), []).append(item)
    clean, mixed = tmp_path_factory.mktemp("clean"), tmp_path_factory.mktemp("mixed")
    with Sink(clean / LEDGER, QUICK) as sink:
        sink.write(small_run(8))
    size = data.draw(st.integers(1, 40))
    with Sink(mixed / LEDGER, msgspec.structs.replace(QUICK, batch_records_max=size)) as sink:
        read = dict.fromkeys(partitions, 0)
        while any(read[name] < len(items) for name, items in partitions.items()):
            delivery: list[Received] = []
            for name in data.draw(st.permutations(sorted(partitions))):
                start = data.draw(st.integers(0, read[name]))  # Anything up to here may come again.
                end = data.draw(st.integers(start, len(partitions[name])))
                delivery += partitions[name][start:end]
                read[name] = max(read[name], end)
            if data.draw(st.booleans()):
                delivery += delivery[: data.draw(st.integers(0, len(delivery)))]
            sink.submit(delivery)
            if not delivery:  # Never stuck: the next poll brings the next record of each partition.
                for name, items in partitions.items():
                    sink.submit(items[read[name] : read[name] + 1])
                    read[name] = min(read[name] + 1, len(items))
    assert contents(mixed) == contents(clean)


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chance=st.randoms(use_true_random=False))
def test_groups_written_twice_in_the_log_count_once_and_the_first_counts(
    tmp_path_factory: pytest.TempPathFactory, chance: random.Random
) -> None:
    """A generator killed between produce and commit writes other text under the same id; both get rewards."""
    clean, doubled = tmp_path_factory.mktemp("clean"), tmp_path_factory.mktemp("doubled")
    groups = 6
    with Sink(clean / LEDGER, QUICK) as sink:
        sink.write([record(request(n), n) for n in range(groups)])
        sink.write([record(generation(n), n) for n in range(groups)])
        sink.write([record(reward(n), n) for n in range(groups)])
    log_generations = [(n, 0) for n in range(groups)]
    for n in chance.sample(range(groups), 3):  # A second text, anywhere after the first.
        log_generations.insert(chance.randint(log_generations.index((n, 0)) + 1, len(log_generations)), (n, 1))
    log_rewards = [(n, retry, offset) for offset, (n, retry) in enumerate(log_generations)]
    for item in chance.sample(log_rewards, 3):  # And the environment repeats itself, even far later.
        log_rewards.insert(chance.randint(log_rewards.index(item) + 1, len(log_rewards)), item)
    with Sink(doubled / LEDGER, QUICK) as sink:
        sink.write([record(reward(n, retry=r, source_offset=o), at) for at, (n, r, o) in enumerate(log_rewards)])
        sink.write([record(generation(n, retry=r), at) for at, (n, r) in enumerate(log_generations)])
        sink.write([record(request(n), n) for n in range(groups)])
    views = ("candidate_outcomes", "group_rewards", "accounting")
    assert contents(doubled, views) == contents(clean, views)
    assert one(doubled, "SELECT count(*) FROM rewards") == len(log_rewards)  # The ledger itself leaves nothing out.


def test_only_updates_that_the_newest_policy_stands_on_count(tmp_path: Path) -> None:
    """A learner killed after update 3 resumes from its checkpoint of update 1, in a new lineage."""
    updates = [
        update(1, range(4)),
        update(2, range(4, 8)),
        update(3, range(8, 12)),
        update(2, range(4, 8), lineage="b", parent=PolicyRef(lineage="a", step=1, sha256=f"{1:064x}")),
        update(3, range(8, 10), lineage="b"),
    ]
    records = [record(generation(n), n) for n in range(12)] + [record(reward(n), n) for n in range(12)]
    records += [record(item, offset) for offset, item in enumerate(updates)]
    records.append(record(updates[1], 5))  # An update published twice.
    records.append(record(updates[4], 6))
    with Sink(tmp_path / LEDGER, QUICK) as sink:
        sink.write(records)
    with open_log(tmp_path) as log:
        names = log.rows("SELECT lineage || step AS name FROM surviving_updates ORDER BY step")
        assert [row["name"] for row in names] == ["a1", "b2", "b3"]
        uses = log.rows(
            "SELECT uses, count(DISTINCT group_id) AS groups FROM candidate_outcomes GROUP BY uses ORDER BY uses"
        )
        assert uses == [{"uses": 0, "groups": 2}, {"uses": 1, "groups": 10}]


def test_undecodable_records_are_buried_once_and_the_rest_goes_on(tmp_path: Path) -> None:
    huge = encode_event(reward(0)).replace(b'"rank":1,', b'"rank":99999999999999999999,', 1)
    letters: list[DeadLetter] = []
    records = [
        raw_record("rewards", 0, b"{bad"),
        raw_record("rewards", 1, None, key=None),
        raw_record("rewards", 2, b'{"event":"reward/9"}'),
        raw_record("rewards", 3, huge),
        record(reward(4), 4),
        raw_record("rewards", 5, b"\xff" * 100),
        raw_record("rewards", 6, b"[" * 100_000),
    ]
    with Sink(tmp_path / LEDGER, QUICK, dead_letters=letters.extend) as sink:
        assert sink.write(records) == 7
        # The letters come back through their own topic.
        sink.write([record(letter, offset) for offset, letter in enumerate(letters)])
        sink.write([record(letters[0], len(letters))])
    assert [letter.source.offset for letter in letters] == [0, 1, 2, 3, 5, 6]
    assert [letter.value for letter in letters[:2]] == [b"{bad", None]
    with open_log(tmp_path) as log:
        assert log.rows("SELECT count(*) AS n FROM rewards") == [{"n": 1}]
        rows = log.rows("SELECT source_offset, error, value, headers FROM dead_letter ORDER BY source_offset")
        assert [row["source_offset"] for row in rows] == [0, 1, 2, 3, 5, 6]
        assert rows[3]["value"] == huge and "fits into no column" in rows[3]["error"]
        assert rows[0]["headers"] == [{"name": "trace", "value": b"\x00\xff"}]
        assert log.rows("SELECT first_offset, next_offset, records, undecodable FROM sink_offsets ORDER BY topic")[
            1
        ] == {
            "first_offset": 0,
            "next_offset": 7,
            "records": 7,
            "undecodable": 6,
        }


def test_gaps_in_the_offsets_are_counted_not_invented(tmp_path: Path) -> None:
    with Sink(tmp_path / LEDGER, QUICK) as sink:
        sink.write([record(reward(5), 5), record(reward(9), 9)])
        sink.write([record(reward(20), 20)])
    assert one(tmp_path, "SELECT next_offset - first_offset - records FROM sink_offsets") == 16 - 3


def test_a_second_sink_says_so_and_stops(tmp_path: Path) -> None:
    with Sink(tmp_path / LEDGER, QUICK) as sink:
        with pytest.raises(StorageError, match=f"another sink .*{os.getpid()}"):
            Sink(tmp_path / LEDGER, QUICK)
        code = f"from pathlib import Path; from storage.sink import Sink; Sink(Path({str(tmp_path / LEDGER)!r}))"
        other = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
        assert other.returncode == 1 and f"process {os.getpid()}" in other.stderr
        assert sink.write(small_run(4))
    with Sink(tmp_path / LEDGER, QUICK):
        pass  # And once the first is gone, the next may.


def test_a_reader_that_holds_the_file_is_waited_for(tmp_path: Path) -> None:
    Sink(tmp_path / LEDGER, QUICK).close()
    code = (
        f"import duckdb, sys; c = duckdb.connect({str(tmp_path / LEDGER)!r}, read_only=True)\n"
        "print('open', flush=True); sys.stdin.readline()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
        assert reader.stdout and reader.stdin
        reader.stdout.readline()
        with pytest.raises(StorageError, match="another process has this file open"):
            Sink(tmp_path / LEDGER, QUICK)
        reader.stdin.write(b"\n")
        reader.stdin.flush()
        with Sink(tmp_path / LEDGER, msgspec.structs.replace(QUICK, open_timeout_seconds=30)) as sink:
            assert sink.write(small_run(4))


KILLED = """
import sys
from pathlib import Path
from storage.sink import Sink, SinkSettings
from storage.archive import ArchiveSettings
from tests.stored_events import record, reward
records = [record(reward(n), n) for n in range(400)]
settings = SinkSettings(batch_records_max=16, archive=ArchiveSettings(segment_seconds_max=0.05))
with Sink(Path(sys.argv[1]), settings) as sink:
    start = sink.positions().get(("test.rewards", 0), 0)
    print(start, flush=True)
    for first in range(start, len(records), 16):
        sink.submit(records[max(first - 5, 0) : first + 16])
        print(first, flush=True)
print("done", flush=True)
"""


@pytest.mark.parametrize("seed", range(2))
def test_a_sink_killed_again_and_again_stores_every_row_once(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    path = tmp_path / LEDGER
    finished = False
    for _ in range(40):
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        ) as sink:
            assert sink.stdout
            lines = chance.randint(4, 12)  # Let it get on, so that the loop ends, then kill it wherever it is.
            for _ in range(lines):
                if (line := sink.stdout.readline().strip()) in ("done", ""):
                    finished = line == "done"
                    break
            else:
                time.sleep(chance.random() * 0.02)
                sink.send_signal(signal.SIGKILL)
        if finished:
            break
    assert finished
    assert one(tmp_path, "SELECT count(*) FROM rewards") == 400
    assert one(tmp_path, "SELECT count(DISTINCT record_offset) FROM rewards") == 400
    assert one(tmp_path, "SELECT count(*) FROM outcomes") == 400 * GROUP
    assert one(tmp_path, "SELECT records FROM sink_offsets") == 400
    with open_log(tmp_path) as log:
        assert [item.value for item in log.records()] == [encode_event(reward(n)) for n in range(400)]


class Commits:
    """Commits that fail: after the batch became durable, or before."""

    def __init__(self, plan: str) -> None:
        self.plan = list(plan)

    def __call__(self, connection: duckdb.DuckDBPyConnection, batch: object) -> None:
        step = self.plan.pop(0) if self.plan else "."
        if step != "-":
            store_batch(connection, batch)  # type: ignore[arg-type]
        if step != ".":
            raise duckdb.IOException("IO Error: No space left on device")


@pytest.mark.parametrize("plan", ["+", "-", "+-+", "..+.-"])
def test_a_commit_that_fails_proves_nothing(tmp_path: Path, plan: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failed and durable (+) or failed and gone (-): the sink reads the offsets and stores every row once."""
    monkeypatch.setattr(storage.sink, "store_batch", Commits(plan))
    records = [record(reward(n), n) for n in range(60)]
    with Sink(tmp_path / LEDGER, msgspec.structs.replace(QUICK, batch_records_max=10)) as sink:
        sink.write(records)
    assert one(tmp_path, "SELECT count(*) FROM rewards") == 60
    assert one(tmp_path, "SELECT count(DISTINCT record_offset) FROM rewards") == 60


def test_a_commit_that_fails_twice_stops_the_sink_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage.sink, "store_batch", Commits("..--"))
    settings_ = msgspec.structs.replace(QUICK, batch_records_max=10)
    sink = Sink(tmp_path / LEDGER, settings_)
    with pytest.raises(StorageError, match=r"disk is full.*free space"):
        sink.write([record(reward(n), n) for n in range(60)])
    with pytest.raises(StorageError, match="disk is full"):
        sink.write([record(reward(60), 60)])
    sink.close()
    assert one(tmp_path, "SELECT count(*) FROM rewards") == 20
    with Sink(tmp_path / LEDGER, settings_) as sink:
        assert sink.positions() == {("test.rewards", 0): 20}


FULL = """
import resource, sys
from pathlib import Path
from storage.errors import StorageError
from storage.sink import Sink, SinkSettings
from tests.stored_events import record, reward
path = Path(sys.argv[1])
sink = Sink(path, SinkSettings(batch_records_max=64))
sink.write([record(reward(n), n) for n in range(64)])
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]) * 2**20, resource.RLIM_INFINITY))
try:
    for first in range(64, 6400, 64):
        sink.write([record(reward(n), n) for n in range(first, first + 64)])
        print(sink.positions()[("test.rewards", 0)], flush=True)
except StorageError as error:
    print(error)
    sys.exit(7)
"""


@pytest.mark.parametrize("mib", [2, 5])
def test_a_full_disk_gives_a_clear_error_and_what_was_stored_is_whole(tmp_path: Path, mib: int) -> None:
    path = tmp_path / LEDGER
    ended = subprocess.run(
        [sys.executable, "-c", FULL, str(path), str(mib)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 7, ended.stderr
    *stored, error = ended.stdout.strip().splitlines()
    assert "disk is full" in error and "free space" in error
    promised = int(stored[-1]) if stored else 64
    with Sink(path, QUICK) as sink:
        start = sink.positions()["test.rewards", 0]
        assert start in (promised, promised + 64)  # The batch that failed may be durable all the same.
        sink.write([record(reward(n), n) for n in range(start - 10, 640)])
    assert one(tmp_path, "SELECT count(*) FROM rewards") == max(640, start)
    assert one(tmp_path, "SELECT count(DISTINCT record_offset) FROM rewards") == max(640, start)


def test_an_error_of_the_dead_letter_topic_stores_nothing(tmp_path: Path) -> None:
    """Letters are safe before their batch is: if they cannot be sent, the offsets stay where they are."""

    def refuse(_: list[DeadLetter]) -> None:
        raise ConnectionError("no broker")

    with Sink(tmp_path / LEDGER, QUICK, dead_letters=refuse) as sink:
        with pytest.raises(ConnectionError):
            sink.write([raw_record("rewards", 0, b"bad")])
        assert sink.positions() == {}


def test_a_damaged_file_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / LEDGER
    with Sink(path, QUICK) as sink:
        sink.write(small_run(8))
    path.write_bytes(b"\x00" * 8192 + path.read_bytes()[8192:])
    with pytest.raises(StorageError, match="rebuild it from its archive"):
        Sink(path, QUICK)
    with pytest.raises(StorageError, match="rebuild it from its archive"):
        open_log(tmp_path)


def test_a_database_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    with Sink(tmp_path / LEDGER, QUICK) as sink:
        sink.run(lambda c: c.execute("INSERT INTO schema_migrations VALUES (99, 'later', '', 0)").fetchall())
    with pytest.raises(StorageError, match=r"migration 99.*upgrade searchloop"):
        Sink(tmp_path / LEDGER, QUICK)


def test_migrations_are_applied_once_and_in_order() -> None:
    with duckdb.connect() as connection:
        steps = migrations()
        assert [step.number for step in steps] == list(range(1, len(steps) + 1))
        assert migrate(connection) == [step.number for step in steps]
        assert migrate(connection) == []
        later = Migration(number=len(steps) + 1, name="later", sql="CREATE TABLE later (x INTEGER)")
        assert migrate(connection, (*steps, later)) == [later.number]
        edited = (Migration(number=1, name="ledger", sql="SELECT 1"), *steps[1:], later)
        with pytest.raises(StorageError, match="migration 1 "):
            migrate(connection, edited)


def test_a_migration_that_fails_leaves_nothing() -> None:
    with duckdb.connect() as connection:
        wrong = Migration(number=1, name="wrong", sql="CREATE TABLE half (x INTEGER); CREATE TABLE half (x INTEGER)")
        with pytest.raises(duckdb.Error):
            migrate(connection, (wrong,))
        assert connection.execute("SELECT count(*) FROM schema_migrations").fetchall() == [(0,)]
        assert connection.execute("SELECT count(*) FROM duckdb_tables() WHERE table_name = 'half'").fetchall() == [(0,)]


def test_every_table_is_filled_column_by_column() -> None:
    """The Arrow columns and the SQL columns are the same: a column that is forgotten would stay empty for ever."""
    letter = DeadLetter(
        source=Position(topic="t", partition=0, offset=0),
        key=b"k",
        value=b"v",
        headers=(("h", b"x"),),
        stage="generator",
        error="why",
        attempts=3,
    )
    batch = build_batch(
        [
            *small_run(4),
            record(version(9, status="retired"), 9),
            record(dev_score(9), 0),
            record(feedback(0), 0),
            record(impression(0), 0),
            record(user_action(0), 0),
            record(impression_outcome(0), 0),
            record(decision(0), 0),
            record(letter, 0),
        ]
    )
    with duckdb.connect() as connection:
        migrate(connection)
        for name, rows in batch.tables.items():
            columns = connection.execute(
                "SELECT column_name FROM information_schema.columns WHERE table_name = ?", [name]
            ).fetchall()
            assert sorted(rows.column_names) == sorted(column for (column,) in columns), name
        store_batch(connection, batch)
        known = {name for (name,) in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
    assert known - set(batch.tables) == {"schema_migrations", "sink_offsets", "archive_segments"}
    assert batch.tables["records"].column("headers").type == HEADERS


def test_a_reward_that_the_learner_would_refuse_is_a_dead_letter_and_no_row() -> None:
    """Malformed in its tokens alone, which no column holds."""
    good = record(reward(0), 0)
    assert good.value is not None
    bad = msgspec.structs.replace(good, value=re.sub(rb'"token_ids":\[\d+', b'"token_ids":["one"', good.value, count=1))
    with pytest.raises(EventError, match="token_ids"):
        decode(bad.value)
    batch = build_batch([bad])
    assert set(batch.tables) == {"records", "dead_letters"}
    assert [letter.source for letter in batch.letters] == [bad.position]


@pytest.fixture
def small_batches(tmp_path: Path) -> Iterator[Callable[[], Sink]]:
    yield lambda: Sink(tmp_path / LEDGER, msgspec.structs.replace(QUICK, batch_bytes_max=30_000))


def test_a_transaction_holds_no_more_than_its_limit(
    small_batches: Callable[[], Sink], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    def note(connection: duckdb.DuckDBPyConnection, batch: object) -> None:
        store_batch(connection, batch)  # type: ignore[arg-type]
        sizes.append(batch.bytes)  # type: ignore[attr-defined]

    monkeypatch.setattr(storage.sink, "store_batch", note)
    with small_batches() as sink:
        assert sink.write([record(reward(n), n) for n in range(20)]) == 20
    assert len(sizes) == 10 and max(sizes) <= 30_000  # Two records of 12 kB at a time.
