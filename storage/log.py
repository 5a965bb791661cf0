"""Read the log back: typed events from the archive, and SQL queries to the ledger, even while a sink writes it.

Only one process can hold the ledger's file. If a sink holds it, the ledger is rebuilt in memory from the archive's
closed segments. The code and the rows are the same, but the newest records are missing (at most those of the archive's
`segment_seconds_max`). If the sink has stopped, the file itself is opened, read-only.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import duckdb
import pyarrow as pa

from storage.archive import (
    ARCHIVE,
    archive_holes,
    describe_segment,
    find_segments,
    list_segment,
    read_archive,
    read_segment,
)
from storage.errors import StorageError
from storage.ledger import (
    LEDGER,
    OFFLINE,
    Partition,
    build_batch,
    explain,
    held,
    is_open_elsewhere,
    read_positions,
    store_batch,
)
from storage.schema import migrate, pending
from storage.scratch import within_memory
from storage.switching import choose, is_chosen
from streams.codec import decode
from streams.errors import EventError
from streams.events import Event, Position
from streams.records import Received

RECORDS_AT_ONCE = 512
SWITCH_SECONDS_MAX = 10.0  # For two renames on a busy machine.
BUILD_MEMORY = "512MiB"  # For a ledger that is rebuilt for reading; the rest lies on the disk.
READING_MIB = 1024  # As for a question of the pages; what does not fit is put aside.
RAW_AT_ONCE = 64  # A record may have 8 MB.

E = TypeVar("E", bound=Event)
Options = Mapping[str, str | bool | int | float | list[str]]


class Log:
    """The log of one run, open for reading.

    live: False if the ledger's own file was read; True if a sink holds the file, and this is the archive's content so
    far.
    """

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        archive: Path,
        *,
        live: bool,
        scratch: tempfile.TemporaryDirectory[str] | None = None,
    ) -> None:
        """scratch: the folder of the rebuilt ledger that `connection` reads; it is removed when the log is closed."""
        self.connection = connection
        self.archive = archive
        self.live = live
        self._scratch = scratch

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

    def columns(self, sql: str, parameters: Sequence[object] = ()) -> pa.Table:
        """Return the columns of a query: for many rows, of which few need to be Python objects.

        Raises StorageError if DuckDB refuses the query.
        """
        try:
            return self.connection.sql(sql, params=list(parameters)).to_arrow_table()
        except duckdb.Error as error:
            raise StorageError(f"ledger: {' '.join(str(error).split())}") from error

    def records(self, partition: tuple[str, int] | None = None) -> Iterator[Received]:
        """Yield every record once, in the order of the log within each partition, byte for byte as it came.

        partition: restricts the result to this topic and partition number.
        """
        read: dict[tuple[str, int], int] = {}
        for record in read_archive(self.archive, partition):
            read[record.position.topic, record.position.partition] = record.position.offset + 1
            yield record
        for record in raw_records(self.connection, partition):
            if record.position.offset >= read.get((record.position.topic, record.position.partition), 0):
                yield record

    def events(self, kind: type[E]) -> Iterator[tuple[Position, E]]:
        """Yield the place and content of every event of one kind; undecodable records are left out."""
        for record in self.records():
            try:
                event = decode(record.value)
            except EventError:
                continue
            if isinstance(event, kind):
                yield record.position, event

    def close(self) -> None:
        """Release the file."""
        self.connection.close()
        if self._scratch is not None:
            self._scratch.cleanup()

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_log(folder: Path, *, memory_mib: int = READING_MIB) -> Log:
    """Open the log in a run's folder for reading. memory_mib: of DuckDB, which puts the rest aside.

    Raises StorageError if there is none, or if it cannot be read.
    """
    connection = open_file(folder, {**OFFLINE, **within_memory(memory_mib)})
    if connection is not None:
        return Log(connection, folder / ARCHIVE, live=False)
    return log_from_archive(folder)


def open_file(folder: Path, config: Options) -> duckdb.DuckDBPyConnection | None:
    """Open the ledger's file in a run's folder, read-only and with today's views.

    config: the options of the connection. Returns None if the file is held by a sink, or if there is only an archive.
    Raises StorageError if there is neither, or if the file cannot be read.
    """
    path = folder / LEDGER
    _finish_rebuild(path)
    if not path.exists():
        if find_segments(folder / ARCHIVE):
            return None
        raise StorageError(f"{folder}: expected {LEDGER} or {ARCHIVE}/, found neither; train first, or check the name")
    try:
        connection = duckdb.connect(str(path), read_only=True, config=dict(config))
        if pending(connection):
            connection.close()
            _bring_up_to_date(path)
            connection = duckdb.connect(str(path), read_only=True, config=dict(config))
    except duckdb.Error as error:
        if is_open_elsewhere(error):
            return None
        raise StorageError(explain(path, error)) from error
    return connection


def log_from_archive(folder: Path, *, damaged: Callable[[Path, StorageError], None] | None = None) -> Log:
    """Build a ledger from the archive's closed segments alone, and open it.

    Its file is removed when the log is closed. damaged: is called with each unreadable segment, whose records are then
    missing.
    Raises StorageError for such a segment if `damaged` is None.
    """
    archive = folder / ARCHIVE
    scratch = tempfile.TemporaryDirectory(prefix="searchloop-log-", ignore_cleanup_errors=True)
    try:
        connection = duckdb.connect(str(Path(scratch.name) / LEDGER), config={**OFFLINE, "memory_limit": BUILD_MEMORY})
        try:
            migrate(connection)
            records = read_archive(archive) if damaged is None else _readable(archive, damaged)
            _store(connection, records)
            connection.execute("DELETE FROM records")
            for segment in find_segments(archive):
                try:
                    list_segment(connection, describe_segment(archive, segment))
                except StorageError:
                    if damaged is None:
                        raise
        except BaseException:
            connection.close()
            raise
    except BaseException:
        scratch.cleanup()
        raise
    return Log(connection, archive, live=True, scratch=scratch)


def _readable(archive: Path, damaged: Callable[[Path, StorageError], None]) -> Iterator[Received]:
    """Yield the readable records of an archive, in the order of the log within each partition."""
    read: dict[Partition, int] = {}
    for path in find_segments(archive):
        try:
            for record in read_segment(path):
                at = (record.position.topic, record.position.partition)
                if record.position.offset >= read.get(at, 0):
                    read[at] = record.position.offset + 1
                    yield record
        except StorageError as error:
            damaged(path, error)


def _finish_rebuild(path: Path) -> None:
    """Wait until a rebuilt ledger is in its place; if its rebuild was killed, put it there."""
    deadline = time.monotonic() + SWITCH_SECONDS_MAX
    while is_chosen(path) and time.monotonic() < deadline:
        with contextlib.suppress(StorageError), held(path):
            return
        time.sleep(0.05)


def rebuild_ledger(folder: Path, *, gaps: bool = False) -> int:
    """Rebuild the run's ledger from its archive, to replace a lost or damaged one; return the number of records.

    The old file is kept beside it, named `.damaged`. Records that only the old file still holds are copied if they can
    be read. The rest comes from Kafka: the sink continues from the offsets that the new ledger holds. A kill at any
    point leaves either the old ledger or the new one; see `storage.switching`.
    gaps: treat offsets that no segment holds as offsets at which Kafka never had a record.
    Raises StorageError if a sink holds the ledger, if a segment is damaged or missing, or if the disk is full.
    """
    path, archive = folder / LEDGER, folder / ARCHIVE
    if not gaps and (holes := archive_holes(archive)):
        topic, partition, first, last = holes[0]
        more = f", and {len(holes) - 1} more such holes" if len(holes) > 1 else ""
        raise StorageError(
            f"{archive}: no segment holds {topic}[{partition}]@{first}-{last}{more}. Restore the missing segment from "
            "a copy; if Kafka never had a record there, say so with --gaps"
        )
    made = folder / f"{LEDGER}.rebuilding"
    with held(path):
        _remove_made(made)
        try:
            count = _build(made, archive, path)
            choose(made, path)
        except (duckdb.Error, OSError) as error:
            raise StorageError(explain(path, error)) from error
        finally:
            _remove_made(made)
    return count


def _build(made: Path, archive: Path, old: Path) -> int:
    """Write a ledger from the archive and the records that only the old one holds; return the number of records."""
    connection = duckdb.connect(str(made), config=dict(OFFLINE))
    try:
        migrate(connection)
        count = _store(connection, read_archive(archive))
        connection.execute("DELETE FROM records")
        for segment in find_segments(archive):
            list_segment(connection, describe_segment(archive, segment))
        count += _store(connection, _not_archived(old, read_positions(connection)))
        connection.execute("CHECKPOINT")
    finally:
        connection.close()
    return count


def _remove_made(made: Path) -> None:
    for left in (made, made.with_name(f"{made.name}.wal")):
        left.unlink(missing_ok=True)


def _not_archived(path: Path, stored: Mapping[Partition, int]) -> Iterator[Received]:
    """Yield the old ledger's records beyond the stored offsets, if the old ledger can be read at all."""
    if not path.exists():
        return
    try:
        with duckdb.connect(str(path), read_only=True, config=dict(OFFLINE)) as connection:
            for record in raw_records(connection):
                if record.position.offset >= stored.get((record.position.topic, record.position.partition), 0):
                    yield record
    except duckdb.Error:
        return  # It is damaged; that is the reason for the rebuild.


def _bring_up_to_date(path: Path) -> None:
    """Apply the migrations that an older searchloop's ledger lacks, so that it is read with today's views.

    Raises StorageError if a sink holds the file.
    """
    with held(path), duckdb.connect(str(path), config=dict(OFFLINE)) as connection:
        migrate(connection)


def _store(connection: duckdb.DuckDBPyConnection, records: Iterator[Received]) -> int:
    count = 0
    while some := list(islice(records, RECORDS_AT_ONCE)):
        store_batch(connection, build_batch(some))
        count += len(some)
    return count


def raw_records(connection: duckdb.DuckDBPyConnection, partition: tuple[str, int] | None = None) -> Iterator[Received]:
    """Yield the records that a ledger holds raw, in the order of the log within each partition."""
    only = "WHERE topic = ? AND partition = ?" if partition else ""
    columns = "topic, partition, record_offset, record_time_ms, key, value, headers"
    with connection.cursor() as cursor:  # A separate cursor: the caller may run another query between two records.
        rows = cursor.execute(
            f"SELECT {columns} FROM records {only} ORDER BY topic, partition, record_offset", list(partition or ())
        )
        while some := rows.fetchmany(RAW_AT_ONCE):
            for topic, number, offset, time_ms, key, value, headers in some:
                yield Received(
                    position=Position(topic=topic, partition=number, offset=offset),
                    timestamp_ms=time_ms,
                    key=key,
                    value=value,
                    headers=tuple((header["name"], header["value"]) for header in headers),
                )
