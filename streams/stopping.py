"""The flag that asks a worker to stop between two polls."""

from __future__ import annotations

import signal
import threading


class Stop:
    """A flag that SIGTERM and SIGINT raise and that a worker checks between two polls."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def __call__(self) -> bool:
        """Return whether it is time to stop."""
        return self._event.is_set()

    def set(self, *_: object) -> None:
        """Ask the worker to stop after its current work."""
        self._event.set()

    def wait(self, seconds: float) -> bool:
        """Sleep, but wake at once if a stop is requested; return whether one was requested."""
        return self._event.wait(seconds)

    def on_signals(self) -> Stop:
        """Let SIGTERM and SIGINT raise the flag."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.set)
        return self
