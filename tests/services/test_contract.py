"""The contract as a property: whoever is killed between any two writes, nothing is lost and nothing counts twice."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from learner.batches import BatchSettings
from storage.contents import table_hashes
from storage.ledger import LEDGER
from storage.log import open_log
from storage.sink import Sink
from storage.verification.account import Account
from storage.verification.chain import Head
from storage.verification.verify import Circumstances, Topics, verify_log
from streams.records import Received
from streams.topics import topic_name
from tests.fake_log import FakeLog, Killed
from tests.fuzz import redelivery
from tests.services.test_sink import QUICK
from tests.stored_events import RUN, generation

REQUESTS = 12
BATCH = BatchSettings(groups=3, staleness_max=2)
SLOW = settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
FAST = settings(max_examples=150)


def lived(chance: random.Random, *, deadly: float, batch: BatchSettings = BATCH) -> FakeLog:
    """Run the loop to its end while workers take turns at random and die with this probability at every write."""
    # After so many writes nobody dies any more, so that every run ends.
    writes = iter([chance.random() < deadly for _ in range(400)])
    log = FakeLog(lambda: next(writes, False), batch)
    for number in range(REQUESTS):
        log.request(number)
    while len(log.chain) < REQUESTS // batch.groups:
        turn = chance.choice(
            (lambda: log.generate(chance.randint(1, 5)), lambda: log.score(chance.randint(1, 5)), log.learn)
        )
        try:
            turn()
        except Killed:
            continue
    return log


def proved(folder: Path, log: FakeLog, records: list[Received]) -> Account:
    with Sink(folder / LEDGER, QUICK) as sink:
        sink.write(records)
    by_partition = {(topic_name(RUN, kind), 0): items for kind, items in log.topics.items()}
    topics = Topics(
        ends=log.ends(),
        committed={(topic_name(RUN, kind), 0): offset for kind, offset in log.committed.items()},
        held=lambda partition, first, last: [r.position.offset for r in by_partition[partition][first : last + 1]],
        read=lambda partition, first, end: iter(by_partition[partition][first:end]),
    )
    newest = log.chain[-1]
    head = Head(policy=newest.policy, update=newest, positions=newest.positions, staleness_max=BATCH.staleness_max)
    with open_log(folder) as opened:
        return verify_log(opened, run=RUN, topics=topics, known=Circumstances(head=head), rebuild=True)


def records_of(log: FakeLog) -> list[Received]:
    return [item for items in log.topics.values() for item in items]


@FAST
@given(seed=st.integers(0, 2**32), deadly=st.sampled_from([0.02, 0.1, 0.3]))
def test_every_group_is_taken_once_and_in_the_order_of_its_request(seed: int, deadly: float) -> None:
    log = lived(random.Random(seed), deadly=deadly)
    taken = [group for update in log.chain for group in (*update.trained, *update.expired, *update.failed)]
    assert sorted(taken) == sorted(generation(number).group_id for number in range(REQUESTS))
    assert [update.policy.step for update in log.chain] == list(range(1, len(log.chain) + 1))
    batches = [{*update.trained, *update.expired} for update in log.chain]
    wanted = [generation(number).group_id for number in range(REQUESTS)]
    assert batches == [set(wanted[first : first + BATCH.groups]) for first in range(0, REQUESTS, BATCH.groups)]


@SLOW
@given(seed=st.integers(0, 2**32))
def test_the_proof_holds_whoever_was_killed(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    log = lived(random.Random(seed), deadly=0.15)
    account = proved(tmp_path_factory.mktemp("run"), log, records_of(log))
    assert [f"{f.rule}: {f.where}: {f.what}" for f in account.findings] == []
    assert account.uses_max <= 1
    assert account.stages[2].taken == REQUESTS


@SLOW
@given(seed=st.integers(0, 2**32))
def test_redelivery_and_lateness_change_nothing(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    """Each record two to five times, in windows that go back, its time an hour or a week late: the same ledger."""
    chance = random.Random(seed)
    log = lived(chance, deadly=0.1)
    hashes = []
    for repeated in (False, True):
        folder = tmp_path_factory.mktemp("run")
        with Sink(folder / LEDGER, QUICK) as sink:
            for items in log.topics.values():
                late = [
                    msgspec.structs.replace(r, timestamp_ms=r.timestamp_ms - 1000 * 3600 * (r.position.offset % 169))
                    for r in items
                ]
                for first in range(0, len(late), 4):
                    for _ in range(chance.randint(2, 5) if repeated else 1):
                        sink.write(late[max(first - chance.randint(0, 6), 0) if repeated else first : first + 4])
        with open_log(folder) as opened:
            hashes.append(table_hashes(opened.connection))
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize("seed", [1, 2])
def test_repetitions_hours_and_a_week_late_in_another_order_change_nothing(seed: int) -> None:
    assert redelivery.run(1200, seed=seed).total() > 900


def test_the_clean_run_trains_every_group(tmp_path: Path) -> None:
    log = lived(random.Random(0), deadly=0)
    assert log.lives == 0
    assert proved(tmp_path, log, records_of(log)).sound
