"""A few hashes per record, in a table, to compare the copy of a record inside another with its own bytes."""

from __future__ import annotations

from collections.abc import Sequence

import duckdb
import pyarrow as pa

from storage.entries import Entry
from storage.rows import epoch_of
from streams.codec import content_sha256, encode_event
from streams.errors import EventError
from streams.events import Event, Generation, PolicyVersion, Request, Reward, Update
from streams.ids import group_id
from streams.refusals import KnownRun, refusal

Row = tuple[str, int, int, str, str, str | None, str | None, str | None, str | None, str | None, str | None]
TYPES = {
    "topic": pa.string(),
    "partition": pa.int32(),
    "record_offset": pa.int64(),
    "sha256": pa.string(),
    "event_sha256": pa.string(),
    "inner_sha256": pa.string(),
    "asked_by": pa.string(),
    "wrong_id": pa.string(),
    "refusal": pa.string(),
    "epoch": pa.string(),  # As text: a forged one may be beyond 64 bits.
    "holder": pa.string(),
}


class Digests:
    """Fills the temporary table `digests`, one row for each request, generation, reward, update and version read.

    sha256: of the record's bytes. event_sha256: of the event in our encoding; a record that another version of
    searchloop wrote need not have the same hash. inner_sha256: likewise of the request inside a generation, and of the
    generation inside a reward. asked_by: the run that a generation's request names. wrong_id: the fault of the ids in
    it, NULL if there is none. refusal: the reason why a reward of split train may not teach; NULL if there is none, or
    if the run's terms are unknown. epoch, holder: of an announcement that has them.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, terms: KnownRun | None) -> None:
        self._connection = connection
        self._terms = terms
        connection.execute(
            "CREATE OR REPLACE TEMP TABLE digests (topic VARCHAR, partition INTEGER, record_offset BIGINT, "
            "sha256 VARCHAR, event_sha256 VARCHAR, inner_sha256 VARCHAR, asked_by VARCHAR, wrong_id VARCHAR, "
            "refusal VARCHAR, epoch VARCHAR, holder VARCHAR)"
        )

    def add(self, entries: Sequence[Entry]) -> None:
        """Add the hashes of some records."""
        rows = [
            _row(entry, self._terms)
            for entry in entries
            if isinstance(entry.event, Request | Generation | Reward | Update | PolicyVersion)
        ]
        columns = list(zip(*rows, strict=True))
        if columns:
            arriving = pa.table(  # noqa: F841  DuckDB finds it by its name.
                {name: pa.array(list(of), kind) for (name, kind), of in zip(TYPES.items(), columns, strict=True)}
            )
            self._connection.execute("INSERT INTO digests SELECT * FROM arriving")


def _row(entry: Entry, terms: KnownRun | None) -> Row:
    position, event = entry.record.position, entry.event
    assert event is not None
    inner: Event | None = None
    asked_by = refused = None
    if isinstance(event, Generation):
        inner, asked_by = event.request, event.request.run
    elif isinstance(event, Reward):
        inner = event.generation
        if terms is not None and event.generation.request.split == "train":
            refused = refusal(event, terms) or None
    sha256 = content_sha256(entry.record.value or b"")
    epoch, holder = epoch_of(event, entry.record) if isinstance(event, PolicyVersion) else (None, None)
    return (
        position.topic,
        position.partition,
        position.offset,
        sha256,
        _sha256(event) or sha256,
        None if inner is None else _sha256(inner),
        asked_by,
        _wrong_id(event),
        refused,
        None if epoch is None else str(epoch),
        holder,
    )


def _sha256(event: Event) -> str | None:
    """Return the hash of an event in our encoding; None if we cannot encode the event, such as with infinities."""
    try:
        return content_sha256(encode_event(event))
    except EventError:
        return None


def _wrong_id(event: Event) -> str | None:
    """Return the fault of the ids in an event, None if there is none."""
    if isinstance(event, Reward) and event.group_id != event.generation.group_id:
        return f"the reward is of group {event.group_id}, its generation of {event.generation.group_id}"
    if isinstance(event, Generation):
        expected = group_id(event.request.run, event.source)
        if expected != event.group_id:
            return f"expected group {expected}, which the request's place gives, got {event.group_id}"
    return None
