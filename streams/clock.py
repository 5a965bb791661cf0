"""The wall clock in the unit of the log."""

from __future__ import annotations

import time


def now_ms() -> int:
    """Return the wall clock in milliseconds since the epoch, the unit of every time in the log."""
    return time.time_ns() // 1_000_000
