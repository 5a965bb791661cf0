"""The lock that allows one monitor at a time for a run on this machine, and its check."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from streams.errors import DeliveryError
from streams.locks import is_held, only_one

LOCK_FILE = "monitor.lock"


def only_monitor(run_dir: Path) -> AbstractContextManager[None]:
    """Hold the run's monitor lock; raise DeliveryError if another monitor holds it."""
    path = run_dir / LOCK_FILE
    return only_one(
        path, DeliveryError(f"another monitor of run {run_dir.name!r} is running (it holds {path}); one is enough")
    )


def monitor_is_running(run_dir: Path) -> bool:
    """Return whether a monitor of this run is running on this machine."""
    return is_held(run_dir / LOCK_FILE)
