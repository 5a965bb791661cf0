"""The one process that writes the ledger: rows and offsets in one DuckDB transaction.

At the start, read `positions()` and seek the consumer there; then hand over what comes. A record below the stored
offset is skipped, so a redelivery changes nothing. While DuckDB commits one batch in its own thread (it lets go of the
GIL), the next one is decoded: one batch is in flight and one is being built, never more.

An exception at COMMIT proves nothing (on a full disk a commit was seen that is durable and reported as failed). So the
sink then reopens the file, reads the offsets again, and goes on from what they say.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import IO, Annotated, Any, TypeVar

import duckdb
import msgspec
import pyarrow as pa

from storage.errors import StorageError
from storage.rows import Entry, Tables, build_tables, dead_letter, read_entry, sound
from storage.schema import migrate
from streams.delivery import Received
from streams.events import DeadLetter

Partition = tuple[str, int]  # topic, partition
T = TypeVar("T")

# DuckDB fetches missing extensions from the network by default; the ledger needs none.
OFFLINE = {"autoinstall_known_extensions": False, "autoload_known_extensions": False}


class SinkSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the ledger is written.

    Rows arrive ten times faster in batches of a thousand than of a hundred; beyond that only memory grows.
    """

    batch_records_max: Annotated[
        int,
        msgspec.Meta(
            ge=1, le=100_000, description="records in one transaction; a record of eight candidates is 10 rows"
        ),
    ] = 512
    batch_bytes_max: Annotated[
        int, msgspec.Meta(ge=1024, description="bytes of record values in one transaction, unless one record has more")
    ] = 32 * 1024 * 1024
    memory_mib: Annotated[int, msgspec.Meta(ge=64, description="what DuckDB may hold in memory, MiB")] = 512
    threads: Annotated[int, msgspec.Meta(ge=1, le=64, description="DuckDB's threads")] = 1
    open_timeout_seconds: Annotated[
        float, msgspec.Meta(ge=0, le=600, description="how long to wait for a reader that holds the file for a moment")
    ] = 10.0


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """The rows of one transaction, and where each partition stands after it."""

    tables: Tables
    ends: dict[Partition, tuple[int, int, int, int]]  # first offset, next offset, records, undecodable


class Sink:
    """The ledger, open for writing.

    path: the DuckDB file; it and its folder are made where they do not exist.
    dead_letters: called with the letters of records that could not be decoded, before their batch is stored; it must
    return only after they are safe. The ledger keeps them in any case.
    Raises StorageError if another sink holds the file, if it is damaged, or if it is newer than this program.
    """

    def __init__(
        self,
        path: Path,
        settings: SinkSettings | None = None,
        *,
        dead_letters: Callable[[list[DeadLetter]], None] | None = None,
    ) -> None:
        self.path = Path(path)
        self.settings = settings or SinkSettings()
        self._dead_letters = dead_letters
        self._broken: StorageError | None = None
        self._flight: Future[None] | None = None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = _hold(self.path)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sink")
        try:
            self._connection = open_ledger(self.path, self.settings)
            self._stored = _read_positions(self._connection)
        except BaseException:
            self._thread.shutdown()
            self._lock.close()
            raise
        self._planned = dict(self._stored)

    def positions(self) -> dict[Partition, int]:
        """Return the next offset to read for each (topic, partition) of which something is stored: durable, on disk."""
        return dict(self._stored)

    def write(self, records: Sequence[Received]) -> int:
        """Store the records, and return how many were new; they are durable when this returns.

        Within a partition records come in the order of the log (a batch may mix partitions and repeat records).
        Raises StorageError if they could not be stored; what was stored before stays.
        """
        new = self.submit(records)
        self.flush()
        return new

    def submit(self, records: Sequence[Received]) -> int:
        """Like `write`, but return while the last batch is still on its way; `flush` waits for it.

        The error of an earlier batch is raised here or in `flush`.
        """
        new = 0
        for members in self._batches(records):
            batch = self._build(members)
            self._settle()
            self._planned |= {partition: end[1] for partition, end in batch.ends.items()}
            self._flight = self._thread.submit(self._store, batch)
            new += len(members)
        return new

    def flush(self) -> None:
        """Wait until everything submitted is durable.

        Raises StorageError if it could not be stored.
        """
        self._settle()

    def run(self, work: Callable[[duckdb.DuckDBPyConnection], T]) -> T:
        """Call work with the ledger's connection, in the sink's thread, between two batches; return what it returns."""
        self._settle()
        return self._thread.submit(lambda: work(self._connection)).result()

    def close(self) -> None:
        """Store what is on its way, fold the write-ahead log into the file, and let go of it.

        Raises StorageError if the last batch could not be stored.
        """
        try:
            if self._broken is None:
                self._settle()
        finally:
            self._thread.shutdown()
            with contextlib.suppress(duckdb.Error):  # After a full disk the file cannot be folded; opening it does.
                self._connection.close()
            self._lock.close()

    def __enter__(self) -> Sink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _batches(self, records: Sequence[Received]) -> Iterator[list[Received]]:
        """Yield what is new, in the order of the log, in pieces that fit into one transaction."""
        members: list[Received] = []
        size = 0
        ends: dict[Partition, int] = {}
        for record in sorted(records, key=lambda item: item.position):
            position = record.position
            partition = (position.topic, position.partition)
            if position.offset < ends.get(partition, self._planned.get(partition, 0)):
                continue
            ends[partition] = position.offset + 1
            length = len(record.value or b"")
            if members and (
                len(members) >= self.settings.batch_records_max or size + length > self.settings.batch_bytes_max
            ):
                yield members
                members, size = [], 0
            members.append(record)
            size += length
        if members:
            yield members

    def _build(self, records: list[Received]) -> Batch:
        entries = [read_entry(record) for record in records]
        try:
            tables = build_tables(entries)
        except (pa.ArrowException, OverflowError, UnicodeError):
            entries = sound(entries)
            tables = build_tables(entries)
        letters = [dead_letter(entry) for entry in entries if entry.event is None]
        if letters and self._dead_letters:
            self._dead_letters(letters)
        return Batch(tables=tables, ends=_ends(entries))

    def _settle(self) -> None:
        if self._broken:
            raise self._broken
        flight, self._flight = self._flight, None
        if flight is None:
            return
        try:
            flight.result()
        except StorageError as error:
            self._broken = error
            raise

    def _store(self, batch: Batch) -> None:
        """Store one batch, in the sink's thread; once more if the first attempt left no trace."""
        goal = {partition: end[1] for partition, end in batch.ends.items()}
        for attempt in (1, 2):
            try:
                _commit(self._connection, batch)
            except duckdb.Error as error:
                if not self._reopened(goal, error, last=attempt == 2):
                    continue
            self._stored |= goal
            return

    def _reopened(self, goal: dict[Partition, int], error: duckdb.Error, *, last: bool) -> bool:
        """Open the file anew and return whether the batch is in it; raise StorageError if there is no way on."""
        with contextlib.suppress(duckdb.Error):
            self._connection.close()
        try:
            self._connection = open_ledger(self.path, self.settings)
            stored = _read_positions(self._connection)
        except (duckdb.Error, StorageError) as again:
            raise StorageError(_advice(self.path, again)) from error
        if all(stored.get(partition, 0) >= end for partition, end in goal.items()):
            return True
        if stored != self._stored:
            raise StorageError(
                f"{self.path}: expected the stored offsets {self._stored} or those of the last batch, got {stored}; "
                "something else wrote to this file. Rebuild it from its archive"
            ) from error
        if last:
            raise StorageError(_advice(self.path, error)) from error
        return False


def _ends(entries: Sequence[Entry]) -> dict[Partition, tuple[int, int, int, int]]:
    ends: dict[Partition, tuple[int, int, int, int]] = {}
    for entry in entries:
        position = entry.record.position
        partition = (position.topic, position.partition)
        first, _, count, undecodable = ends.get(partition, (position.offset, 0, 0, 0))
        ends[partition] = (first, position.offset + 1, count + 1, undecodable + (entry.event is None))
    return ends


def open_ledger(path: Path, settings: SinkSettings) -> duckdb.DuckDBPyConnection:
    """Open the ledger for writing and bring its schema up to date.

    Raises StorageError if the file is held by another process for longer than the timeout, or cannot be read.
    """
    deadline = time.monotonic() + settings.open_timeout_seconds
    while True:
        try:
            connection = duckdb.connect(str(path), config=_config(settings))
            break
        except duckdb.Error as error:
            if "lock" in str(error) and time.monotonic() < deadline:
                time.sleep(0.05)
                continue
            raise StorageError(_advice(path, error)) from error
    try:
        migrate(connection)
    except duckdb.Error as error:
        connection.close()
        raise StorageError(_advice(path, error)) from error
    except StorageError as error:
        connection.close()
        raise StorageError(f"{path}: {error}") from error
    return connection


def _config(settings: SinkSettings) -> dict[str, Any]:
    return {"memory_limit": f"{settings.memory_mib}MiB", "threads": settings.threads, **OFFLINE}


def _commit(connection: duckdb.DuckDBPyConnection, batch: Batch) -> None:
    connection.execute("BEGIN")
    for name, rows in batch.tables.items():
        connection.register("arriving", rows)
        connection.execute(f'INSERT INTO "{name}" BY NAME SELECT * FROM arriving')
        connection.unregister("arriving")
    for (topic, partition), (first, end, count, undecodable) in batch.ends.items():
        connection.execute(
            "INSERT INTO sink_offsets VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO UPDATE SET "
            "next_offset = $4, records = records + $5, undecodable = undecodable + $6",
            [topic, partition, first, end, count, undecodable],
        )
    connection.execute("COMMIT")


def _read_positions(connection: duckdb.DuckDBPyConnection) -> dict[Partition, int]:
    rows = connection.execute("SELECT topic, partition, next_offset FROM sink_offsets").fetchall()
    return {(topic, partition): end for topic, partition, end in rows}


def _hold(path: Path) -> IO[str]:
    """Take the lock beside the ledger: DuckDB's own keeps other processes out, this one a second sink in this process.

    Raises StorageError if another sink has it.
    """
    lock = path.with_name(path.name + ".lock").open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.seek(0)
        holder = lock.read().strip() or "unknown"
        lock.close()
        raise StorageError(
            f"{path}: another sink (process {holder}) holds this file; one sink at a time writes a run. Stop it first"
        ) from error
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    return lock


def _advice(path: Path, error: Exception) -> str:
    """Return what happened to the file, in one line, and what to do."""
    said = " ".join(str(error).split())
    if "lock" in said:
        return f"{path}: another process holds this file ({said}). Close it, then start the sink again"
    if any(
        words in said for words in ("No space left", "File too large", "Disk quota", "out of disk", "Could not write")
    ):
        return f"{path}: the disk is full ({said}). What was stored before is whole: free space, start the sink again"
    return f"{path}: DuckDB failed ({said}). If it stays so, rebuild the file from its archive"
