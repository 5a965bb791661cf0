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

from infra.app.app import App
from tests.faults.kills import Strike
from tests.faults.progress import ROLES, signal_role, watched
from tests.faults.results import Journal, Row
from tests.faults.world import SETTINGS, World, end_in_order, open_run, proved, stream_during

SHARED = ("generator", "environment")  # Several of them may work on one run; of the others one at a time.
REFUSED_SECONDS = 600.0


class Freeze(Strike, frozen=True, kw_only=True):
    """One freeze. learned_on: the learner took another one's work meanwhile. refused: a second worker of its role."""

    learned_on: bool = False
    refused: bool = False


def freeze_workers(world: World, *, dose: int, seconds: float) -> list[Row]:
    """Stop workers for so long, in turn, this often in all; return a row.

    A second generator and a second environment stand by, and take over what the first one held. While a learner or a
    sink is stopped, a second one is started, and has to be refused. Recovery is from the moment of going on.
    """
    began, run = time.monotonic(), "freezes"
    journal = Journal(world.home / "freezes.jsonl", Freeze)
    app, prepared = open_run(world.app, run, SETTINGS)

    def work(ended: threading.Event) -> None:
        with watched(app, run) as progress:
            progress.wait("learner", progress.of("learner"), ended)
            with standing_by(app, run):
                for number in range(len(journal.read()), dose):
                    role = ROLES[number % len(ROLES)]
                    tried = {freeze.role for freeze in journal.read() if freeze.refused}
                    progress.wait("learner", progress.of("learner"), ended)
                    pid = signal_role(app, run, role, signal.SIGSTOP)
                    before = progress.of("learner")
                    over = time.monotonic() + seconds
                    refused = role not in SHARED and role not in tried and second_is_refused(app, run, role)
                    ended.wait(max(over - time.monotonic(), 0))
                    learned_on = progress.of("learner") > before + 1  # The frozen one's last work may be one update.
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGCONT)
                    went_on = time.monotonic()
                    progress.wait("learner", progress.of("learner"), ended)
                    progress.wait(role, progress.of(role), ended)
                    seconds_lost = time.monotonic() - went_on
                    journal.add(Freeze(role=role, seconds=seconds_lost, learned_on=learned_on, refused=refused))

    if len(journal.read()) < dose:
        stream_during(app, prepared, work)
    end_in_order(app, prepared)
    freezes = journal.read()
    times = [freeze.seconds for freeze in freezes]
    refused = sorted({freeze.role for freeze in freezes if freeze.refused})
    fenced = sum(_fencings(path) for path in (app.home.run(run) / "logs").glob("*.log"))
    held = (
        f"learned on in {sum(each.learned_on and each.role in SHARED for each in freezes)} freezes of a generator or "
        f"environment, {fenced} fenced commits, second {' and '.join(refused) or 'none'} refused"
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
    return path.read_text(errors="replace").count("continued without this worker")
