"""Read the log back: typed events from the archive, and questions in SQL to the ledger, also while a sink writes it.

One process holds the ledger's file. If that is a sink at work, the ledger is built anew in memory from the archive's
closed segments: the same code, the same rows, only without the newest records (at most the archive's
`segment_seconds_max`). Once the sink has stopped, the file itself is opened, read-only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import duckdb

from storage.archive import ARCHIVE, describe_segment, find_segments, list_segment, read_archive
from storage.errors import StorageError
from storage.ledger import LEDGER, OFFLINE, build_batch, explain, held, is_held, store_batch
from storage.schema import migrate
from streams.codec import decode
from streams.delivery import Received
from streams.errors import EventError
from streams.events import Event, Position

RECORDS_AT_ONCE = 512

E = TypeVar("E", bound=Event)


class Log:
    """The log of one run, open for reading.

    live: False if the ledger's own file was read; True if a sink holds it, and this is what the archive has so far.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, archive: Path, *, live: bool) -> None:
        self.connection = connection
        self.archive = archive
        self.live = live

    def rows(self, sql: str, parameters: Sequence[object] = ()) -> list[dict[str, Any]]:
        """Return the rows of a query as dictionaries.

        Raises StorageError if DuckDB refuses the query.
        """
        try:
            result = self.connection.execute(sql, list(parameters))
            names = [column[0] for column in result.description or ()]
            return [dict(zip(names, row, strict=True)) for row in result.fetchall()]
        except duckdb.Error as error:
            raise StorageError(f"ledger: {' '.join(str(error).split())}") from error

    def records(self) -> Iterator[Received]:
        """Yield every record once, in the order of the log within each partition, byte for byte as it came."""
        read: dict[tuple[str, int], int] = {}
        for record in read_archive(self.archive):
            read[record.position.topic, record.position.partition] = record.position.offset + 1
            yield record
        for row in self.rows("SELECT * FROM records ORDER BY topic, partition, record_offset"):
            if row["record_offset"] >= read.get((row["topic"], row["partition"]), 0):
                yield Received(
                    position=Position(topic=row["topic"], partition=row["partition"], offset=row["record_offset"]),
                    timestamp_ms=row["record_time_ms"],
                    key=row["key"],
                    value=row["value"],
                    headers=tuple((header["name"], header["value"]) for header in row["headers"]),
                )

    def events(self, kind: type[E]) -> Iterator[tuple[Position, E]]:
        """Yield the place and content of every event of one kind; what cannot be decoded is left out."""
        for record in self.records():
            try:
                event = decode(record.value)
            except EventError:
                continue
            if isinstance(event, kind):
                yield record.position, event

    def close(self) -> None:
        """Let go of the file."""
        self.connection.close()

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_log(folder: Path) -> Log:
    """Open the log in a run's folder for reading.

    Raises StorageError if there is none, or if it cannot be read.
    """
    path, archive = folder / LEDGER, folder / ARCHIVE
    if not path.exists() and not find_segments(archive):
        raise StorageError(f"{folder}: expected {LEDGER} or {ARCHIVE}/, found neither; train first, or check the name")
    if path.exists():
        try:
            connection = duckdb.connect(str(path), read_only=True, config=dict(OFFLINE))
        except duckdb.Error as error:
            if not is_held(error):
                raise StorageError(explain(path, error)) from error
        else:
            return Log(connection, archive, live=False)
    return Log(_from_archive(archive), archive, live=True)


def rebuild_ledger(folder: Path) -> int:
    """Write the run's ledger anew from its archive, in place of a lost or damaged one; return the number of records.

    The old file is kept beside it, named `.damaged`. What was not archived yet comes from Kafka: the sink goes on from
    the offsets that the new ledger holds. Raises StorageError if a sink holds the ledger, or if a segment is damaged.
    """
    path, archive = folder / LEDGER, folder / ARCHIVE
    aside = folder / f"{LEDGER}.rebuilding"
    for left in folder.glob(aside.name + "*"):
        left.unlink()
    with held(path):
        connection = duckdb.connect(str(aside), config=dict(OFFLINE))
        try:
            migrate(connection)
            count = _load(connection, archive)
            connection.execute("DELETE FROM records")
            for segment in find_segments(archive):
                list_segment(connection, describe_segment(archive, segment))
            connection.execute("CHECKPOINT")
        finally:
            connection.close()
        for suffix in ("", ".wal"):
            old = path.with_name(path.name + suffix)
            if old.exists():
                old.replace(path.with_name(f"{path.name}.damaged{suffix}"))
        aside.replace(path)
    return count


def _from_archive(archive: Path) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect(":memory:", config=dict(OFFLINE))
    migrate(connection)
    _load(connection, archive)
    connection.execute("DELETE FROM records")
    return connection


def _load(connection: duckdb.DuckDBPyConnection, archive: Path) -> int:
    count = 0
    members: list[Received] = []
    for record in read_archive(archive):
        members.append(record)
        if len(members) == RECORDS_AT_ONCE:
            store_batch(connection, build_batch(members))
            count += len(members)
            members = []
    if members:
        store_batch(connection, build_batch(members))
    return count + len(members)
