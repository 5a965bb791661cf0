"""The lock that allows one monitor at a time for a run on this machine, and its check."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from streams.errors import DeliveryError

LOCK_FILE = "monitor.lock"


@contextmanager
def only_monitor(run_dir: Path) -> Iterator[None]:
    """Hold the run's monitor lock; the system releases it when the process ends, however it ends.

    Raises DeliveryError if another monitor holds it.
    """
    with (run_dir / LOCK_FILE).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DeliveryError(
                f"another monitor of run {run_dir.name!r} is running (it holds {run_dir / LOCK_FILE}); one is enough"
            ) from error
        yield


def monitor_is_running(run_dir: Path) -> bool:
    """Return whether a monitor of this run is running on this machine."""
    try:
        with (run_dir / LOCK_FILE).open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
