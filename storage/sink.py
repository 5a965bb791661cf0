"""The only process that writes the ledger: rows and offsets in one DuckDB transaction.

At the start, read `positions()` and seek the consumer there; then hand over the records as they come. A record below
the stored offset is skipped, so a redelivery changes nothing. While DuckDB commits one batch in its own thread (it
releases the GIL), the next batches are decoded. At most `batches_ahead_max` batches wait, and one more is being built.
So the pauses in which DuckDB folds its write-ahead log into the file are not lost.

An exception at COMMIT proves nothing: on a full disk, a durable commit was once reported as failed. So the sink then
reopens the file, reads the offsets again, and continues from them.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import Annotated, TypeVar

import duckdb
import msgspec

from storage.archive import ARCHIVE, ArchiveSettings, close_segments
from storage.building import BuilderProcess
from storage.errors import StorageError
from storage.ledger import LedgerRows, Partition, build_batch, explain, held, open_ledger, read_positions, store_batch
from streams.descriptions import describe
from streams.events import DeadLetter
from streams.records import Received

T = TypeVar("T")
LOOK_SECONDS = 1.0  # The interval at which a sink that waits for its disk reports to its caller.

# DuckDB asks for the GIL about 40 times in a transaction. With Python's default of 5 ms, it would wait that long each
# time for the thread that decodes the next batch: a transaction of 70 ms took 240 ms, and two threads gained nothing.
SWITCH_SECONDS = 0.0001


class SinkSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The sink's batches and waits.

    A transaction costs 20 ms of the processor, whatever its size, and a run writes few records at a time. So the broker
    holds records back for a while.
    """

    batch_records_max: Annotated[
        int,
        msgspec.Meta(ge=1, le=100_000),
        describe("Largest number of records in one transaction. A group of eight is 10 rows."),
    ] = 256
    batch_bytes_max: Annotated[
        int,
        msgspec.Meta(ge=1024),
        describe("Largest size of record values in one transaction, in bytes. A single larger record is still stored."),
    ] = 32 * 1024 * 1024
    linger_seconds: Annotated[
        float,
        msgspec.Meta(ge=0, le=10),
        describe(
            "Time that records wait at the broker until a megabyte of them has come. A smaller value stores "
            "them earlier, at more cost."
        ),
    ] = 5.0
    batches_ahead_max: Annotated[
        int, msgspec.Meta(ge=1, le=64), describe("Batches that may be decoded ahead of the one that is being stored.")
    ] = 3
    builder: Annotated[
        bool,
        describe(
            "True decodes whole batches in a process of its own (70 MiB), which starts when the first whole batch "
            "waits. A second core then stores while it decodes."
        ),
    ] = True
    memory_mib: Annotated[int, msgspec.Meta(ge=64), describe("Memory limit of DuckDB, in MiB.")] = 512
    threads: Annotated[int, msgspec.Meta(ge=1, le=64), describe("Number of DuckDB's threads.")] = 1
    open_timeout_seconds: Annotated[
        float, msgspec.Meta(ge=0, le=600), describe("Longest wait for a reader that holds the file for a moment.")
    ] = 10.0
    archive: ArchiveSettings = ArchiveSettings()


class Sink:
    """The ledger, open for writing.

    path: the DuckDB file. The file, its folder and the folder `archive` beside it are made if they do not exist.
    dead_letters: called with the letters of records that could not be decoded, before their batch is stored; it must
    return only after the letters are safe. The ledger keeps them in any case.
    waiting: is called repeatedly while a call waits for the disk.
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
        self.archive = self.path.parent / ARCHIVE
        self.settings = settings or SinkSettings()
        self.waiting: Callable[[], object] = lambda: None
        self.closed = 0  # Segments that this sink has closed so far.
        self._dead_letters = dead_letters
        self._broken: StorageError | None = None
        self._pending: deque[Future[None]] = deque()
        with contextlib.ExitStack() as stack:
            stack.enter_context(held(self.path))
            self._connection = self._open(self.settings.open_timeout_seconds)
            stack.callback(self._disconnect)
            self._stored = read_positions(self._connection)
            self._open_bytes = _open_bytes(self._connection)
            self._open_since = time.monotonic()
            self._builder = BuilderProcess()
            stack.callback(self._builder.close)
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="sink")
            stack.callback(self._thread.shutdown)
            stack.enter_context(_quick_switches())
            self._held = stack.pop_all()
        self._planned = dict(self._stored)

    def positions(self) -> dict[Partition, int]:
        """Return the next offset to read for each (topic, partition) with stored records, which are durable on disk."""
        return dict(self._stored)

    def write(self, records: Sequence[Received]) -> int:
        """Store the records, and return how many were new; they are durable when this returns.

        Within a partition, records must come in the order of the log (a batch may mix partitions and repeat records). A
        call without records is allowed: it closes a segment that is due.
        Raises StorageError if they could not be stored; records that were stored before stay.
        """
        new = self.submit(records)
        self.flush()
        return new

    def submit(self, records: Sequence[Received]) -> int:
        """Store the records like `write`, but return while the last batches are still pending; `flush` waits for them.

        The error of an earlier batch is raised here or in `flush`.
        """
        new = 0
        for members in self._pieces(records):
            batch = self._build(members)
            if batch.letters and self._dead_letters:
                self._dead_letters(batch.letters)
            self._settle(pending_max=self.settings.batches_ahead_max - 1)
            self._planned |= {partition: extent.next_offset for partition, extent in batch.extents.items()}
            self._pending.append(self._thread.submit(self._store, batch))
            new += len(members)
        if not new and self._due() and not self._pending:
            self._pending.append(self._thread.submit(self._close_segments))
        return new

    def flush(self) -> None:
        """Wait until everything submitted is durable.

        Raises StorageError if a batch could not be stored.
        """
        self._settle()

    def run(self, work: Callable[[duckdb.DuckDBPyConnection], T]) -> T:
        """Call `work` with the ledger's connection, in the sink's thread, between two batches; return its result."""
        self._settle()
        return self._thread.submit(lambda: work(self._connection)).result()

    def close(self) -> None:
        """Store pending batches, close the archive's segments, fold the write-ahead log, and release the file.

        Raises StorageError if a batch could not be stored.
        """
        with self._held:
            if self._broken is None:
                self._settle()
                self._thread.submit(self._close_segments).result()

    def __enter__(self) -> Sink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _pieces(self, records: Sequence[Received]) -> Iterator[list[Received]]:
        """Yield the new records, in the order of the log, in pieces that fit into one transaction."""
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

    def _build(self, members: list[Received]) -> LedgerRows:
        """Return the rows of records: built in another process where a whole batch waits, because more will follow."""
        if len(members) < self.settings.batch_records_max or not self.settings.builder:
            return build_batch(members)
        return self._builder.build(members)

    def _settle(self, pending_max: int = 0) -> None:
        """Wait until at most `pending_max` batches are pending; raise the error of a failed one."""
        while len(self._pending) > pending_max or (self._pending and self._pending[0].done()):
            while not wait([self._pending[0]], timeout=LOOK_SECONDS).done:
                self.waiting()
            self._pending.popleft().result()
        if self._broken:
            raise self._broken

    def _store(self, batch: LedgerRows) -> None:
        """Store one batch in the sink's thread, unless an earlier one failed: nothing is ever stored beyond a gap."""
        if self._broken:
            raise self._broken
        try:
            self._store_once_or_twice(batch)
        except StorageError as error:
            self._broken = error
            raise
        except Exception as error:  # Any error may have left a transaction open: nothing may follow it.
            self._broken = StorageError(f"{self.path}: the sink failed ({error!r}); nothing after it was stored")
            raise self._broken from error

    def _store_once_or_twice(self, batch: LedgerRows) -> None:
        """Store one batch; try again if the first attempt left no trace."""
        goal = {partition: extent.next_offset for partition, extent in batch.extents.items()}
        for attempt in (1, 2):
            try:
                store_batch(self._connection, batch)
            except duckdb.Error as error:
                if not self._found_after_reopening(goal, error, last=attempt == 2):
                    continue
            break
        self._stored = self._stored | goal
        if not self._open_bytes:
            self._open_since = time.monotonic()
        self._open_bytes += batch.bytes
        if self._due():
            self._close_segments()

    def _found_after_reopening(self, goal: dict[Partition, int], error: duckdb.Error, *, last: bool) -> bool:
        """Reopen the file and return whether the batch is in it.

        Raises StorageError if the file cannot be opened, if it holds anything that this sink did not write, or if the
        batch is not in it and this was the last attempt.
        """
        self._disconnect()
        try:
            self._connection = self._open(0.0)
            stored = read_positions(self._connection)
        except duckdb.Error as again:
            raise StorageError(explain(self.path, again)) from error
        if all(stored.get(partition, 0) >= end for partition, end in goal.items()):
            return True
        if stored != self._stored:
            raise StorageError(
                f"{self.path}: expected the stored offsets {self._stored} or those of the last batch, got {stored}; "
                "something else wrote to this file. Rebuild it from its archive"
            ) from error
        if last:
            raise StorageError(explain(self.path, error)) from error
        return False

    def _due(self) -> bool:
        """Return whether a segment is due, by the number or the age of the ledger's raw records."""
        limits = self.settings.archive
        age = time.monotonic() - self._open_since
        return self._open_bytes > 0 and (
            self._open_bytes >= limits.segment_mib_max * 2**20 or age >= limits.segment_seconds_max
        )

    def _close_segments(self) -> None:
        try:
            self.closed += len(close_segments(self._connection, self.archive))
        except (OSError, duckdb.Error) as error:
            raise StorageError(explain(self.archive, error)) from error
        self._open_bytes = 0

    def _open(self, timeout_seconds: float) -> duckdb.DuckDBPyConnection:
        return open_ledger(
            self.path,
            memory_mib=self.settings.memory_mib,
            threads=self.settings.threads,
            timeout_seconds=timeout_seconds,
        )

    def _disconnect(self) -> None:
        with contextlib.suppress(duckdb.Error):  # After a full disk the file cannot be folded; reopening does it.
            self._connection.close()


@contextlib.contextmanager
def _quick_switches() -> Iterator[None]:
    """Let this process's threads hand over the GIL more often than by default."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(before, SWITCH_SECONDS))
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def _open_bytes(connection: duckdb.DuckDBPyConnection) -> int:
    """Return how many bytes of records the ledger holds raw, plus one for each record."""
    row = connection.execute("SELECT sum(coalesce(octet_length(value), 0) + 1) FROM records").fetchone()
    return int(row[0] or 0) if row else 0
