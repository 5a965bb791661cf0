"""The lock that allows one learner at a time for a run."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from streams.errors import DeliveryError
from streams.locks import only_one

LOCK_FILE = "learner.lock"


def only_learner(run_dir: Path) -> AbstractContextManager[None]:
    """Hold the run's learner lock; raise DeliveryError if another learner holds it."""
    path = run_dir / LOCK_FILE
    return only_one(
        path,
        DeliveryError(
            f"another learner of run {run_dir.name!r} is running (it holds {path}); stop it first: two would train "
            "every group twice"
        ),
    )
