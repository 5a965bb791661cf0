"""Roles of a run whose workers another machine has: the wait for their last records.

`train --elsewhere ROLE` starts no worker of the role, and `searchloop run ROLE` on the other machine does.
"""

from __future__ import annotations

import logging
import time

from infra.app.app import App
from infra.app.interrupts import received
from streams.clients import committed_offsets, connect_admin, partitions_of
from streams.epochs import counted
from streams.events import PolicyVersion
from streams.kafka_errors import told
from streams.kafka_settings import KafkaSettings
from streams.lag import end_offsets
from streams.ranges import read_events
from streams.topics import topic_name

DRAIN_SECONDS = 60.0
PAUSE_SECONDS = 0.2
INPUTS = {"generator": "requests", "environment": "generations"}
log = logging.getLogger(__name__)


def wait_until_drained(app: App, run: str, role: str) -> bool:
    """Wait until the workers of a role have answered all that they may, and return whether they have.

    A sink that stopped before them would leave their last records out of the ledger. After `DRAIN_SECONDS` or a signal
    the wait ends with a line in the log: the ledger then gets these records when the run goes on.
    """
    deadline = time.monotonic() + DRAIN_SECONDS
    kafka = app.connections.kafka
    while (behind := _records_to_answer(kafka, run, role)) and not received():
        if time.monotonic() > deadline:
            log.warning(
                "run %s ends while the %s on another machine has %d records to answer; the ledger gets its answers "
                "when the run goes on",
                run,
                role,
                behind,
            )
            return False
        time.sleep(PAUSE_SECONDS)
    return not behind


def _records_to_answer(kafka: KafkaSettings, run: str, role: str) -> int:
    """Return the number of records that a role has not committed yet, up to the newest grant."""
    ends = end_offsets(kafka, partitions_of(kafka, [topic_name(run, INPUTS[role])]))
    if role == "generator":  # It leaves requests beyond the grant unanswered.
        granted: dict[int, int] = {}
        for version in counted(read_events(kafka, run, PolicyVersion), run=run):
            for partition, offset in (version.requests_admitted or {}).items():
                granted[partition] = max(granted.get(partition, 0), offset)
        ends = {place: min(end, granted.get(place.partition, 0)) for place, end in ends.items()}
    admin = connect_admin(kafka)
    try:
        with told(f"could not read the position of the {role} of run {run!r}"):
            committed = committed_offsets(admin, f"{run}.{role}")
    finally:
        admin.close()
    return sum(max(end - committed.get(place, 0), 0) for place, end in ends.items())
