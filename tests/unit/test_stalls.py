"""A stall becomes words: when a wait is told in a log, and which stage of a run is to blame, from facts alone."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from infra.runs.living import known_workers, living_workers, registered, write_workers
from storage.monitor.alerts import alerts
from storage.monitor.stalls import RunFacts, StageFacts, WorkerFacts, run_state
from streams.stalls import StallWatch

NOW_MS = 1_700_000_000_000
STARTED_MS = NOW_MS - 3_600_000
ROLES = ("sink", "environment", "generator", "learner")


class FakeClock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_wait_is_told_once_every_so_many_seconds_and_progress_begins_anew(caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    watch = StallWatch(60, logging.getLogger("waits"), clock=clock, where="learner of run shop-0")
    for _ in range(59):
        clock.now += 1
        assert not watch.waiting_for("12 more groups")
    clock.now += 1
    assert watch.waiting_for("12 more groups") and not watch.waiting_for("12 more groups")
    clock.now += 60
    assert watch.due and watch.waiting_for("11 more groups")
    assert [record.message for record in caplog.records] == [
        "learner of run shop-0: no progress for 60 s: waiting for 12 more groups",
        "learner of run shop-0: no progress for 120 s: waiting for 11 more groups",
    ]
    watch.progress()
    clock.now += 59
    assert not watch.due and watch.waited_seconds == 59


def stage(name: str, waiting: int | None, ago_seconds: float | None, enough: int = 1) -> StageFacts:
    since = None if ago_seconds is None else NOW_MS - int(ago_seconds * 1000)
    return StageFacts(stage=name, waiting=waiting, since_ms=since, enough=enough)


def stages(
    requests: tuple[int, float | None] = (0, None),
    generations: tuple[int, float | None] = (0, None),
    rewards: tuple[int, float | None] = (0, None),
    records_ago: float | None = None,
) -> tuple[StageFacts, ...]:
    """Return a loop's stages from (what waits, for how many seconds); a batch is 8 groups."""
    return (
        stage("generator", *requests),
        stage("environment", *generations),
        stage("learner", *rewards, enough=8),
        stage("sink", None, records_ago),
    )


def workers(**states: str) -> tuple[WorkerFacts, ...]:
    return tuple(
        WorkerFacts(role=role, pid=number, started_ms=STARTED_MS, state=states.get(role, "alive"))  # type: ignore[arg-type]
        for number, role in enumerate(ROLES, start=1)
    )


def facts(found: tuple[StageFacts, ...] = (), **others: object) -> RunFacts:
    given = {"workers": workers(), "updates_done": 3, "updates_wanted": 10} | others
    return RunFacts(run="shop-0", now_ms=NOW_MS, stages=found, **given)  # type: ignore[arg-type]


FROZEN = "is stopped by a signal"
CASES = {
    "all moves": (facts(stages((40, 2), (3, 1), (9, 5), 1)), "running", ""),
    "nothing waits": (facts(stages()), "idle", ""),
    "a few rewards are no batch": (facts(stages(rewards=(5, 900))), "idle", ""),
    "made its updates, whatever waits": (facts(stages((40, 900)), updates_done=10), "finished", ""),
    "not long enough": (facts(stages((40, 59))), "running", ""),
    "the generator answers nothing": (facts(stages((40, 61))), "stalled", "the generator: 40 requests wait"),
    "the generator is frozen": (facts(stages((40, 61)), workers=workers(generator="stopped")), "stalled", FROZEN),
    "the environment holds the generator up": (facts(stages((40, 70), (6, 90), (3, 90))), "stalled",
                                               "the environment: 6 groups wait"),
    "the learner holds all up": (facts(stages((40, 70), (6, 80), (9, 61))), "stalled",
                                 "the learner: 9 groups wait (8 make a batch)"),
    "a slow learner that moves is not held against the generator": (facts(stages((40, 70), (0, None), (9, 20))),
                                                                   "running", ""),
    "the environment is dead": (facts(stages((4, 70), (6, 90)), workers=workers(environment="dead")), "stalled",
                                "its process 2 is gone"),
    "the learner, which grants the requests, is frozen": (
        facts(stages((40, 61)), workers=workers(learner="stopped")), "stalled", "the learner: its process 4 " + FROZEN),
    "the sink is behind while the loop moves": (facts(stages((40, 2), (3, 1), (9, 5), 90)), "stalled",
                                                "the sink: some records wait, and none was stored"),
    "the sink is behind a finished run": (facts(stages(records_ago=90), updates_done=10), "stalled", "the sink"),
    "no worker lives": (facts(stages((40, 900)), workers=()), "stopped", ""),
    "all workers died": (facts(stages((40, 900)), workers=workers(**dict.fromkeys(ROLES, "dead"))), "stopped", ""),
    "no worker is needed any more": (facts(stages((40, 900)), workers=(), updates_done=10), "finished", ""),
    "workers of another machine": (facts(stages((40, 900)), workers=(), members=2), "stalled", "the generator"),
    "one role was started by hand, the next is missing": (
        facts(stages((0, None), (6, 90)), workers=workers()[2:3]), "stalled", "this machine has no environment"),
    "an old log copied for workers that began just now": (
        facts(stages((40, 9_000_000)), workers=tuple(
            msgspec.structs.replace(worker, started_ms=NOW_MS - 5_000) for worker in workers())), "running", ""),
    "a run without a limit": (facts(stages(), updates_wanted=0), "idle", ""),
    "the broker does not answer": (facts(unseen="Kafka at 'x:1' does not answer"), "unknown", ""),
}  # fmt: skip


@pytest.mark.parametrize(("given", "state", "waits_for"), CASES.values(), ids=CASES)
def test_the_first_stage_that_should_move_and_does_not_is_named(given: RunFacts, state: str, waits_for: str) -> None:
    found = run_state(given, stall_seconds=60)
    assert (found.state, waits_for in found.waiting_for, bool(found.waiting_for)) == (state, True, state == "stalled")
    raised = alerts([], dead_letters=0, staleness_max=1, state=found)
    assert [alert.name for alert in raised] == (["stall"] if state == "stalled" else [])
    if raised:
        assert raised[0].what.startswith(f"no progress for {found.seconds:.0f} s: waiting for {found.waiting_for}")


def test_workers_are_known_from_their_files_alive_stopped_and_dead(tmp_path: Path) -> None:
    run = tmp_path / "shop-0"
    run.mkdir()
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        write_workers(run, [("generator", child.pid)])
        with registered(run, "environment", 2):
            assert living_workers(tmp_path) == [
                ("shop-0", "environment", os.getpid()),
                ("shop-0", "generator", child.pid),
            ]
        assert [worker.state for worker in known_workers(run)] == ["alive"]
        child.send_signal(signal.SIGSTOP)
        deadline = time.monotonic() + 20
        while [worker.state for worker in known_workers(run)] != ["stopped"]:
            assert time.monotonic() < deadline
    finally:
        child.kill()
        child.wait()
    assert [worker.state for worker in known_workers(run)] == ["dead"]
    assert living_workers(tmp_path) == []
    write_workers(run, [("generator", child.pid), ("learner", os.getpid())])  # One died while the list was made.
    assert [(worker.role, worker.state) for worker in known_workers(run)] == [("learner", "alive")]
    (run / "workers.json").write_text("[{")
    assert known_workers(run) == []
