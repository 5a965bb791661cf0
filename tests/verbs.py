"""A verb in a process of its own, forked from one that has imported everything; what it may wait for; how it ends."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from infra.cli import main

ROOT = Path(__file__).parents[1]
ENDED_SECONDS = 5.0
STARTED_SECONDS = 300.0
# What else a verb's last line may be: it says that it was cut off, and what became of what it had started.
CUT_OFF = "stopped: it had not ended 3.5 s after the signal, and was cut off"
forks = multiprocessing.get_context("forkserver")


class Silence:
    """A port that takes connections and never answers."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self.taken: list[socket.socket] = []
        threading.Thread(target=self._take, daemon=True).start()

    def _take(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self.taken.append(self._server.accept()[0])

    def close(self) -> None:
        self._server.close()
        for connection in self.taken:
            connection.close()


class Verb:
    """One verb in a process of its own."""

    def __init__(self, home: Path, arguments: Sequence[str], variables: dict[str, str], log: Path) -> None:
        self.log = log
        forks.set_forkserver_preload(["infra.preloaded"])  # As a supervisor does: there is one for all.
        self._process = forks.Process(target=_be_a_verb, args=(home, list(arguments), variables, log))
        self._process.start()
        self.pid = self._process.pid or 0

    def await_(self, there: Callable[[], bool]) -> None:
        """Return when it waits.

        Raises AssertionError with what it said if it ends before.
        """
        deadline = time.monotonic() + STARTED_SECONDS
        while not there():
            assert self._process.exitcode is None, f"it ended with {self._process.exitcode}: {self.said()}"
            assert time.monotonic() < deadline, f"it never came to wait: {self.said()}"
            time.sleep(0.05)

    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def end(self, number: signal.Signals, code: int | None = None) -> float:
        """Send the signal, check everything that is promised of the end, and return how many seconds it took.

        code: the expected exit status. Default: 128 + number, with `stopped` as the last line.
        """
        children = psutil.Process(self.pid).children(recursive=True)
        began = time.monotonic()
        os.kill(self.pid, number)
        self._process.join(30)
        seconds = time.monotonic() - began
        expected = 128 + number if code is None else code
        assert self._process.exitcode == expected, (self._process.exitcode, self.said())
        assert seconds < ENDED_SECONDS, f"{seconds:.1f} s: {self.said()}"
        last = self.said().strip().splitlines()[-1]
        assert code == 0 or last == "stopped" or last.startswith(CUT_OFF), last
        assert "Traceback" not in self.said()
        _, alive = psutil.wait_procs(children, timeout=2)
        assert not alive, [each.cmdline() for each in alive]
        return seconds

    def kill(self) -> None:
        self._process.kill()
        self._process.join()


def _be_a_verb(home: Path, arguments: list[str], variables: dict[str, str], log: Path) -> None:
    os.setsid()
    os.chdir(ROOT)
    with log.open("wb") as file, Path(os.devnull).open() as nothing:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        os.dup2(nothing.fileno(), 0)
    os.environ.clear()
    os.environ.update(variables)
    sys.argv = ["searchloop", "--home", str(home), *arguments]
    main()


def blocked_in_open(pid: int) -> bool:
    """Return whether a process waits for the other end of a FIFO, by the kernel's name of that place."""
    with contextlib.suppress(FileNotFoundError):
        return "wait_for_partner" in Path(f"/proc/{pid}/wchan").read_text()
    return False
