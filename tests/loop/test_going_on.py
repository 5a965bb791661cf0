"""A run goes on: past records that no reward follows, past forgotten offsets, and on to partitions that are new."""

from __future__ import annotations

import threading
from collections.abc import Callable

import msgspec
from kafka import TopicPartition

from infra.app.app import App
from infra.recipes.recipe import Prepared
from infra.runs.training import stream
from infra.runs.verification import verify_run
from learner.batches import BatchSettings
from learner.checkpoints import load_current
from storage.log import open_log
from streams.clients import connect_admin, create_topics, partitions_of
from streams.codec import encode_event
from streams.events import Request
from streams.lag import end_offsets
from streams.topics import topic_name
from tests.loop.conftest import SMALL, quiet
from tests.outboxes import opened_outbox

Make = Callable[..., Prepared]
AHEAD = msgspec.structs.replace(SMALL, batch=BatchSettings(groups=4, staleness_max=1))


def asked(prepared: Prepared, number: int, *, split: str) -> Request:
    return msgspec.structs.replace(
        prepared.asked[number], request_id=f"other-{split}-{number}", run=prepared.run, split=split
    )


def taken_groups(app: App, run: str) -> list[str]:
    with open_log(app.home.run(run)) as log:
        rows = log.rows("SELECT group_id FROM surviving_groups ORDER BY step, group_id")
    return [row["group_id"] for row in rows]


def test_records_that_no_reward_follows_never_stop_the_loop(small_world: App, new_run: Make) -> None:
    """There are several times as many of them as the staleness limit lets the generator be ahead."""
    prepared = new_run(AHEAD, updates=3)
    app = small_world.with_settings(AHEAD)
    run, topic = prepared.run, topic_name(prepared.run, "requests")
    create_topics(msgspec.structs.replace(app.settings.kafka, partitions=2), run, folder=app.home.run(run))
    with opened_outbox(app.settings.kafka, run) as outbox:
        for partition in (0, 1):
            for number in range(20):
                outbox.forward(topic=topic, partition=partition, key=None, value=b'{"event":"request/1"')
                outbox.send(asked(prepared, number, split="dev"), partition=partition)
            outbox.forward(topic=topic, partition=partition, key=b"key", value=None)
        outbox.flush()
    summary = stream(app, prepared, updates=3, seed=0, report=quiet)
    assert summary.updates == 3
    assert summary.groups_trained + summary.groups_flat == 12
    assert summary.groups_expired == 0
    account = verify_run(app, run, rebuild=False, offline=False)
    assert account.findings == ()
    with open_log(app.home.run(run)) as log:
        (row,) = log.rows("SELECT count(*) AS n FROM dead_letter WHERE stage = 'generator'")
        assert row["n"] == 42
        (row,) = log.rows("SELECT count(*) AS n FROM first_rewards WHERE split = 'dev'")
        assert row["n"] == 40


def test_groups_are_not_asked_for_again_when_kafka_has_forgotten_what_was_committed(
    small_world: App, new_run: Make
) -> None:
    prepared = new_run(AHEAD, updates=2)
    app, run = small_world.with_settings(AHEAD), prepared.run
    stream(app, prepared, updates=2, seed=0, report=quiet)
    before = end_offsets(app.settings.kafka, partitions_of(app.settings.kafka, [topic_name(run, "generations")]))
    admin = connect_admin(app.settings.kafka)
    admin.delete_groups([f"{run}.generator", f"{run}.environment"])
    admin.close()
    extend(app, run, updates=5)
    summary = stream(app, prepared, updates=5, seed=0, report=quiet)
    assert summary.updates == 5
    after = end_offsets(app.settings.kafka, list(before))
    assert sum(after.values()) - sum(before.values()) == 3 * 4  # Twelve new groups, and none of the old ones anew.
    groups = taken_groups(app, run)
    assert len(groups) == len(set(groups)) == 20
    assert verify_run(app, run, rebuild=False, offline=False).findings == ()


def test_a_partition_that_is_added_to_the_requests_is_followed_by_every_worker(small_world: App, new_run: Make) -> None:
    prepared = new_run(AHEAD, updates=12)
    app, run = small_world.with_settings(AHEAD), prepared.run
    finished = threading.Event()

    def add_one() -> None:
        while load_current(app.home.run(run) / "checkpoints")[1].policy.step < 1 and not finished.is_set():
            finished.wait(0.1)
        admin = connect_admin(app.settings.kafka)
        admin.create_partitions({topic_name(run, "requests"): 2})
        admin.close()
        with opened_outbox(app.settings.kafka, run) as outbox:
            for number in range(8):
                request = asked(prepared, number, split="train")
                outbox.forward(topic=topic_name(run, "requests"), partition=1, key=b"key", value=encode_event(request))
            outbox.flush()

    adder = threading.Thread(target=add_one)
    adder.start()
    try:
        summary = stream(app, prepared, updates=12, seed=0, report=quiet)
    finally:
        finished.set()
        adder.join()
    assert summary.updates == 12
    (rewards,) = end_offsets(app.settings.kafka, [TopicPartition(topic_name(run, "rewards"), 1)]).values()
    assert rewards >= 8
    account = verify_run(app, run, rebuild=False, offline=False)
    assert account.findings == ()
    assert {row.partition for row in account.partitions if row.topic.endswith(".rewards") and row.rows} == {0, 1}


def extend(app: App, run: str, *, updates: int) -> None:
    """Let a run's learner make more updates than were asked for at first."""
    from infra.app.run_settings import read_run_settings, write_run_settings

    kept = read_run_settings(app.home.run(run))
    write_run_settings(app.home.run(run), msgspec.structs.replace(kept, updates=updates))
