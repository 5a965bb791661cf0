"""Workers seen from outside: whether they get on, and a signal to one of them."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from kafka import TopicPartition
from kafka.errors import KafkaError

from infra.app.app import App
from infra.runs.living import living_workers
from learner.checkpoints import CURRENT
from streams.clients import connect_consumer
from streams.topics import topic_name

ROLES = ("generator", "environment", "sink", "learner")
RECOVERY_SECONDS_MAX = 3600.0  # Only so that nothing hangs for ever: on a busy machine a first start takes minutes.
LOOK_SECONDS = 0.02


class Progress:
    """Numbers that grow while a role works: its records, its commits, its checkpoints."""

    def __init__(self, app: App, run: str) -> None:
        self._folder = app.home.run(run)
        self._partitions = {
            "generator": TopicPartition(topic_name(run, "generations"), 0),
            "environment": TopicPartition(topic_name(run, "rewards"), 0),
        }
        self._consumer = connect_consumer(app.connections.kafka, {}, client_id=f"{run}-progress", records_max=1)

    def of(self, role: str) -> int:
        """Return the role's number; -1 while the broker does not tell."""
        if role == "learner":
            name = (self._folder / "checkpoints" / CURRENT).read_text().strip()
            return int(name.rpartition("-")[2])
        if role == "sink":  # Opening the ledger does not touch its files, a commit does.
            return touched_ns(self._folder)
        partition = self._partitions[role]
        try:
            return int(self._consumer.end_offsets([partition])[partition])
        except KafkaError:
            return -1

    def wait(self, role: str, beyond: int, ended: threading.Event) -> None:
        """Return when the role's number is greater.

        Raises TimeoutError after RECOVERY_SECONDS_MAX, and at once when the loop has ended.
        """
        deadline = time.monotonic() + RECOVERY_SECONDS_MAX
        while self.of(role) <= beyond:
            if ended.wait(LOOK_SECONDS) or time.monotonic() > deadline:
                raise TimeoutError(f"the {role} did not get on within {RECOVERY_SECONDS_MAX:g} s")

    def close(self) -> None:
        """Leave the broker."""
        self._consumer.close()


@contextlib.contextmanager
def watched(app: App, run: str) -> Iterator[Progress]:
    """Give the progress of a run whose topics exist."""
    progress = Progress(app, run)
    try:
        yield progress
    finally:
        progress.close()


def signal_role(app: App, run: str, role: str, number: int) -> int:
    """Send a signal to the living worker of this role, wait for one if it is just being started; return its pid.

    Raises TimeoutError if there is none within RECOVERY_SECONDS_MAX.
    """
    deadline = time.monotonic() + RECOVERY_SECONDS_MAX
    while time.monotonic() < deadline:
        for name, its_role, pid in living_workers(app.home.runs):
            if (name, its_role) == (run, role):
                os.kill(pid, number)
                return pid
        time.sleep(LOOK_SECONDS)
    raise TimeoutError(f"no {role} lives")


def touched_ns(folder: Path) -> int:
    """Return a number that grows with each commit to the ledger of a run's folder."""
    return sum(_touched_ns(path) for path in folder.glob("searchloop.duckdb*"))


def _touched_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:  # Folded into the ledger since it was listed.
        return 0
