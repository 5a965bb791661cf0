"""Processor time that pages take beside their answers, as a share of one core over the last minute or so."""

from __future__ import annotations

import math
import threading
import time

MEMORY_SECONDS = 30.0


class Spending:
    """A rate that forgets: what was spent counts less the longer ago it was."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept = 0.0
        self._at = time.monotonic()

    def spend(self, seconds: float) -> None:
        """Count processor time that was just spent."""
        with self._lock:
            self._kept = self._faded() + seconds

    def rate(self) -> float:
        """Return processor seconds a second, about the mean of the last `MEMORY_SECONDS`."""
        with self._lock:
            self._kept = self._faded()
            return self._kept / MEMORY_SECONDS

    def _faded(self) -> float:
        now = time.monotonic()
        faded = self._kept * math.exp((self._at - now) / MEMORY_SECONDS)
        self._at = now
        return faded
