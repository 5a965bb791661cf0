"""Writes of a learner that has lost its right to another machine count nowhere: not in the ledger, not in the proof."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pytest

from storage.ledger import LEDGER, build_batch, insert_rows, store_batch
from storage.log import open_log
from storage.monitor.loop_values import read_log
from storage.monitor.windows import MonitorSettings, Windows
from storage.schema import migrate, migrations
from storage.verification.chain import Head
from storage.verification.verify import Circumstances, verify_log
from streams.delivery import DeliverySettings
from streams.epochs import EPOCH, Fence, counted
from streams.events import Event, PolicyVersion, Update
from streams.kafka_settings import KafkaSettings
from streams.lease import Lease
from tests.shown_pages import in_log_order, write_run
from tests.stored_events import GROUP, RUN, generation, policy, request, reward, update, version

TOPIC = f"{RUN}.policy-versions"
A, B = "test-learner-a", "test-learner-b"


def announced(made: Update | int, epoch: int, holder: str, *, status: str = "published") -> list[Event]:
    """Return what a learner of this epoch writes about a version: its update, if one made it, and the announcement."""
    if isinstance(made, int):
        event = version(made, status=status)
    else:
        event = version(made.policy.step, lineage=made.policy.lineage, of=made, status=status)
    said = msgspec.structs.replace(event, epoch=epoch, holder=holder)
    return [made, said] if isinstance(made, Update) and status == "published" else [said]


def takeover() -> list[Event]:
    """Return a log in which B takes version 2 over from A, makes version 3 in a lineage of its own, and A goes on.

    A, which was paused before its third update, then announces that one, retires version 2, and grants far ahead.
    """
    one, two = update(1, range(4)), update(2, range(4, 8))
    theirs = update(3, range(8, 12), lineage="b", parent=policy(2))
    zombie = update(3, range(8, 12))
    grants = msgspec.structs.replace(version(3, of=zombie), epoch=1, holder=A, requests_admitted={0: 1000})
    steps = {n: n // 4 for n in range(12)}
    return [
        *(request(n) for n in range(13)),  # The last one is granted by nobody who counts.
        *(generation(n, step=step) for n, step in steps.items()),
        *(reward(n, step=step) for n, step in steps.items()),
        *announced(0, 1, A),
        *announced(one, 1, A),
        *announced(two, 1, A),
        *announced(two, 2, B),
        *announced(theirs, 2, B),
        zombie,
        grants,
        *announced(two, 1, A, status="retired"),
    ]


def asked(folder: Path, sql: str) -> list[tuple[Any, ...]]:
    with duckdb.connect(str(folder / LEDGER), read_only=True) as ledger:
        return ledger.execute(sql).fetchall()


def test_the_surviving_lineage_is_the_one_of_the_newest_epoch(tmp_path: Path) -> None:
    folder = write_run(tmp_path, in_log_order(takeover()))
    chain = asked(folder, "SELECT lineage, step FROM surviving_updates ORDER BY step")
    assert chain == [("a", 1), ("a", 2), ("b", 3)]
    assert asked(folder, "SELECT max(uses), sum(uses) FROM candidate_outcomes") == [(1, 12 * GROUP)]
    assert asked(folder, "SELECT lineage, step FROM counted_updates WHERE step = 3") == [("b", 3)]


def test_a_zombie_retires_no_version_and_is_not_the_newest(tmp_path: Path) -> None:
    folder = write_run(tmp_path, in_log_order(takeover()))
    known = asked(folder, "SELECT lineage, step, status FROM version_lineage ORDER BY step")
    assert known == [("a", 0, "published"), ("a", 1, "published"), ("a", 2, "published"), ("b", 3, "published")]
    with open_log(folder) as log:
        assert read_log(RUN, log, now_ms=1).policies["newest"] == "b-000003"


def test_the_proof_holds_with_a_zombies_writes_in_the_log(tmp_path: Path) -> None:
    folder = write_run(tmp_path, in_log_order(takeover()), run=RUN)
    head = Head(policy=policy(3, lineage="b"), update=None, positions={0: 12}, staleness_max=0)
    with open_log(folder) as log:
        account = verify_log(log, run=RUN, topics=None, known=Circumstances(head=head), rebuild=True)
    assert account.findings == ()
    assert account.stages[2].fates["trained"] == 12


def test_an_update_whose_learner_died_before_its_announcement_breaks_no_proof(tmp_path: Path) -> None:
    """Another machine goes on from what was announced, so nobody will ever announce that one."""
    events = takeover()[:-3]
    cut_off = update(3, range(8, 12))
    events.insert(-2, cut_off)  # Just before the update of the other machine.
    folder = write_run(tmp_path, in_log_order(events), run=RUN)
    head = Head(policy=policy(3, lineage="b"), update=None, positions={0: 12}, staleness_max=0)
    with open_log(folder) as log:
        account = verify_log(log, run=RUN, topics=None, known=Circumstances(head=head), rebuild=True)
    assert account.findings == ()


def test_the_last_announcement_that_counts_is_the_newest_even_of_an_older_update(tmp_path: Path) -> None:
    """A announced its third version after B had read the log, and before B said its first word."""
    two, three = update(2, [1]), update(3, [2])
    events = [*announced(update(1, [0]), 1, A), *announced(two, 1, A), *announced(three, 1, A), *announced(two, 2, B)]
    folder = write_run(tmp_path, in_log_order(events))
    assert asked(folder, "SELECT step FROM surviving_updates ORDER BY step") == [(1,), (2,)]


def test_a_run_that_another_machine_begins_anew_has_no_update_yet(tmp_path: Path) -> None:
    events = [*announced(0, 1, A), *announced(0, 2, B), *announced(update(1, [0]), 1, A)]
    folder = write_run(tmp_path, in_log_order(events))
    assert asked(folder, "FROM surviving_updates") == []


def test_an_update_that_the_sink_has_not_stored_yet_leaves_the_one_before_it(tmp_path: Path) -> None:
    (said,) = [each for each in announced(update(2, [1]), 1, A) if isinstance(each, PolicyVersion)]
    folder = write_run(tmp_path, in_log_order([*announced(update(1, [0]), 1, A), said]))
    assert asked(folder, "SELECT step FROM surviving_updates") == [(1,)]


def test_the_ledger_counts_the_announcements_that_every_reader_counts() -> None:
    with duckdb.connect() as ledger:
        migrate(ledger)
        for seed in range(100):
            chance = random.Random(seed)
            choices = [chance.choice([(0, ""), (1, A), (1, B), (2, A), (2, B), (3, B)]) for _ in range(20)]
            events = [version(step) for step in range(20)]
            events = [
                msgspec.structs.replace(e, epoch=n, holder=by) if n else e
                for e, (n, by) in zip(events, choices, strict=True)
            ]
            foreign = chance.sample(range(20), 2)  # Another run's announcement with a high epoch fences nobody.
            for step in foreign:
                events[step] = msgspec.structs.replace(events[step], run="another", epoch=99, holder="somebody")
            ledger.execute("TRUNCATE policy_versions")
            insert_rows(ledger, "policy_versions", build_batch(in_log_order(events)).tables["policy_versions"])
            rows = ledger.execute("SELECT step FROM counted_versions ORDER BY record_offset").fetchall()
            expected = [event.policy.step for event in counted(events, run=RUN)]
            assert 0 < len(expected) < 20 and [step for (step,) in rows if step not in foreign] == expected


def test_an_altered_epoch_is_found(tmp_path: Path) -> None:
    folder = write_run(tmp_path, in_log_order(takeover()), run=RUN)
    with duckdb.connect(str(folder / LEDGER)) as ledger:
        ledger.execute("UPDATE policy_versions SET epoch = 3 WHERE epoch = 1 AND step = 3")
    head = Head(policy=policy(3, lineage="b"), update=None, positions={0: 12}, staleness_max=0)
    with open_log(folder) as log:
        account = verify_log(log, run=RUN, topics=None, known=Circumstances(head=head), rebuild=False)
    said = [f"{finding.rule}: {finding.where}: {finding.what}" for finding in account.findings]
    assert f"rebuilt from the log: {TOPIC}[0]@5: the row names epoch 3 of {A}, the record has epoch 1 of {A}" in said


def test_an_old_ledger_opens_keeps_its_rows_and_knows_epochs_from_then_on() -> None:
    log = in_log_order(takeover())
    with duckdb.connect() as ledger:
        migrate(ledger, tuple(step for step in migrations() if step.number < 16))
        for name, rows in build_batch([each for each in log if each.position.offset < 3]).tables.items():
            old = rows.drop_columns(["epoch", "holder"]) if name == "policy_versions" else rows
            ledger.register("arriving", old)
            ledger.execute(f"INSERT INTO {name} BY NAME FROM arriving")
            ledger.unregister("arriving")
        before = ledger.execute("FROM surviving_updates ORDER BY step").fetchall()
        assert migrate(ledger) == [16]
        assert before and ledger.execute("FROM surviving_updates ORDER BY step").fetchall() == before
        store_batch(ledger, build_batch([each for each in log if each.position.offset >= 3]))
        chain = ledger.execute("SELECT lineage, step FROM surviving_updates ORDER BY step").fetchall()
        assert chain == [("a", 1), ("a", 2), ("b", 3)]


def beside(epoch: int, holder: str) -> tuple[tuple[str, bytes], ...]:
    """Return the headers that a learner of this epoch writes beside an update."""
    lease = Lease(RUN, "learner", machine=holder, kafka=KafkaSettings(), delivery=DeliverySettings())
    lease.epoch = epoch
    return lease.headers


def test_the_monitor_counts_no_update_of_a_zombie() -> None:
    windows = Windows(RUN, MonitorSettings(), ends={})
    theirs = update(2, [1], lineage="b", parent=policy(1))
    said = [
        (update(1, [0]), beside(1, "a")),
        (update(1, [0]), beside(2, "b")),  # The other machine announces the version that it goes on from.
        (theirs, beside(2, "b")),
        (update(2, [1]), beside(1, "a")),
        (update(3, [2]), beside(2, "a")),  # Another holder of the same epoch, which began it second.
    ]
    for each, headers in zip(in_log_order([event for event, _ in said]), [by for _, by in said], strict=True):
        windows.add(each.position, each.value, timestamp_ms=1, now_ms=2, headers=headers)
    state = windows.state()
    assert (state.updates, state.policy, state.duplicates) == (2, theirs.policy, 1)
    assert state.positions == {"updates/0": 5}


@pytest.mark.parametrize("wrong", [b"x", None, "٣".encode(), b"-1", b""])
def test_an_update_without_a_sound_epoch_counts(wrong: bytes | None) -> None:
    fence = Fence(RUN)
    assert fence.admits(update(1, [0]), beside(7, "a"))
    assert fence.admits(update(2, [1])) and fence.admits(update(3, [2]), ((EPOCH, wrong),))
    assert not fence.admits(update(2, [1]), beside(6, "b"))


def test_no_reader_of_announcements_takes_a_zombies_or_a_foreign_one() -> None:
    fence = Fence(RUN)
    assert [fence.admits(event) for event in takeover() if isinstance(event, PolicyVersion)] == [True] * 5 + [False] * 2
    assert not fence.admits(msgspec.structs.replace(version(9), run="another", epoch=9))
