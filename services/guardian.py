"""A small process that stops our services if the parent dies, even by kill −9.

The guardian reads a pipe whose other end only its parent holds. The line "release" lets the services run on and ends
the guardian. If the pipe closes without it, the parent is gone, and the guardian stops the services.
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

from services.private_variables import public
from services.processes import stop_processes, tagged_processes

RELEASE = b"release\n"
LOOK_SECONDS = 2.0
# During exec a child has no command line, and therefore no tags; on a busy machine this lasted 0.1 s.
LOOKS_SECONDS = (0.0, 0.5, 1.0, 2.0)


class Guardian:
    """The parent's end of the pipe."""

    def __init__(self, home: Path, roles: Sequence[str], session: str, stop_seconds: float) -> None:
        """Start watching. home, roles, session: the processes to end; stop_seconds: the wait before a kill."""
        project = str(Path(__file__).resolve().parents[1])
        search_path = os.pathsep.join(filter(None, [project, os.environ.get("PYTHONPATH", "")]))
        arguments = [str(os.getpid()), str(stop_seconds), session, str(home), *roles]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "services.guardian", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",  # it may outlive the parent's folder, and must not hold it
            env={**public(os.environ), "PYTHONPATH": search_path},
            start_new_session=True,  # Ctrl-C in the terminal must reach only the parent, which decides
        )

    @property
    def pid(self) -> int:
        """The pid of the guardian's process."""
        return self._process.pid

    def release(self) -> None:
        """Let the services run on after this process ends."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(RELEASE)
            self._process.stdin.close()
        self._process.wait()

    def finish(self) -> None:
        """Let the guardian end all services that still run; do not wait for it."""
        assert self._process.stdin is not None
        self._process.stdin.close()


def main() -> None:
    """Watch the pipe on standard input. The arguments are the parent's pid, stop_seconds, session, home, roles."""
    parent, stop_seconds, session = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
    home, roles = Path(sys.argv[4]), sys.argv[5:]
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # A child that our parent forked may hold the pipe open after the parent's death, so check our parent's pid, too.
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
