"""Supervision of worker processes: they are started, watched, restarted when they die, and never left behind.

Workers are forks of one process that has imported everything they need (`infra.preloaded`) and does nothing else.
A restart therefore takes no imports, and the libraries lie in memory once. A worker reads its standard input, a pipe
that only the supervisor holds. When the supervisor is killed the pipe closes, and the worker stops by itself.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import TracebackType

import psutil

from infra.app.home import RunFolder
from infra.app.interrupts import at_hard_end, received
from infra.app.libraries import set_library_variables
from infra.runs.living import SUPERVISED, write_workers
from services.private_variables import for_role
from streams.errors import AGAIN, SearchloopError
from streams.stopping import Stop

# A killed worker is always started again, and so is one whose helper was killed: memory that is short now need not stay
# so. One that ends with an error of its own is given up after so many in a row.
ERRORS_MAX = 3
HEALTHY_SECONDS = 60.0  # A worker that lived this long has recovered, and its errors are forgotten.
STOP_SECONDS = 20.0
HURRIED_SECONDS = 1.5  # After Ctrl-C: the whole process has to end within `infra.app.interrupts.LIMIT_SECONDS`.
FORK_SERVER_DIED = 255  # The exit status that multiprocessing then gives each fork, alive or not.

COMMAND = "infra.cli"

_forks = multiprocessing.get_context("forkserver")


class WorkerError(SearchloopError, RuntimeError):
    """A worker that dies again and again."""


class Supervisor:
    """Keeper of one process per role; use it as a context manager."""

    def __init__(self, arguments: list[str], roles: list[str], run_dir: RunFolder, environment: dict[str, str]) -> None:
        """arguments: of `searchloop`, to start a worker, without its role: `worker_arguments`.

        environment: variables on top of this process's own.
        """
        set_library_variables()
        _forks.set_forkserver_preload(["infra.preloaded"])
        self._arguments = arguments
        self._roles = roles
        self._run_dir = run_dir
        self._processes: dict[str, ForkServerProcess] = {}
        self._environment = environment
        self._errors = dict.fromkeys(roles, 0)
        self._started = dict.fromkeys(roles, 0.0)
        self.restarts = 0
        self._guard = contextlib.ExitStack()

    def __enter__(self) -> Supervisor:
        self._guard.enter_context(at_hard_end(self._kill))
        (self._run_dir.logs).mkdir(parents=True, exist_ok=True)
        for role in self._roles:
            self._start(role)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop(self._roles)
        self._guard.close()
        (self._run_dir / SUPERVISED).unlink(missing_ok=True)

    def check(self) -> None:
        """Restart every worker that has died.

        Raises WorkerError with the last error in its log if one ended with an error three times in a row.
        """
        for role, process in list(self._processes.items()):
            if (status := process.exitcode) is None:
                continue
            if time.monotonic() - self._started[role] > HEALTHY_SECONDS:
                self._errors[role] = 0
            if status == FORK_SERVER_DIED:
                with contextlib.suppress(psutil.NoSuchProcess):  # Its status can no longer be read.
                    orphan = psutil.Process(process.pid)
                    orphan.kill()
                    orphan.wait(STOP_SECONDS)
            else:
                # Below 0 it was killed by a signal; AGAIN: a process that it needs was killed, or is gone.
                self._errors[role] += status > 0 and status != AGAIN
            if self._errors[role] >= ERRORS_MAX:
                raise WorkerError(
                    f"the {role} ended with an error {ERRORS_MAX} times; its log, {self.log_path(role)}, says: "
                    f"{self._last_words(role)}"
                )
            self.restarts += 1
            self._start(role)

    def stop(self, roles: list[str]) -> bool:
        """Ask these workers to stop, wait, and kill those that do not; return whether every one ended by itself.

        After Ctrl-C they get `HURRIED_SECONDS`. A kill costs them only the work that they had in hand.
        """
        stopping = [self._processes.pop(role) for role in roles if role in self._processes]
        for process in stopping:
            process.terminate()
        deadline = time.monotonic() + (HURRIED_SECONDS if received() else STOP_SECONDS)
        for process in stopping:
            process.join(timeout=max(deadline - time.monotonic(), 0.1))
            if process.exitcode is None:
                process.kill()
                process.join()
                # `join` returns when the process has closed its end of a pipe; its locks may go a moment later.
                with contextlib.suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
                    psutil.Process(process.pid).wait(STOP_SECONDS)
        return all(process.exitcode == 0 for process in stopping)

    def pids(self) -> dict[str, int]:
        """Return each living worker's pid by role."""
        return {role: process.pid or 0 for role, process in self._processes.items()}

    def log_path(self, role: str) -> Path:
        """Return the file with a worker's output."""
        return self._run_dir.logs / f"{role}.log"

    def _kill(self) -> str:
        """Kill all workers, from another thread, as the last act of this process."""
        for process in list(self._processes.values()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid or 0, signal.SIGKILL)
        return "its workers were killed; the same command goes on where they stopped"

    def _start(self, role: str) -> None:
        self._started[role] = time.monotonic()
        arguments = [*self._arguments, role, "--run", self._run_dir.name, "--supervised"]
        # It goes through multiprocessing's pipe, so its secrets never stand in a process's first environment.
        environment = for_role(os.environ | self._environment, role)
        process = _forks.Process(target=_work, args=(arguments, environment, self.log_path(role)))
        process.start()
        self._processes[role] = process
        living = {name: each.pid or 0 for name, each in self._processes.items() if each.exitcode is None}
        write_workers(self._run_dir, living.items())

    def _last_words(self, role: str) -> str:
        lines = self.log_path(role).read_text(errors="replace").strip().splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        return (errors or lines or ["(it said nothing)"])[-1]


def worker_arguments(home: Path) -> list[str]:
    """Return the arguments of `searchloop` that start a worker of this home, without its role."""
    return ["--home", str(home), "run"]


def worker_command(home: Path) -> list[str]:
    """Return the command that starts a worker of this home as a process of its own, without its role."""
    return [sys.executable, "-m", COMMAND, *worker_arguments(home)]


def _work(arguments: list[str], environment: dict[str, str], log: Path) -> None:
    """Run as a worker: in the new process, from its first line to its exit status."""
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
    # A worker is the command itself. It is imported here, in its own process, because the command imports this module.
    importlib.import_module(COMMAND).main()


def stop_with_parent(stop: Stop, pipe: int) -> None:
    """Set the flag when the pipe (a file descriptor) closes: the process that holds its other end is gone."""

    def watch() -> None:
        # Not through sys.stdin: a thread that waits in a buffered read would abort the interpreter's exit.
        while os.read(pipe, 4096):
            pass
        stop.set()

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
