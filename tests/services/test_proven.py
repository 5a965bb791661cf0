"""A second proof reads only what is new, and still finds whatever was changed in what an earlier one has read."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import duckdb
import msgspec
import pytest

from storage.archive import ARCHIVE, find_segments
from storage.ledger import LEDGER
from storage.log import open_log
from storage.sink import Sink
from storage.verification import proven, reading
from storage.verification.account import Account
from storage.verification.chain import Head
from storage.verification.verify import Circumstances, verify_log
from streams.codec import content_sha256, encode_event
from streams.records import Received
from tests.finished_run import AT_ONCE
from tests.stored_events import RUN, generation, policy, record, request, reward, small_run

GROUPS, MORE, BUCKET, NEWEST = 40, 60, 4, 8
RECORDS = 3 * GROUPS  # Of the three topics with groups.


@pytest.fixture(autouse=True)
def small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("storage.contents", "storage.verification.reading", "storage.verification.proven"):
        monkeypatch.setattr(f"{module}.BUCKET_RECORDS", BUCKET)
    monkeypatch.setattr(reading, "NEWEST_RECORDS", NEWEST)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Received]:
    """Give the records whose bytes a proof has read."""
    seen: list[Received] = []
    plain = reading.read_entry

    def entry(item: Received) -> object:
        seen.append(item)
        return plain(item)

    monkeypatch.setattr(reading, "read_entry", entry)
    return seen


def write(folder: Path, records: list[Received]) -> None:
    with Sink(folder / LEDGER, AT_ONCE) as sink:
        for first in range(0, len(records), 7):
            sink.write(records[first : first + 7])


def proved(folder: Path, *, groups: int, rebuild: bool = False) -> Account:
    head = Head(policy=policy(groups // 4), update=None, positions={0: groups}, staleness_max=0)
    with open_log(folder) as log:
        return verify_log(log, run=RUN, topics=None, known=Circumstances(head=head), rebuild=rebuild, memory=folder)


def said(account: Account) -> list[str]:
    return [f"{finding.rule}: {finding.where}: {finding.what}" for finding in account.findings]


def of_groups(records: list[Received]) -> list[Received]:
    return [each for each in records if each.position.topic.endswith(("requests", "generations", "rewards"))]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    write(folder, small_run(GROUPS))
    return folder


@pytest.fixture
def run(sound: Path, tmp_path: Path) -> Iterator[Path]:
    """Give the folder of a run that was proven whole."""
    folder = tmp_path / "run"
    shutil.copytree(sound, folder)
    assert said(proved(folder, groups=GROUPS, rebuild=True)) == []
    yield folder


def grow(folder: Path, first: int = GROUPS) -> None:
    records = small_run(MORE)
    known = {(each.position.topic, each.position.offset) for each in small_run(first)}
    write(folder, [each for each in records if (each.position.topic, each.position.offset) not in known])


def test_a_run_that_grew_is_read_from_where_the_earlier_proof_ended(run: Path, read: list[Received]) -> None:
    grow(run)
    read.clear()
    account = proved(run, groups=MORE)
    assert said(account) == []
    offsets = [each.position.offset for each in of_groups(read)]
    assert min(offsets) == GROUPS and len(offsets) == 3 * (MORE - GROUPS)
    assert not any("before the newest" in line for line in account.unseen)
    assert any("an earlier verify has read" in line for line in account.unseen)
    # The next proof goes on from there; a rebuild reads everything, and finds the same.
    read.clear()
    assert said(proved(run, groups=MORE)) == []
    assert len(of_groups(read)) == 3 * NEWEST
    read.clear()
    again = proved(run, groups=MORE, rebuild=True)
    assert said(again) == [] and len(of_groups(read)) == 3 * MORE
    assert not any("earlier verify" in line for line in again.unseen)


def test_without_an_earlier_proof_the_newest_records_are_read_and_nothing_is_kept(
    sound: Path, tmp_path: Path, read: list[Received]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(sound, folder)
    account = proved(folder, groups=GROUPS)
    assert said(account) == [] and len(of_groups(read)) == 3 * NEWEST
    assert any("before the newest" in line for line in account.unseen)
    read.clear()
    assert said(proved(folder, groups=GROUPS)) == [] and len(of_groups(read)) == 3 * NEWEST


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("UPDATE candidates SET text = 'x' WHERE record_offset = 5 AND candidate = 2", "table candidates"),
        ("UPDATE outcomes SET reward = 9 WHERE record_offset = 5 AND candidate = 2", "table outcomes"),
        ("UPDATE requests SET query = 'x' WHERE record_offset = 5", "table requests"),
        ("UPDATE generations SET step = 9 WHERE record_offset = 5", "table generations"),
    ],
)
def test_a_row_of_a_proven_record_that_was_changed_is_found(run: Path, statement: str, expected: str) -> None:
    with duckdb.connect(str(run / LEDGER)) as connection:
        connection.execute(statement)
    assert any(line.startswith(f"rebuilt from the log: {expected}") for line in said(proved(run, groups=GROUPS)))


def test_a_proven_segment_that_was_changed_is_found(run: Path) -> None:
    path = find_segments(run / ARCHIVE, ("test.rewards", 0))[1]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert any("has changed: expected sha256" in line for line in said(proved(run, groups=GROUPS)))


def test_a_segment_that_was_replaced_together_with_its_row_is_read_again(run: Path, read: list[Received]) -> None:
    """Somebody writes other rewards into a segment, and its new hash into the ledger."""
    path = find_segments(run / ARCHIVE, ("test.rewards", 0))[1]
    name = str(path.relative_to(run / ARCHIVE))
    with duckdb.connect() as connection:
        connection.execute(f"CREATE TABLE s AS FROM '{path}'")
        (old,) = connection.execute("SELECT value FROM s ORDER BY record_offset LIMIT 1").fetchall()[0]
        event = msgspec.json.decode(old)
        event["outcomes"][0]["reward"] = 0.987654
        columns = "* REPLACE (CASE WHEN value = ? THEN ? ELSE value END AS value)"
        connection.execute(f"CREATE TABLE t AS SELECT {columns} FROM s", [old, msgspec.json.encode(event)])
        connection.execute(f"COPY (FROM t ORDER BY record_offset) TO '{path}' (FORMAT parquet)")
    with duckdb.connect(str(run / LEDGER)) as connection:
        connection.execute(
            "UPDATE archive_segments SET sha256 = ?, bytes = ? WHERE path = ?",
            [content_sha256(path.read_bytes()), path.stat().st_size, name],
        )
    read.clear()
    lines = said(proved(run, groups=GROUPS))
    rewards = [each for each in read if each.position.topic == "test.rewards"]
    assert len(rewards) == GROUPS, "no proof of this partition counts, so all of it is read"
    assert any(line.startswith("rebuilt from the log: table outcomes") for line in lines), lines


def test_a_new_record_is_compared_with_the_proven_one_that_it_holds(run: Path) -> None:
    """A reward that comes later holds a request with another time than the one that lies at its source."""
    old = generation(5)
    forged = msgspec.structs.replace(old, request=msgspec.structs.replace(request(5), made_at_ms=77))
    write(run, [record(forged, GROUPS), record(reward(6, source_offset=6, step=1), GROUPS)])
    lines = said(proved(run, groups=GROUPS))
    assert any("holds another request than lies at test.requests[0]@5" in line for line in lines), lines
    assert encode_event(forged) != encode_event(old)


def test_a_state_that_is_damaged_or_of_other_rules_proves_nothing(
    run: Path, read: list[Received], monkeypatch: pytest.MonkeyPatch
) -> None:
    def counted() -> int:
        read.clear()
        assert said(proved(run, groups=GROUPS)) == []
        return len(of_groups(read))

    state = (run / proven.PLACE / proven.STATE).read_bytes()
    assert counted() == 3 * NEWEST
    monkeypatch.setattr(proven, "FORMAT", proven.FORMAT + 1)
    account = proved(run, groups=GROUPS)
    assert any("before the newest" in line for line in account.unseen)
    monkeypatch.undo()
    (run / proven.PLACE / proven.STATE).write_bytes(state[:-5])
    with open_log(run) as log:
        assert proven.Earlier(log, run, None).below(("test.rewards", 0)) == 0
