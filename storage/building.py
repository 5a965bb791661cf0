"""Rows built in a process of their own, so that decoding and storing do not wait for each other's GIL.

DuckDB asks for the GIL some fifty times in a transaction. Beside a thread that decodes, each time costs a wait. So
where many records wait, another process decodes them and builds the Arrow tables; this one only stores. If that process
dies, its batch is built here.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import subprocess
import sys
from collections.abc import Sequence

import msgspec
import pyarrow as pa

from storage.ledger import Extent, LedgerRows, build_batch
from storage.pipes import close_pipes, receive_message, send_message, start_serving
from streams.events import DeadLetter
from streams.records import Received

log = logging.getLogger(__name__)

PIPE_BYTES = 1 << 20
_SET_PIPE_SIZE = getattr(fcntl, "F_SETPIPE_SZ", 0)


class Built(msgspec.Struct, frozen=True, array_like=True):
    """What a builder answers beside the tables: the parts of `LedgerRows`, and the tables' names in order."""

    names: list[str]
    extents: list[tuple[str, int, Extent]]
    letters: list[DeadLetter]
    bytes: int


class BuilderProcess:
    """A process that builds rows; it is started at the first call, and ends with this object or with this process."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._failed = False

    def build(self, records: Sequence[Received]) -> LedgerRows:
        """Return the rows of records, as `build_batch` does."""
        if not self._failed:
            try:
                return self._asked(records)
            except (OSError, EOFError, ValueError) as error:
                self._failed = True
                self.close()
                log.warning("rows are built in the sink's own process from now on: the builder failed (%r)", error)
        return build_batch(records)

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is None:
            return
        close_pipes(process)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _asked(self, records: Sequence[Received]) -> LedgerRows:
        process = self._process or self._started()
        assert process.stdin is not None and process.stdout is not None
        send_message(process.stdin, msgspec.msgpack.encode(records))
        built = msgspec.msgpack.decode(receive_message(process.stdout), type=Built)
        tables = {name: _table(receive_message(process.stdout)) for name in built.names}
        extents = {(topic, partition): extent for topic, partition, extent in built.extents}
        return LedgerRows(tables=tables, extents=extents, letters=built.letters, bytes=built.bytes)

    def _started(self) -> subprocess.Popen[bytes]:
        process = start_serving("from storage.building import serve; serve()")
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                fcntl.fcntl(pipe, _SET_PIPE_SIZE, PIPE_BYTES)  # type: ignore[arg-type]
        self._process = process
        return process


def serve() -> None:
    """Build rows for another process until its end of the pipe is closed."""
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    decoder = msgspec.msgpack.Decoder(list[Received])
    while True:
        try:
            asked = receive_message(source)
        except EOFError:
            return
        rows = build_batch(decoder.decode(asked))
        extents = [(topic, partition, extent) for (topic, partition), extent in rows.extents.items()]
        send_message(sink, msgspec.msgpack.encode(Built(list(rows.tables), extents, rows.letters, rows.bytes)))
        for table in rows.tables.values():
            out = pa.BufferOutputStream()
            with pa.ipc.new_stream(out, table.schema) as writer:
                writer.write_table(table)
            send_message(sink, out.getvalue())


def _table(content: bytearray) -> pa.Table:
    with pa.ipc.open_stream(pa.py_buffer(content)) as reader:
        return reader.read_all()
