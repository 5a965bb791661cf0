"""The archive gives back the log byte for byte, also while a sink is at work; the ledger is built from it anew."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pytest

import storage.archive
from storage.archive import ARCHIVE, ArchiveSettings, close_segments, find_segments, read_archive
from storage.contents import table_hashes
from storage.errors import StorageError
from storage.ledger import LEDGER, build_batch, store_batch
from storage.log import open_log, rebuild_ledger
from storage.sink import Sink, SinkSettings
from streams.events import Reward, Update
from streams.records import Received
from tests.services.test_sink import QUICK, ROOT, TABLES, contents
from tests.stored_events import raw_record, record, reward, small_run

AT_ONCE = SinkSettings(open_timeout_seconds=0, archive=ArchiveSettings(segment_seconds_max=1e-9))


def by_place(records: list[Received]) -> list[Received]:
    return sorted(records, key=lambda item: item.position)


def some_records() -> list[Received]:
    odd = [raw_record("rewards", 50, None, key=None), raw_record("rewards", 51, b"\x00\xff not json", key=b"")]
    return by_place([*small_run(12), *odd])


def test_the_archive_gives_back_every_record_byte_for_byte(tmp_path: Path) -> None:
    records = some_records()
    with Sink(tmp_path / LEDGER, AT_ONCE) as sink:
        for first in range(0, len(records), 7):
            sink.write(records[first : first + 7])
    assert len(find_segments(tmp_path / ARCHIVE)) > 5
    assert list(read_archive(tmp_path / ARCHIVE)) == records
    with open_log(tmp_path) as log:
        assert list(log.records()) == records
        assert log.rows("SELECT count(*) AS n FROM records") == [{"n": 0}]
        listed = log.rows("SELECT path, records FROM archive_segments ORDER BY topic, partition, first_offset")
        assert [tmp_path / ARCHIVE / row["path"] for row in listed] == find_segments(tmp_path / ARCHIVE)
        assert sum(row["records"] for row in listed) == len(records)


def test_events_are_read_back_typed(tmp_path: Path) -> None:
    with Sink(tmp_path / LEDGER, QUICK) as sink:
        sink.write(small_run(8))
        sink.run(lambda connection: close_segments(connection, sink.archive))
        sink.write([record(reward(8, step=2), 8)])
        sink._broken = StorageError("leave the last record in the ledger")
    with open_log(tmp_path) as log:
        found = list(log.events(Reward))
        assert [event for _, event in found] == [reward(n, step=n // 4) for n in range(9)]
        assert [position.offset for position, _ in found] == list(range(9))
        assert [event.policy.step for _, event in log.events(Update)] == [1, 2]


def test_a_running_sinks_log_is_read_from_its_archive(tmp_path: Path) -> None:
    records = small_run(8)
    with Sink(tmp_path / LEDGER, QUICK) as sink:
        sink.write(records)
        sink.run(lambda connection: close_segments(connection, sink.archive))
        sink.write([record(reward(8), 8)])  # Not archived yet.
        code = (
            "import sys; from pathlib import Path; from storage.log import open_log\n"
            "log = open_log(Path(sys.argv[1]))\n"
            "print(log.live, len(log.rows('FROM rewards')), len(list(log.records())))"
        )
        other = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert other.stdout.split() == ["True", "8", str(len(records))]
        with open_log(tmp_path) as log:  # The same from a thread of the sink's own process.
            assert log.live and len(log.rows("FROM rewards")) == 8
    with open_log(tmp_path) as log:
        assert not log.live and len(log.rows("FROM rewards")) == 9


@pytest.mark.parametrize("damage", ["lost", "torn"])
def test_the_ledger_rebuilt_from_the_archive_is_the_same_ledger(tmp_path: Path, damage: str) -> None:
    records = some_records()
    with Sink(tmp_path / LEDGER, AT_ONCE) as sink:
        for first in range(0, len(records), 7):
            sink.write(records[first : first + 7])
    before = contents(tmp_path)
    path = tmp_path / LEDGER
    if damage == "lost":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:5000])
    assert rebuild_ledger(tmp_path) == len(records)
    assert contents(tmp_path) == before
    assert path.with_name(f"{LEDGER}.damaged").exists() == (damage == "torn")
    with Sink(path, QUICK) as sink:
        assert sink.write(records) == 0


def hashes(folder: Path) -> dict[str, str]:
    with open_log(folder) as log:
        return table_hashes(log.connection)


def test_a_ledger_built_anew_has_the_hashes_of_the_one_before_also_of_what_was_not_archived(tmp_path: Path) -> None:
    records = some_records()
    with Sink(tmp_path / LEDGER, QUICK) as sink:
        sink.write(records[:30])
        sink.run(lambda connection: close_segments(connection, sink.archive))
        sink.write(records[30:])
        sink._broken = StorageError("leave the last records in the ledger")
    before = hashes(tmp_path)
    assert before["outcomes"].startswith("96 rows, ")
    assert rebuild_ledger(tmp_path) == len(records)
    assert hashes(tmp_path) == before
    with open_log(tmp_path) as log:
        assert list(log.records()) == records
    with Sink(tmp_path / LEDGER, QUICK) as sink:
        assert sink.write(records) == 0
    assert hashes(tmp_path) == before


def test_the_hash_of_a_table_knows_every_bit_and_every_repetition_but_no_order(tmp_path: Path) -> None:
    for name, order in (("one", 1), ("other", -1)):
        with Sink(tmp_path / name / LEDGER, QUICK) as sink:
            for item in small_run(4)[::order]:
                sink.run(lambda connection, item=item: store_batch(connection, build_batch([item])))
    one, other = hashes(tmp_path / "one"), hashes(tmp_path / "other")
    del one["sink_offsets"], other["sink_offsets"]  # Written backwards, the offsets end elsewhere.
    assert one == other
    for statement in (
        "UPDATE outcomes SET reward = nextafter(reward, 2) WHERE record_offset = 1 AND candidate = 0",
        "INSERT INTO outcomes FROM outcomes LIMIT 1",
    ):
        before = hashes(tmp_path / "one")
        with duckdb.connect(str(tmp_path / "one" / LEDGER)) as connection:
            connection.execute(statement)
        after = hashes(tmp_path / "one")
        assert {name for name in after if after[name] != before[name]} == {"outcomes"}


def test_a_missing_segment_stops_a_rebuild_and_says_which(tmp_path: Path) -> None:
    with Sink(tmp_path / LEDGER, AT_ONCE) as sink:
        for number in range(6):
            sink.write([record(reward(number), number)])
    before = (tmp_path / LEDGER).read_bytes()
    segments = find_segments(tmp_path / ARCHIVE)
    segments[2].unlink()
    segments[3].unlink()
    with pytest.raises(StorageError, match=r"no segment holds test.rewards\[0\]@2-3\. Restore .* --gaps"):
        rebuild_ledger(tmp_path)
    assert (tmp_path / LEDGER).read_bytes() == before
    assert rebuild_ledger(tmp_path, gaps=True) == 4


LEFT_BEHIND = """
import os, signal, sys
from pathlib import Path
from storage.archive import ArchiveSettings, close_segments
from storage.sink import Sink, SinkSettings
from tests.stored_events import record, reward
sink = Sink(Path(sys.argv[1]), SinkSettings(batch_records_max=10))
sink.write([record(reward(n), n) for n in range(40)])
sink.run(lambda connection: close_segments(connection, sink.archive))
sink.write([record(reward(n), n) for n in range(40, 60)])
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_flipped_byte_in_the_write_ahead_log_is_noticed_and_the_archive_mends_it(tmp_path: Path) -> None:
    path = tmp_path / LEDGER
    subprocess.run([sys.executable, "-c", LEFT_BEHIND, str(path)], cwd=ROOT, check=False)
    log_file = path.with_name(path.name + ".wal")
    whole = log_file.read_bytes()
    with open_log(tmp_path) as log:
        assert log.rows("SELECT count(*) AS n FROM rewards") == [{"n": 60}]
    torn = bytearray(whole)
    torn[len(whole) // 2] ^= 0x04
    log_file.write_bytes(torn)
    with pytest.raises(StorageError, match="searchloop rebuild --run"):
        Sink(path, QUICK)
    assert rebuild_ledger(tmp_path) == 40
    with Sink(path, QUICK) as sink:  # Kafka still has what was not archived.
        start = sink.positions()["test.rewards", 0]
        assert start == 40
        sink.write([record(reward(n), n) for n in range(start, 60)])
    with open_log(tmp_path) as log:
        assert log.rows("SELECT count(*) AS n, count(DISTINCT record_offset) AS d FROM rewards") == [{"n": 60, "d": 60}]


def test_a_rebuild_waits_for_no_sink(tmp_path: Path) -> None:
    with Sink(tmp_path / LEDGER, AT_ONCE) as sink:
        sink.write(small_run(4))
        with pytest.raises(StorageError, match="another sink"):
            rebuild_ledger(tmp_path)


@pytest.mark.parametrize("moment", ["before the rename", "after the rename"])
def test_a_sink_that_dies_while_archiving_loses_and_doubles_nothing(
    tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dead(BaseException):
        pass

    def die(*_: object) -> None:
        raise Dead

    records = by_place(small_run(8))
    sink = Sink(tmp_path / LEDGER, QUICK)
    sink.write(records[:20])
    with monkeypatch.context() as patch:
        if moment == "before the rename":
            patch.setattr("streams.whole_file.os.fsync", die)
        else:
            patch.setattr(storage.archive, "list_segment", die)
        with pytest.raises(Dead):
            sink.run(lambda connection: close_segments(connection, sink.archive))
    sink._broken = StorageError("dead")
    sink.close()
    assert bool(find_segments(tmp_path / ARCHIVE)) == (moment == "after the rename")
    with open_log(tmp_path) as log:
        assert by_place(list(log.records())) == records[:20]
    with Sink(tmp_path / LEDGER, AT_ONCE) as sink:
        sink.write(records)
    assert list(read_archive(tmp_path / ARCHIVE)) == records
    before = contents(tmp_path, TABLES)
    rebuild_ledger(tmp_path)
    assert contents(tmp_path, TABLES) == before


def test_a_flipped_byte_in_a_segment_is_noticed(tmp_path: Path) -> None:
    with Sink(tmp_path / LEDGER, AT_ONCE) as sink:
        sink.write([record(reward(n), n) for n in range(20)])
    (segment,) = find_segments(tmp_path / ARCHIVE)
    whole = segment.read_bytes()
    for place in range(10, len(whole), len(whole) // 15):
        torn = bytearray(whole)
        torn[place] ^= 0x10
        segment.write_bytes(torn)
        try:
            read = list(read_archive(tmp_path / ARCHIVE))
        except StorageError as error:
            assert str(segment) in str(error)
        else:
            assert read == [record(reward(n), n) for n in range(20)]  # A byte that means nothing.
    segment.write_bytes(whole)
    assert len(list(read_archive(tmp_path / ARCHIVE))) == 20


def test_a_segment_closes_when_it_is_old_although_nothing_comes(tmp_path: Path) -> None:
    settings = SinkSettings(archive=ArchiveSettings(segment_seconds_max=0.2))
    with Sink(tmp_path / LEDGER, settings) as sink:
        sink.write([record(reward(0), 0)])
        deadline = time.monotonic() + 30
        while not find_segments(tmp_path / ARCHIVE):
            sink.write([])
            assert time.monotonic() < deadline
    assert len(find_segments(tmp_path / ARCHIVE)) == 1


def test_a_folder_without_a_log_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="train first"):
        open_log(tmp_path)


def test_a_wrong_question_is_an_error_in_one_line(tmp_path: Path) -> None:
    with Sink(tmp_path / LEDGER, QUICK) as sink:
        sink.write(small_run(4))
    with open_log(tmp_path) as log:
        with pytest.raises(StorageError, match="nothing_here") as caught:
            log.rows("SELECT * FROM nothing_here")
        assert "\n" not in str(caught.value)
        with pytest.raises(StorageError, match="read-only"):
            log.rows("DELETE FROM rewards")
