"""A run whose learner is two processes: it learns, outlives the death of one, is proved, and is made again by one."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

import msgspec
import psutil

from infra.app.app import App
from infra.recipes.recipe import Prepared
from infra.replaying.reproduction import reproduce
from infra.runs.living import living_workers
from infra.runs.supervisor import ERRORS_MAX
from infra.runs.training import stream
from infra.runs.verification import verify_run
from learner.checkpoints import current_name, load_current
from learner.learning import LearnerSettings
from tests.loop.conftest import SMALL, quiet

UPDATES = 5
KILLED_AFTER = (1, 2, 3, 4)  # More often than a worker's own errors would be forgiven.
TWO = msgspec.structs.replace(SMALL, learner=LearnerSettings(processes=2, keep_every=1))


def helpers_of(app: App, run: str) -> list[psutil.Process]:
    """Return the processes that help the run's learner."""
    learners = [pid for name, role, pid in living_workers(app.home.runs) if (name, role) == (run, "learner")]
    found = []
    for pid in learners:
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [each for each in psutil.Process(pid).children() if "--worker" in each.cmdline()]
    return found


def test_a_run_of_two_learner_processes_outlives_the_death_of_one_and_one_process_makes_it_again(
    small_world: App, new_run: Callable[..., Prepared]
) -> None:
    app = small_world.with_settings(TWO)
    prepared = new_run(TWO, updates=UPDATES)
    checkpoints = app.home.run(prepared.run).checkpoints
    ended = threading.Event()
    killed: set[int] = set()

    def kill_the_helper() -> None:
        waiting = list(KILLED_AFTER)
        while waiting and not ended.wait(0.02):
            if int(current_name(checkpoints).rpartition("-")[2]) < waiting[0]:
                continue
            for helper in helpers_of(app, prepared.run):
                with contextlib.suppress(psutil.NoSuchProcess):
                    if helper.pid not in killed:
                        helper.kill()
                        killed.add(helper.pid)
                        waiting = waiting[1:]

    killer = threading.Thread(target=kill_the_helper)
    killer.start()
    try:
        summary = stream(app, prepared, updates=UPDATES, seed=0, report=quiet)
    finally:
        ended.set()
        killer.join()
    assert len(killed) == len(KILLED_AFTER) >= ERRORS_MAX
    assert summary.updates == UPDATES
    assert summary.restarts >= len(KILLED_AFTER)
    log = (app.home.run(prepared.run).logs / "learner.log").read_text()
    assert "Nothing is lost; the learner goes on from its newest checkpoint" in log
    assert load_current(checkpoints)[1].policy.step == UPDATES
    account = verify_run(app, prepared.run, rebuild=True, offline=False)
    assert (account.findings, account.uses_max) == ((), 1)
    made = reproduce(app, prepared.run, begin="0", updates_max=None, report=quiet)
    assert (made.updates, made.different) == (UPDATES, None)
