"""Worker processes under one roof: started, watched, restarted when they die, and never left behind.

Workers are forks of one process that has imported what they need (`infra.running.preloaded`) and does nothing else, so
that a restart takes no imports and the libraries lie in memory once. A worker reads its standard input, a pipe that
only the supervisor holds; when the supervisor is killed the pipe closes, and the worker stops by itself.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import sys
import threading
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import TracebackType

import psutil

from infra.cli import ONE_THREAD, QUIET, main
from infra.private_variables import for_role
from streams.delivery import Stop
from streams.errors import SearchloopError

# A worker that was killed is started again, always; one that ends with an error of its own is tried so often in a row.
ERRORS_MAX = 3
HEALTHY_SECONDS = 60.0  # Who lived this long has recovered, and its errors are forgotten.
STOP_SECONDS = 20.0
FORK_SERVER_DIED = 255  # Then multiprocessing gives this for each of its forks, whether it lives or not.

_forks = multiprocessing.get_context("forkserver")


class WorkerError(SearchloopError, RuntimeError):
    """A worker dies again and again."""


class Supervisor:
    """Keeps one process per role alive; use it as a context manager."""

    def __init__(self, arguments: list[str], roles: list[str], run_dir: Path, environment: dict[str, str]) -> None:
        """arguments: of `searchloop`, to start a worker, before its role: `worker_arguments`.

        environment: variables on top of this process's own.
        """
        for name, value in (ONE_THREAD | QUIET).items():  # Inherited by the forks, and read when torch is imported.
            os.environ.setdefault(name, value)
        _forks.set_forkserver_preload(["infra.running.preloaded"])
        self._arguments = arguments
        self._roles = roles
        self._run_dir = run_dir
        self._processes: dict[str, ForkServerProcess] = {}
        self._environment = environment
        self._errors = dict.fromkeys(roles, 0)
        self._started = dict.fromkeys(roles, 0.0)
        self.restarts = 0

    def __enter__(self) -> Supervisor:
        (self._run_dir / "logs").mkdir(parents=True, exist_ok=True)
        for role in self._roles:
            self._start(role)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop(self._roles)
        (self._run_dir / "workers.json").unlink(missing_ok=True)

    def check(self) -> None:
        """Restart whichever worker has died.

        Raises WorkerError with the end of its log if one ended with an error three times in a row.
        """
        for role, process in list(self._processes.items()):
            if (status := process.exitcode) is None:
                continue
            if time.monotonic() - self._started[role] > HEALTHY_SECONDS:
                self._errors[role] = 0
            if status == FORK_SERVER_DIED:
                with contextlib.suppress(psutil.NoSuchProcess):  # Nobody could ask after it any more.
                    orphan = psutil.Process(process.pid)
                    orphan.kill()
                    orphan.wait(STOP_SECONDS)
            else:
                self._errors[role] += status > 0  # Below 0 it was killed by a signal.
            if self._errors[role] >= ERRORS_MAX:
                raise WorkerError(
                    f"the {role} ended with an error {ERRORS_MAX} times; its log, {self.log_path(role)}, says: "
                    f"{self._last_words(role)}"
                )
            self.restarts += 1
            self._start(role)

    def stop(self, roles: list[str]) -> bool:
        """Ask these workers to stop, wait, and kill those that do not. Return whether every one ended by itself."""
        stopping = [self._processes.pop(role) for role in roles if role in self._processes]
        for process in stopping:
            process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for process in stopping:
            process.join(timeout=max(deadline - time.monotonic(), 0.1))
            if process.exitcode is None:
                process.kill()
                process.join()
        return all(process.exitcode == 0 for process in stopping)

    def pids(self) -> dict[str, int]:
        """Return each living worker's pid by role."""
        return {role: process.pid or 0 for role, process in self._processes.items()}

    def log_path(self, role: str) -> Path:
        """Return where a worker's output goes."""
        return self._run_dir / "logs" / f"{role}.log"

    def _start(self, role: str) -> None:
        self._started[role] = time.monotonic()
        arguments = [*self._arguments, role, "--run", self._run_dir.name, "--supervised"]
        # Through the pipe of multiprocessing: what it holds of secrets never stands in a process's first environment.
        environment = for_role(os.environ | self._environment, role)
        process = _forks.Process(target=_work, args=(arguments, environment, self.log_path(role)))
        process.start()
        self._processes[role] = process
        rows = [
            {"role": name, "pid": process.pid, "started": psutil.Process(process.pid).create_time()}
            for name, process in self._processes.items()
            if process.exitcode is None
        ]
        aside = self._run_dir / ".workers.json"
        aside.write_text(json.dumps(rows))
        aside.rename(self._run_dir / "workers.json")

    def _last_words(self, role: str) -> str:
        lines = self.log_path(role).read_text(errors="replace").strip().splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        return (errors or lines or ["(it said nothing)"])[-1]


def worker_arguments(home: Path) -> list[str]:
    """Return the arguments of `searchloop` that start a worker of this home, before its role."""
    return ["--home", str(home), "run"]


def worker_command(home: Path) -> list[str]:
    """Return the command that starts a worker of this home as a process of its own, before its role."""
    return [sys.executable, "-m", "infra.cli", *worker_arguments(home)]


def _work(arguments: list[str], environment: dict[str, str], log: Path) -> None:
    """Be a worker: in the new process, from its first line to its exit status."""
    # Ctrl-C on the terminal reaches the supervisor alone, which then stops the workers in order.
    os.setsid()
    parent = multiprocessing.parent_process()
    assert parent is not None
    os.dup2(parent.sentinel, sys.stdin.fileno())
    with log.open("ab") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["searchloop", *arguments]
    main()


def stop_with_parent(stop: Stop, pipe: int) -> None:
    """Raise the flag when the pipe (a file descriptor) closes: the process that holds its other end is gone."""

    def watch() -> None:
        # Not through sys.stdin: a thread that waits in a buffered read would abort the interpreter's exit.
        while os.read(pipe, 4096):
            pass
        stop.set()

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def living_workers(runs: Path) -> list[tuple[str, str, int]]:
    """Return (run, role, pid) of every worker that is alive, from the files that supervisors keep."""
    rows = []
    for file in sorted(runs.glob("*/workers.json")):
        for row in json.loads(file.read_text()):
            try:
                alive = abs(psutil.Process(row["pid"]).create_time() - row["started"]) < 1.0
            except psutil.NoSuchProcess:
                alive = False
            if alive:
                rows.append((file.parent.name, row["role"], row["pid"]))
    return rows
