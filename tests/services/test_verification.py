"""The proof holds on a sound run, and whatever is tampered with is found, named and placed."""

from __future__ import annotations

import shutil
from pathlib import Path

import duckdb
import msgspec
import pytest

from storage.archive import ARCHIVE, find_segments
from storage.ledger import LEDGER
from storage.log import open_log
from storage.sink import Sink, SinkSettings
from storage.verification.account import Account, spans
from storage.verification.chain import Head
from storage.verification.verify import Circumstances, verify_log
from streams.events import DeadLetter, PolicyRef
from streams.records import Received
from tests.finished_run import AT_ONCE, FakeTopics
from tests.services.test_sink import QUICK
from tests.stored_events import (
    GROUP,
    RUN,
    generation,
    policy,
    raw_record,
    record,
    request,
    reward,
    small_run,
    update,
    version,
)

HEAD = Head(policy=policy(3), update=None, positions={0: 12}, staleness_max=0)


def written(folder: Path, records: list[Received], settings: SinkSettings = QUICK) -> FakeTopics:
    with Sink(folder / LEDGER, settings) as sink:
        for first in range(0, len(records), 7):
            sink.write(records[first : first + 7])
    return FakeTopics(records)


def proved(folder: Path, topics: FakeTopics | None, *, head: Head | None = HEAD, rebuild: bool = False) -> Account:
    with open_log(folder) as log:
        known = Circumstances(head=head)
        return verify_log(log, run=RUN, topics=topics.seen() if topics else None, known=known, rebuild=rebuild)


def said(account: Account) -> list[str]:
    return [f"{finding.rule}: {finding.where}: {finding.what}" for finding in account.findings]


def tamper(folder: Path, *statements: str) -> None:
    with duckdb.connect(str(folder / LEDGER)) as connection:
        for statement in statements:
            connection.execute(statement)


@pytest.fixture(scope="module")
def sound_folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FakeTopics]:
    folder = tmp_path_factory.mktemp("sound")
    return folder, written(folder, small_run(12), AT_ONCE)


@pytest.fixture
def run(sound_folder: tuple[Path, FakeTopics], tmp_path: Path) -> tuple[Path, FakeTopics]:
    """Give a sound run's folder, to be tampered with, and its topics."""
    folder = tmp_path / "run"
    shutil.copytree(sound_folder[0], folder)
    topics = FakeTopics([item for items in sound_folder[1].records.values() for item in items])
    return folder, topics


def test_a_sound_run_is_proved_with_kafka_without_it_and_rebuilt(run: tuple[Path, FakeTopics]) -> None:
    folder, topics = run
    account = proved(folder, topics, rebuild=True)
    assert said(account) == []
    assert account.sound and account.uses_max == 1
    rows = {row.topic: row for row in account.partitions}
    assert (rows["test.rewards"].end, rows["test.rewards"].rows, rows["test.rewards"].residual) == (12, 12, 0)
    generator, environment, learner = account.stages
    assert (generator.taken, generator.fates["answered"]) == (12, 12)
    assert (environment.taken, environment.fates["scored"]) == (12 * GROUP, 12 * GROUP)
    assert (learner.taken, learner.fates["trained"]) == (12, 12)
    assert account.tables["outcomes"].startswith(f"{12 * GROUP} rows, ")
    assert proved(folder, None, rebuild=True).sound


ROW = "DELETE FROM {} WHERE record_offset = 5"


@pytest.mark.parametrize(
    ("statements", "expected"),
    [
        ([ROW.format("requests")], "one row a record: test.requests[0]@5: the record is kept, but has no row"),
        ([ROW.format("rewards")], "one row a record: test.rewards[0]@5: the record is kept, but has no row"),
        (
            ["INSERT INTO rewards FROM rewards WHERE record_offset = 5"],
            "one row a record: test.rewards[0]@5: the record has more than one row",
        ),
        (
            ["DELETE FROM outcomes WHERE record_offset = 5 AND candidate = 3"],
            "one outcome a candidate: test.generations[0]@5: candidate {group5}:3 was asked for and has no outcome",
        ),
        (
            ["INSERT INTO outcomes FROM outcomes WHERE record_offset = 5 AND candidate = 3"],
            "one outcome a candidate: test.rewards[0]@5: candidate {group5}:3 has 2 outcomes",
        ),
        (
            ["UPDATE outcomes SET reward = NULL WHERE record_offset = 5 AND candidate = 3"],
            "terminal outcomes: test.rewards[0]@5: candidate {group5}:3 is 'scored' with reward None",
        ),
        (
            ["DELETE FROM candidates WHERE record_offset = 5 AND candidate = 3"],
            "one row a candidate: test.generations[0]@5: 8 candidates were written, 7 of them have a row",
        ),
        (
            ["INSERT INTO update_groups SELECT * REPLACE (1 AS record_offset, 2 AS step) FROM update_groups "
             "WHERE group_id = '{group2}'"],
            "at most one gradient: test.updates[0]@1: group {group2} was taken 2 times along the surviving lineage, 2 "
            "times for a gradient: by a-000001 (trained), a-000002 (trained)",
        ),
        (
            ["INSERT INTO update_groups FROM update_groups WHERE group_id = '{group2}'"],
            "at most one gradient: test.updates[0]@0: group {group2} was taken 2 times",
        ),
        (
            ["DELETE FROM update_groups WHERE group_id = '{group2}'"],
            "every group taken: test.rewards[0]@2: group {group2} lies below the learner's position, but no update",
        ),
        (
            ["UPDATE update_groups SET fate = 'flat' WHERE group_id = '{group2}'"],
            "fates follow from the log: test.updates[0]@0: version a-000001 counted group {group2} as flat",
        ),
        (
            ["UPDATE outcomes SET reward = 1 WHERE record_offset = 2"],
            "fates follow from the log: test.updates[0]@0: version a-000001 counted group {group2} as trained, but it "
            "has 8 scored candidates, rewards from 1.0 to 1.0",
        ),
        (
            ["UPDATE rewards SET step = -1 WHERE record_offset = 2"],
            "counted group {group2} as trained, but it has 8 scored",
        ),
        (
            ["DELETE FROM updates WHERE step = 2"],
            "lineage: test.updates[0]@2: stands on a-000002, of which the log has no update with these weights",
        ),
        (
            ["UPDATE rewards SET source_offset = 7 WHERE record_offset = 5"],
            "rewards answer generations: test.rewards[0]@5: the reward of group {group5} answers test.generations[0]@7",
        ),
        (
            ["UPDATE sink_offsets SET records = records - 1 WHERE topic = 'test.rewards'"],
            "offsets: test.rewards[0]: the ledger counted 11 records, 12 are kept",
        ),
    ],
)  # fmt: skip
def test_tampering_with_the_ledger_is_found_and_placed(
    run: tuple[Path, FakeTopics], statements: list[str], expected: str
) -> None:
    folder, topics = run
    groups = {f"group{n}": generation(n).group_id for n in range(12)}
    tamper(folder, *(statement.format(**groups) for statement in statements))
    account = proved(folder, topics)
    assert not account.sound
    assert any(expected.format(**groups) in line for line in said(account)), said(account)


def test_a_number_changed_in_a_row_is_found_by_building_the_ledger_anew(run: tuple[Path, FakeTopics]) -> None:
    folder, topics = run
    tamper(folder, "UPDATE outcomes SET reward = reward + 1e-9 WHERE record_offset = 5 AND candidate = 3")
    for rebuild in (False, True):
        lines = said(proved(folder, topics, rebuild=rebuild))
        assert [line for line in lines if "rebuilt from the log: table outcomes" in line] == lines != []
        assert "rows of test.rewards[0]@0-511 differ" in lines[0]


def test_an_offset_that_the_sink_skipped_is_found_in_kafka(tmp_path: Path) -> None:
    records = small_run(12)
    topics = written(tmp_path, [item for item in records if item.position != record(reward(5), 5).position])
    topics.records = FakeTopics(records).records
    account = proved(tmp_path, topics)
    assert "nothing lost: test.rewards[0]@5: Kafka holds a record here" in "\n".join(said(account))
    assert next(row for row in account.partitions if row.topic == "test.rewards").residual == 1


def test_a_hole_that_kafka_has_too_is_a_gap_and_one_that_nobody_remembers_is_lost(tmp_path: Path) -> None:
    topics = written(tmp_path, [*small_run(12), record(request(13), 13)])
    account = proved(tmp_path, topics)
    assert said(account) == []
    (row,) = (row for row in account.partitions if row.topic == "test.requests")
    assert (row.next_offset, row.gaps, row.rows, row.residual) == (14, 1, 13, 0)
    topics.start[("test.requests", 0)] = 13
    assert any("nothing lost: test.requests[0]@12" in line for line in said(proved(tmp_path, topics)))
    assert any("without Kafka nobody knows" in line for line in said(proved(tmp_path, None)))


def test_a_missing_and_a_changed_segment_are_found(run: tuple[Path, FakeTopics]) -> None:
    folder, topics = run
    segments = [path for path in find_segments(folder / ARCHIVE) if "test.rewards" in str(path)]
    segments[0].unlink()
    segments[1].write_bytes(segments[1].read_bytes()[:-1] + b"\x00")
    lines = said(proved(folder, topics))
    assert any(line.startswith("archive: test.rewards[0]@") and "is missing" in line for line in lines)
    assert any(line.startswith("archive: test.rewards[0]@") and "has changed" in line for line in lines)
    assert any(line.startswith("bytes are kept: test.rewards[0]@") for line in lines)


def test_a_topic_made_anew_is_found(run: tuple[Path, FakeTopics]) -> None:
    folder, topics = run
    topics.records["test.rewards", 0] = topics.records["test.rewards", 0][:3]
    assert any("offsets: test.rewards[0]@3: Kafka's log ends here" in line for line in said(proved(folder, topics)))


def test_bytes_that_differ_from_kafkas_are_found(run: tuple[Path, FakeTopics]) -> None:
    folder, topics = run
    records = topics.records["test.rewards", 0]
    records[4] = record(reward(4, step=1, retry=1), 4)
    lines = said(proved(folder, topics, rebuild=True))
    assert "bytes are kept: test.rewards[0]@4: the kept copy of this record differs from Kafka's in its value" in lines
    topics.records["test.generations", 0][3] = record(generation(3, retry=1), 3)
    lines = said(proved(folder, topics, rebuild=True))
    assert any(line.startswith("rewards answer generations: test.rewards[0]@3") for line in lines)


def test_what_is_under_way_is_waiting_and_what_was_committed_without_an_answer_is_lost(tmp_path: Path) -> None:
    records = small_run(12)
    records += [record(request(n), n) for n in range(12, 20)]
    records += [record(generation(n, step=3), n) for n in range(12, 16)]
    records += [record(reward(n, step=3), n) for n in range(12, 14)]
    topics = written(tmp_path, records)
    account = proved(tmp_path, topics)
    assert said(account) == []
    assert [stage.waiting for stage in account.stages] == [4, 2 * GROUP, 2]
    topics.committed = {("test.requests", 0): 18, ("test.generations", 0): 15}
    lines = said(proved(tmp_path, topics))
    assert "requests end: test.requests[0]@16: request request-16 has neither a generation nor a dead letter" in lines
    assert sum("one outcome a candidate: test.generations[0]@14" in line for line in lines) == GROUP


def test_a_dead_letter_ends_a_request_and_undecodable_records_add_up(tmp_path: Path) -> None:
    records = [*small_run(12), raw_record("rewards", 12, b"{bad"), raw_record("requests", 12, None)]
    account = proved(tmp_path, written(tmp_path, records))
    assert said(account) == []
    (row,) = (row for row in account.partitions if row.topic == "test.rewards")
    assert (row.rows, row.dead_letters, row.residual) == (12, 1, 0)


def test_a_reward_that_the_learner_could_not_use_is_not_owed_a_gradient(tmp_path: Path) -> None:
    """The sink stores whatever is an event; the learner buries a group with more log-probabilities than tokens."""
    torn = record(reward(12, step=3), 12)
    torn = msgspec.structs.replace(torn, value=(torn.value or b"").replace(b'"logprobs":[', b'"logprobs":[-1.5,', 1))
    records = [*small_run(12), record(request(12), 12), record(generation(12, step=3), 12), torn]
    head = msgspec.structs.replace(HEAD, positions={0: 13})
    (tmp_path / "owed").mkdir()
    topics = written(tmp_path / "owed", records)
    assert any(line.startswith("every group taken: ") for line in said(proved(tmp_path / "owed", topics, head=head)))
    letter = DeadLetter(
        source=torn.position,
        key=None,
        value=torn.value,
        headers=(),
        stage="learner",
        error="more log-probabilities than tokens",
        attempts=1,
    )
    topics = written(tmp_path, [*records, record(letter, 0)])
    assert said(proved(tmp_path, topics, head=head)) == []


def test_only_the_surviving_lineage_counts_and_its_head_is_the_checkpoint(tmp_path: Path) -> None:
    """A learner killed after update 3 resumed from its checkpoint of update 1, and died before announcing its last."""
    resumed = [
        update(2, range(4, 8), lineage="b", parent=PolicyRef(lineage="a", step=1, sha256=f"{1:064x}")),
        update(3, range(8, 12), lineage="b"),
    ]
    records = [*small_run(12), record(resumed[0], 3), record(version(2, lineage="b", of=resumed[0]), 4)]
    topics = written(tmp_path, records)
    head = Head(policy=policy(3, lineage="b"), update=resumed[1], positions={0: 12}, staleness_max=0)
    account = proved(tmp_path, topics, head=head)
    assert said(account) == []
    assert account.stages[2].fates["trained"] == 12 and account.uses_max == 1
    again = Head(
        policy=policy(3, lineage="b"), update=update(3, range(4, 8), lineage="b"), positions={0: 12}, staleness_max=1
    )
    lines = said(proved(tmp_path, topics, head=again))
    assert sum(line.startswith("at most one gradient: CURRENT@0") for line in lines) == 0
    assert sum(line.startswith("at most one gradient: ") for line in lines) == 4
    assert sum(line.startswith("every group taken: ") for line in lines) == 4


def test_a_run_without_a_checkpoint_must_not_have_trained(run: tuple[Path, FakeTopics]) -> None:
    folder, topics = run
    lines = said(proved(folder, topics, head=None))
    assert any(
        "lineage: test.updates[0]@2: a-000003 was announced, but there is no whole checkpoint" in x for x in lines
    )


def test_a_late_repetition_that_is_put_aside_as_too_old_does_not_unmake_its_outcome(tmp_path: Path) -> None:
    repeated = msgspec.structs.replace(update(4, []), expired=(generation(0).group_id,), positions={0: 13})
    records = [*small_run(12), record(reward(0), 12), record(repeated, 3), record(version(4, of=repeated), 4)]
    topics = written(tmp_path, records)
    head = Head(policy=policy(4), update=None, positions={0: 13}, staleness_max=0)
    account = proved(tmp_path, topics, head=head)
    assert said(account) == []
    assert account.stages[1].fates["scored"] == 12 * GROUP and account.stages[2].fates["trained"] == 12


def test_a_running_sinks_archive_is_proved_as_far_as_it_goes(run: tuple[Path, FakeTopics]) -> None:
    folder, topics = run
    with Sink(folder / LEDGER, QUICK):
        account = proved(folder, topics)
    assert account.live and said(account) == []


def test_spans_are_closed_ranges() -> None:
    assert list(spans([3, 4, 5, 9])) == [(3, 5), (9, 9)]
    assert list(spans([])) == []
