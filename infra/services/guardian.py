"""A small process that ends our services when we die without a word, even by kill −9.

It reads a pipe whose other end only its parent holds. A line "release" lets the services live on, and the guardian ends.
The end of the pipe means that the parent is gone, and so are the services.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

from infra.services.processes import stop_processes, tagged_processes

ROLES = ("kafka", "elasticsearch")
RELEASE = b"release\n"
LOOK_SECONDS = 2.0


class Guardian:
    """The parent's end of the pipe."""

    def __init__(self, home: Path, stop_seconds: float) -> None:
        """Start watching. home: whose services to end; stop_seconds: how long they may take before they are killed."""
        project = str(Path(__file__).resolve().parents[2])
        search_path = os.pathsep.join(filter(None, [project, os.environ.get("PYTHONPATH", "")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "infra.services.guardian", str(home), str(stop_seconds), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": search_path},
            start_new_session=True,  # Ctrl-C in the terminal is for the parent, who decides
        )

    def release(self) -> None:
        """Let the services live on without us."""
        assert self._process.stdin is not None
        if self._process.poll() is None:
            self._process.stdin.write(RELEASE)
            self._process.stdin.close()
        self._process.wait()


def main() -> None:
    """Watch the pipe on standard input; arguments: home, stop_seconds, the parent's pid."""
    home, stop_seconds, parent = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # A child that our parent forked may hold the pipe open after the parent's death, so look who our parent is, too.
    while os.getppid() == parent:
        readable, _, _ = select.select([0], [], [], LOOK_SECONDS)
        if readable:
            if os.read(0, len(RELEASE)) == RELEASE:
                return
            break
    stop_processes(list(tagged_processes(home, ROLES)), home, stop_seconds)


if __name__ == "__main__":
    main()
