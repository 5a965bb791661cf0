"""A learner's helping processes: a killed learner's folder goes, and a killed helper is no error of the learner's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from infra.app.home import Home
from infra.runs.learners import MEETINGS, learner_processes, meeting_folder
from infra.runs.supervisor import ERRORS_MAX, Supervisor, WorkerError
from learner.learning import LearnerSettings
from learner.processes import LearnerProcessError, Processes
from streams.errors import AGAIN
from streams.stopping import Stop

HOLD = """
import os, sys
from infra.runs.learners import meeting_folder
with meeting_folder() as folder:
    print(folder, flush=True)
    sys.stdin.read()
"""


def holder() -> tuple[subprocess.Popen[str], Path]:
    """Start a process that holds a learner's folder; return it with that folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_the_folder_of_a_killed_learner_goes_and_every_other_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    killed, left = holder()
    alive, held = holder()
    killed.kill()
    killed.wait()
    unlocked = tmp_path / f"{MEETINGS.prefix}of-somebody"  # Without our lock, nobody knows whose it is.
    unlocked.mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / MEETINGS.mark).touch()
    link = tmp_path / f"{MEETINGS.prefix}link"
    link.symlink_to(elsewhere)
    linked = tmp_path / f"{MEETINGS.prefix}linked"
    linked.mkdir()
    (linked / MEETINGS.mark).symlink_to(elsewhere / MEETINGS.mark)
    (tmp_path / f"{MEETINGS.prefix}file").touch()
    assert left.is_dir() and held.is_dir()
    with meeting_folder() as ours:
        assert (ours / MEETINGS.mark).is_file()
        there = {path.name for path in tmp_path.iterdir()}
        assert there == {
            held.name,
            ours.name,
            unlocked.name,
            "elsewhere",
            link.name,
            linked.name,
            f"{MEETINGS.prefix}file",
        }
        assert (elsewhere / MEETINGS.mark).is_file()
    assert not ours.exists()
    alive.communicate("")
    assert alive.returncode == 0 and not held.exists()


def test_somebody_elses_folder_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    theirs = tmp_path / f"{MEETINGS.prefix}theirs"
    theirs.mkdir()
    (theirs / MEETINGS.mark).touch()
    monkeypatch.setattr(os, "geteuid", lambda: theirs.stat().st_uid + 1)
    with meeting_folder():
        assert (theirs / MEETINGS.mark).is_file()
    monkeypatch.undo()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with meeting_folder():
        assert not theirs.exists()


@pytest.mark.parametrize(("ending", "status"), [("signal", AGAIN), ("error", 1)])
def test_a_killed_helper_asks_for_another_start_and_one_with_an_error_does_not(
    monkeypatch: pytest.MonkeyPatch, ending: str, status: int
) -> None:
    code = f"import os; os.kill(os.getpid(), {signal.SIGKILL.value})" if ending == "signal" else "raise SystemExit(3)"
    started: list[subprocess.Popen[bytes]] = []

    def start(*_: object, **__: object) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE))
        return started[-1]

    monkeypatch.setattr("infra.runs.learners._start_helper", start)
    app: Any = SimpleNamespace(tables=lambda _: SimpleNamespace(learner=LearnerSettings(processes=2)))
    with (
        pytest.raises(LearnerProcessError, match=r"learner process 1 of 2 ended with status -?\d") as raised,
        learner_processes(app, "run", worker=1, count=2, stop=Stop()),
    ):
        pass
    assert raised.value.exit_status == status and len(started) == 1


def test_an_exchange_that_breaks_off_waits_for_the_status_of_the_process_that_ends() -> None:
    looks: list[int] = []

    def watch() -> None:
        looks.append(len(looks))
        if len(looks) == 4:  # Its connection was closed long before it had ended.
            raise LearnerProcessError("ended with status 3")

    with pytest.raises(LearnerProcessError, match="ended with status 3"), Processes(count=2, watch=watch)._exchange():
        raise RuntimeError("Connection closed by peer")
    with pytest.raises(LearnerProcessError, match="one is gone") as gone, Processes(rank=1, count=2)._exchange():
        raise RuntimeError("Connection closed by peer")
    assert gone.value.exit_status == AGAIN


@pytest.mark.parametrize(("status", "given_up"), [(AGAIN, False), (-9, False), (1, True)])
def test_a_worker_is_given_up_for_errors_of_its_own_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, given_up: bool
) -> None:
    workers = Supervisor(["run"], ["learner"], Home(tmp_path).run("demo"), {})
    (tmp_path / "runs" / "demo" / "logs").mkdir(parents=True)
    workers.log_path("learner").write_text("error: learner process 1 of 2 ended with status 3\n")

    def start(role: str) -> None:
        workers._started[role] = float("inf")  # It has not lived long.
        workers._processes[role] = SimpleNamespace(exitcode=status)  # type: ignore[assignment]

    monkeypatch.setattr(workers, "_start", start)
    start("learner")
    for _ in range(ERRORS_MAX - 1):
        workers.check()
    if given_up:
        with pytest.raises(WorkerError, match=r"three|3 times; .* ended with status 3"):
            workers.check()
    else:
        workers.check()
        assert workers.restarts == ERRORS_MAX
