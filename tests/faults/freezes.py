"""A worker stopped for a minute, longer than its group waits for it, and then let go on: it has been fenced."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from infra.context import App
from tests.faults.kills import Strike
from tests.faults.progress import ROLES, signal_role, watched
from tests.faults.results import Journal, Row
from tests.faults.world import SETTINGS, World, end_in_order, open_run, proved, stream_during

SHARED = ("generator", "environment")  # Several of them may work on one run; of the others one at a time.
REFUSED_SECONDS = 600.0


def freeze_workers(world: World, *, dose: int, seconds: float) -> list[Row]:
    """Stop workers for so long, in turn, this often in all; return a row.

    A second generator and a second environment stand by, and take over what the first one held. While a learner or a
    sink is stopped, a second one is started, and has to be refused. Recovery is from the moment of going on.
    """
    began, run = time.monotonic(), "freezes"
    journal = Journal(world.home / "freezes.jsonl", Strike)
    app, prepared = open_run(world.app, run, SETTINGS)
    taken_over: list[str] = []
    refused: list[str] = []

    def work(ended: threading.Event) -> None:
        with watched(app, run) as progress:
            progress.wait("learner", progress.of("learner"), ended)
            with standing_by(app, run):
                for number in range(len(journal.read()), dose):
                    role = ROLES[number % len(ROLES)]
                    progress.wait("learner", progress.of("learner"), ended)
                    pid = signal_role(app, run, role, signal.SIGSTOP)
                    before = progress.of("learner")
                    over = time.monotonic() + seconds
                    if role not in SHARED and role not in refused and second_is_refused(app, run, role):
                        refused.append(role)
                    ended.wait(max(over - time.monotonic(), 0))
                    if progress.of("learner") > before + 1:  # The frozen one's last work may be one more update.
                        taken_over.append(role)
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGCONT)
                    went_on = time.monotonic()
                    progress.wait("learner", progress.of("learner"), ended)
                    progress.wait(role, progress.of(role), ended)
                    journal.add(Strike(role=role, seconds=time.monotonic() - went_on))

    if len(journal.read()) < dose:
        stream_during(app, prepared, work)
    end_in_order(app, prepared)
    times = [strike.seconds for strike in journal.read()]
    fenced = sum(_fencings(path) for path in (app.home.run(run) / "logs").glob("*.log"))
    held = (
        f"learned on in {sum(role in SHARED for role in taken_over)} freezes of a generator or environment, "
        f"{fenced} fenced commits, second {' and '.join(sorted(refused)) or 'none'} refused"
    )
    row = proved(
        app, run, fault=f"SIGSTOP {seconds:g} s, then CONT", dose=len(times), recovery=times, held=held, began=began
    )
    return [row]


@contextlib.contextmanager
def standing_by(app: App, run: str) -> Iterator[None]:
    """Run a second generator and a second environment until the end of the block."""
    processes = [_second(app, run, role) for role in SHARED]
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


def second_is_refused(app: App, run: str, role: str) -> bool:
    """Start a second worker of a role of which there may be one, and return whether it stopped because of that."""
    log = app.home.run(run) / "logs" / f"{role}-2.log"
    process = _second(app, run, role)
    try:
        status = process.wait(timeout=REFUSED_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return False
    return status == 1 and "another" in log.read_text().splitlines()[-1]


def _second(app: App, run: str, role: str) -> subprocess.Popen[bytes]:
    arguments = ["--home", str(app.home.root), "run", role, "--run", run, "--worker", "2"]
    with (app.home.run(run) / "logs" / f"{role}-2.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "infra.cli", *arguments],
            env=os.environ | app.worker_environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # As the first ones: the kernel shares the processor out by session.
        )


def _fencings(path: Path) -> int:
    return path.read_text(errors="replace").count("went on without this worker")
