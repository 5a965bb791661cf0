"""The entry point of `searchloop`: it hears Ctrl-C during the imports, which take a second, and runs the command."""

from __future__ import annotations

import contextlib
import os
import signal
from types import FrameType


def main() -> None:
    """Run the command; a signal during its imports ends it with one line and the status 130 or 143.

    Nothing has begun by then, so the process ends at once: an exception inside an import would leave a traceback, or
    would be swallowed by the library that is being imported.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)
    from infra.cli import main as run

    run()


def _end(number: int, _: FrameType | None) -> None:
    with contextlib.suppress(OSError):  # Standard error may be closed.
        os.write(2, b"stopped\n")
    os._exit(128 + number)


if __name__ == "__main__":
    main()
