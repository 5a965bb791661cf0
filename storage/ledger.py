"""The ledger's file: its lock, its opening, and one transaction of rows and offsets."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import duckdb
import msgspec
import pyarrow as pa

from storage.entries import Entry, dead_letter, read_entry
from storage.errors import StorageError
from storage.rows import Tables, build_tables, sound
from storage.schema import migrate
from storage.switching import finish
from streams.events import DeadLetter
from streams.failpoints import failpoint
from streams.locks import take
from streams.records import Received

LEDGER = "searchloop.duckdb"  # The file in a run's folder.

# By default DuckDB fetches missing extensions from the network; the ledger needs none.
OFFLINE = {"autoinstall_known_extensions": False, "autoload_known_extensions": False}

Partition = tuple[str, int]  # topic, partition

INSERT = 'INSERT INTO "{}" BY NAME SELECT * FROM arriving'
ADVANCE = (
    "INSERT INTO sink_offsets BY NAME SELECT * FROM {} ON CONFLICT DO UPDATE SET next_offset = "
    "excluded.next_offset, records = records + excluded.records, undecodable = undecodable + excluded.undecodable"
)


class Extent(msgspec.Struct, frozen=True, kw_only=True):
    """The records of one partition in one batch."""

    first_offset: int
    next_offset: int
    records: int
    undecodable: int


class LedgerRows(msgspec.Struct, frozen=True, kw_only=True):
    """The rows of one transaction, and the records that they cover.

    letters: for the records that could not be decoded. bytes: of record values, plus one for each record.
    """

    tables: Tables
    extents: dict[Partition, Extent]
    letters: list[DeadLetter]
    bytes: int


def build_batch(records: Sequence[Received], *, raw: bool = True) -> LedgerRows:
    """Decode the records and return their rows; an undecodable record becomes a dead letter, never an error.

    raw: False leaves out the records as they came.
    """
    with _without_collector():
        return build_entries([read_entry(record) for record in records], raw=raw)


def build_entries(entries: Sequence[Entry], *, raw: bool = True) -> LedgerRows:
    """Return the rows of decoded records; an event that does not fit into the columns becomes a dead letter."""
    with _without_collector():
        try:
            tables = build_tables(entries, raw=raw)
        except (pa.ArrowException, OverflowError, UnicodeError):
            entries = sound(entries)
            tables = build_tables(entries, raw=raw)
    return LedgerRows(
        tables=tables,
        extents=_extents(entries),
        letters=[dead_letter(entry) for entry in entries if entry.event is None],
        bytes=sum(len(entry.record.value or b"") + 1 for entry in entries),
    )


def store_batch(connection: duckdb.DuckDBPyConnection, batch: LedgerRows) -> None:
    """Write rows and offsets in one transaction.

    Raises duckdb.Error. If COMMIT raised it, the batch may nevertheless be durable: reopen the file and read the
    offsets before anything else is done.
    """
    connection.execute("BEGIN")
    for name, rows in batch.tables.items():
        insert_rows(connection, name, rows)
    _advance(connection, _extent_rows(batch.extents))
    failpoint("sink.before-commit")
    connection.execute("COMMIT")
    failpoint("sink.after-commit")


def store_registered(connection: duckdb.DuckDBPyConnection, tables: Tables, extents: dict[Partition, Extent]) -> None:
    """Write rows and offsets in one transaction, on a connection that sees no variables of this process.

    Raises duckdb.Error; nothing of the batch is written then, and the connection can be used again.
    """
    statements = [(INSERT.format(name), rows) for name, rows in tables.items()]
    connection.execute("BEGIN")
    try:
        for statement, rows in [*statements, (ADVANCE.format("arriving"), _extent_rows(extents))]:
            connection.register("arriving", rows)
            connection.execute(statement)
            connection.unregister("arriving")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def insert_rows(connection: duckdb.DuckDBPyConnection, table: str, arriving: pa.Table) -> None:
    """Append rows to a table, matching columns by name.

    Raises duckdb.Error.
    """
    # DuckDB finds `arriving` by its Python name; registering it first takes 1.5 ms longer.
    connection.execute(INSERT.format(table))


def read_positions(connection: duckdb.DuckDBPyConnection) -> dict[Partition, int]:
    """Return the next offset to read for each partition with stored records."""
    rows = connection.execute("SELECT topic, partition, next_offset FROM sink_offsets").fetchall()
    return {(topic, partition): end for topic, partition, end in rows}


def open_ledger(
    path: Path, *, memory_mib: int, threads: int, timeout_seconds: float = 0.0
) -> duckdb.DuckDBPyConnection:
    """Open the ledger for writing and bring its schema up to date.

    timeout_seconds: how long to wait for a reader that holds the file.
    Raises StorageError if it is held for longer, or if the file cannot be read.
    """
    config: dict[str, str | bool | int | float | list[str]] = {"memory_limit": f"{memory_mib}MiB", "threads": threads}
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            connection = duckdb.connect(str(path), config={**config, **OFFLINE})
            break
        except duckdb.Error as error:
            if not is_open_elsewhere(error) or time.monotonic() >= deadline:
                raise StorageError(explain(path, error)) from error
            time.sleep(0.05)
    try:
        migrate(connection)
    except duckdb.Error as error:
        connection.close()
        raise StorageError(explain(path, error)) from error
    except StorageError as error:
        connection.close()
        raise StorageError(f"{path}: {error}") from error
    return connection


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Keep every other sink out while the context lasts.

    DuckDB's lock stops other processes; our own lock also stops our own threads. If a killed rebuild has left a new
    ledger, it is put into its place first.
    Raises StorageError if another sink has the file, or if the new ledger cannot be put into its place.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(path.name + ".lock").open("a+") as lock:
        if not take(lock):
            lock.seek(0)
            raise StorageError(
                f"{path}: another sink (process {lock.read().strip() or 'unknown'}) holds this file; "
                "one sink at a time writes a run. Stop it first"
            )
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        try:
            finish(path)
        except OSError as error:
            raise StorageError(explain(path, error)) from error
        yield


def is_open_elsewhere(error: duckdb.Error) -> bool:
    """Return whether DuckDB could not open a file because another process or connection has it open."""
    said = str(error)
    return "Could not set lock" in said or "different configuration" in said


def explain(path: Path, error: Exception) -> str:
    """Return the cause of the error and the remedy, in one line."""
    said = " ".join(str(error).split())
    if isinstance(error, duckdb.Error) and is_open_elsewhere(error):
        return f"{path}: another process has this file open ({said}). Close it, then start the sink again"
    if any(words in said for words in ("No space left", "File too large", "Disk quota", "Could not write")):
        return f"{path}: the disk is full ({said}). What was stored before is whole: free space, start the sink again"
    return (
        f"{path}: cannot be read or written ({said}). If it stays so, rebuild it from its archive: "
        f"searchloop rebuild --run {path.parent.name}"
    )


@contextmanager
def _without_collector() -> Iterator[None]:
    """Switch the cycle collector off: events hold no cycles, and searching them costs 40% of the decoding time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _advance(connection: duckdb.DuckDBPyConnection, covered: pa.Table) -> None:
    # One statement for all partitions: DuckDB takes 5 ms to plan it, for one row as for ten.
    connection.execute(ADVANCE.format("covered"))


def _extent_rows(extents: Mapping[Partition, Extent]) -> pa.Table:
    return pa.table(
        {
            "topic": pa.array([topic for topic, _ in extents], pa.string()),
            "partition": pa.array([partition for _, partition in extents], pa.int32()),
            **{
                name: pa.array([getattr(extent, name) for extent in extents.values()], pa.int64())
                for name in Extent.__struct_fields__
            },
        }
    )


def _extents(entries: Sequence[Entry]) -> dict[Partition, Extent]:
    extents: dict[Partition, Extent] = {}
    for entry in entries:
        position = entry.record.position
        known = extents.get((position.topic, position.partition))
        extents[position.topic, position.partition] = Extent(
            first_offset=known.first_offset if known else position.offset,
            next_offset=position.offset + 1,
            records=(known.records if known else 0) + 1,
            undecodable=(known.undecodable if known else 0) + (entry.event is None),
        )
    return extents
