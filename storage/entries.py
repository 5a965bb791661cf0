"""Records with their events, or with the reason why they have none."""

from __future__ import annotations

from typing import NamedTuple

from streams.codec import decode
from streams.errors import EventError
from streams.events import DeadLetter, Event
from streams.records import Received


class Entry(NamedTuple):
    """A record and its event, or the reason why it has none."""

    record: Received
    event: Event | None
    error: str = ""


def read_entry(record: Received) -> Entry:
    """Decode a record; its content never raises an error.

    The event is decoded completely, although half of a reward is tokens that no column holds: a record that another
    stage would refuse must not become a row.
    """
    try:
        return Entry(record, decode(record.value))
    except EventError as error:
        return Entry(record, None, str(error))


def dead_letter(entry: Entry) -> DeadLetter:
    """Return the dead letter of a record that the sink could not decode."""
    return DeadLetter(
        source=entry.record.position,
        key=entry.record.key,
        value=entry.record.value,
        headers=entry.record.headers,
        stage="sink",
        error=entry.error,
        attempts=1,
        made_at_ms=entry.record.timestamp_ms,  # The record's own time, so that a rebuilt ledger equals the original.
    )
