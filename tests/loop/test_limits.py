"""What limits a loop: in a run whose generator, environment or learner is slow, report and pages name just this one."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress

import pytest

from infra.app.app import App
from infra.recipes.recipe import Prepared
from infra.runs.living import living_workers
from services.local import Endpoints
from storage.ledger import LEDGER
from storage.log import open_log
from storage.monitor.limits import read_time_shares
from storage.questions.asking import connect_reading
from storage.questions.overview import measure_health
from tests.commands import environment, interrupt, start
from tests.kafka_cluster import wait_until
from tests.loop.conftest import SMALL

Make = Callable[..., Prepared]
STOPPED_SECONDS, RUNNING_SECONDS = 0.8, 0.1
UPDATES = 15
BOUNDS = {"generator": "generation", "environment": "search", "learner": "learner"}


class SlowWorker:
    """A worker that is frozen most of the time; it works for a moment, and is frozen again."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._slow)
        self._thread.start()

    def _slow(self) -> None:
        with suppress(ProcessLookupError):
            while not self._end.is_set():
                os.kill(self._pid, signal.SIGSTOP)
                self._end.wait(STOPPED_SECONDS)
                os.kill(self._pid, signal.SIGCONT)
                self._end.wait(RUNNING_SECONDS)

    def release(self) -> None:
        """Let the worker go on as fast as it can."""
        self._end.set()
        self._thread.join()
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGCONT)


@pytest.mark.parametrize("role", BOUNDS)
def test_the_slow_stage_is_named(
    role: str, local_services: Endpoints, small_world: App, new_run: Make, unique_name: str
) -> None:
    home, run = small_world.home, new_run(SMALL, updates=5000).run
    recipe = home.root / f"{unique_name}.toml"
    recipe.write_text("")
    train = ["train", "--recipe", str(recipe), "--index", "small", "--run", run, "--updates", "5000"]
    process = start(home.root, *train, variables=environment(local_services, SMALL), until="updates: ")
    (pid,) = [pid for name, kind, pid in living_workers(home.runs) if (name, kind) == (run, role)]
    checkpoints = home.run(run).checkpoints

    def step() -> int:
        return int((checkpoints / "CURRENT").read_text().strip().rpartition("-")[2])

    slow = SlowWorker(pid)
    try:
        begun = step()
        wait_until(lambda: step() >= begun + UPDATES, f"{UPDATES} updates with a slow {role}")
    finally:
        slow.release()
        status, _ = interrupt(process)
    assert status == 130
    with open_log(home.run(run)) as log:
        shares = read_time_shares(log.rows)
    assert shares is not None and shares.limit == BOUNDS[role], shares
    with connect_reading(home.run(run) / LEDGER) as connection:
        said = measure_health(connection.cursor()).limit
    assert said.bound == f"{BOUNDS[role]}-bound" and said.bound in said.says and said.advice
