"""The first second of a process, in which it imports: Ctrl-C and SIGTERM end it at once, with one line."""

from __future__ import annotations

import contextlib
import os
import signal
from types import FrameType


def end_at_once_on_signals() -> None:
    """Let a signal end this process with one line and the status 130 or 143, until other handlers are installed.

    Nothing has begun yet, so nothing needs to be cleaned up. An exception inside an import would leave a traceback, or
    would be swallowed by the library that is being imported. This module imports none of ours.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)


def _end(number: int, _: FrameType | None) -> None:
    with contextlib.suppress(OSError):  # Standard error may be closed.
        os.write(2, b"stopped\n")
    os._exit(128 + number)
