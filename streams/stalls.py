"""Waits without progress: after some time a wait becomes a line in the log, repeated while it lasts."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable


class StallWatch:
    """Counts the seconds since the last progress, and regularly reports what is awaited.

    It has no thread: the waiting code calls `waiting_for` at each check, and `progress` when something has come.
    """

    def __init__(
        self, seconds: float, log: logging.Logger, *, clock: Callable[[], float] = time.monotonic, where: str = ""
    ) -> None:
        """seconds: a wait this long is a stall (`delivery.stall_seconds`). where: begins the line, such as a run."""
        self._seconds = seconds
        self._log = log
        self._clock = clock
        self._where = f"{where}: " if where else ""
        self._since = self._told = clock()

    @property
    def waited_seconds(self) -> float:
        """Return the seconds since the last progress."""
        return self._clock() - self._since

    @property
    def due(self) -> bool:
        """Return whether `waiting_for` would report now; building its text may be costly."""
        return self._clock() - self._told >= self._seconds

    def progress(self) -> None:
        """Record progress: the wait starts anew."""
        self._since = self._told = self._clock()

    def waiting_for(self, what: str) -> bool:
        """Write "no progress for N s: waiting for …", once every `seconds`; return whether it was written now."""
        if not self.due:
            return False
        self._told = self._clock()
        self._log.warning("%s", self._where + stall_text(self.waited_seconds, what))
        return True


def stall_text(seconds: float, what: str) -> str:
    """Return the line of a stall: the same words in a log, in `status`, in `watch` and in an alert."""
    return f"no progress for {seconds:.0f} s: waiting for {what}"
