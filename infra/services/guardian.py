"""A small process that ends our services when we die without a word, even by kill −9.

It reads a pipe whose other end only its parent holds. A line "release" lets the services live on, and it ends itself.
The end of the pipe means that the parent is gone, and so are the services.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from infra.services.private_variables import public
from infra.services.processes import stop_processes, tagged_processes

RELEASE = b"release\n"
LOOK_SECONDS = 2.0
# A child in the midst of exec has no command line yet, and so no tags; on a busy machine that was seen to last 0.1 s.
LOOKS_SECONDS = (0.0, 0.5, 1.0, 2.0)


class Guardian:
    """The parent's end of the pipe."""

    def __init__(self, home: Path, roles: Sequence[str], session: str, stop_seconds: float) -> None:
        """Start watching. home, roles, session: which processes to end; stop_seconds: how long before a kill."""
        project = str(Path(__file__).resolve().parents[2])
        search_path = os.pathsep.join(filter(None, [project, os.environ.get("PYTHONPATH", "")]))
        arguments = [str(os.getpid()), str(stop_seconds), session, str(home), *roles]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "infra.services.guardian", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",  # it may outlive a parent's folder, and must not hold it
            env={**public(os.environ), "PYTHONPATH": search_path},
            start_new_session=True,  # Ctrl-C in the terminal is for the parent, who decides
        )

    @property
    def pid(self) -> int:
        """The guardian's own process."""
        return self._process.pid

    def release(self) -> None:
        """Let the services live on without us."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(RELEASE)
            self._process.stdin.close()
        self._process.wait()

    def finish(self) -> None:
        """Have it end whatever of the services still runs; it goes on by itself."""
        assert self._process.stdin is not None
        self._process.stdin.close()


def main() -> None:
    """Watch the pipe on standard input; arguments: the parent's pid, stop_seconds, session, home, roles."""
    parent, stop_seconds, session = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
    home, roles = Path(sys.argv[4]), sys.argv[5:]
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # A child that our parent forked may hold the pipe open after the parent's death, so look who our parent is, too.
    while os.getppid() == parent:
        readable, _, _ = select.select([0], [], [], LOOK_SECONDS)
        if readable:
            if os.read(0, len(RELEASE)) == RELEASE:
                return
            break
    for pause_seconds in LOOKS_SECONDS:
        time.sleep(pause_seconds)
        stop_processes(list(tagged_processes(home, roles, session)), home, stop_seconds)


if __name__ == "__main__":
    main()
