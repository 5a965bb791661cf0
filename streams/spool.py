"""A spool: records on this machine's disk, in order, until Kafka has them.

A record is written before its sender gets an answer, so no outage of Kafka and no kill of this process loses it. Each
record is framed by its length and a CRC-32. A killed writer may leave half a frame at the end; `Spool` cuts it off,
because nobody was told that it is there. The reader's position moves only after Kafka has acknowledged the records, so
after a crash some are sent again: copies, which their ids tell.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from streams.errors import SearchloopError
from streams.locks import only_one
from streams.whole_file import write_file

SEGMENT_BYTES = 16 * 1024 * 1024
_FRAME = struct.Struct("<II")  # length, CRC-32
_POSITION = "position.json"
_GLOB = "*.spool"


class SpoolError(SearchloopError, RuntimeError):
    """A spool is full, damaged, or in use."""


class SpoolFull(SpoolError):
    """The records that wait for Kafka fill the space that the spool may use."""


class Spooled(msgspec.Struct, frozen=True, array_like=True):
    """One record for Kafka: the kind of its topic, its key, and the event's bytes."""

    kind: str
    key: bytes
    value: bytes


class _Place(msgspec.Struct, frozen=True, kw_only=True):
    """The place of the next record to send: a segment's number, and a byte in it."""

    segment: int = 1
    byte: int = 0


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Spooled)


class Spool:
    """One folder of records. One process writes and reads it; `append` and `read` may run in two threads."""

    def __init__(self, folder: Path, *, bytes_max: int, sync: bool = False) -> None:
        """bytes_max: of waiting records. sync: wait for the disk at each record, which survives a power cut, too.

        Raises SpoolError if another process uses the folder, or if a record in the middle is damaged.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._bytes_max = bytes_max
        self._sync = sync
        self._lock = only_one(
            folder / "lock", SpoolError(f"{folder}: another process writes this spool. Stop it first")
        )
        self._lock.__enter__()
        self._mutex = threading.Lock()
        self._place = self._read_place()
        numbers = self._segments()
        self._number = numbers[-1] if numbers else self._place.segment
        self._size = self._mended(self._path(self._number))
        self._file = self._path(self._number).open("ab", buffering=0)
        self._waiting = sum(self._path(n).stat().st_size for n in self._segments()) - self._place.byte
        self._arrived = threading.Event()

    def close(self) -> None:
        """Close the files, and let another process have the folder."""
        self._file.close()
        self._lock.__exit__(None, None, None)

    @property
    def waiting_bytes(self) -> int:
        """The size of the records that Kafka does not have yet."""
        return self._waiting

    def append(self, records: list[Spooled]) -> None:
        """Write records, all or none. Raises SpoolFull if there is no space for them."""
        frames = bytearray()
        for record in records:
            content = _encoder.encode(record)
            frames += _FRAME.pack(len(content), zlib.crc32(content)) + content
        with self._mutex:
            if self._waiting + len(frames) > self._bytes_max:
                raise SpoolFull(
                    f"{self.folder}: {self._waiting / 2**20:.0f} MiB of events wait for Kafka, and at most "
                    f"{self._bytes_max / 2**20:.0f} may (serve.spool_mib_max). Look at Kafka: searchloop status"
                )
            if self._size >= SEGMENT_BYTES:
                self._file.close()
                self._number, self._size = self._number + 1, 0
                self._file = self._path(self._number).open("ab", buffering=0)
            try:
                self._write(frames)
            except OSError:
                os.ftruncate(self._file.fileno(), self._size)  # Half a frame would hide the records after it.
                raise
            self._size += len(frames)
            self._waiting += len(frames)
        self._arrived.set()

    def wait(self, seconds: float) -> bool:
        """Wait until a record comes; return whether there may be one."""
        found = self._arrived.wait(seconds)
        self._arrived.clear()
        return found

    def read(self, records_max: int) -> tuple[list[Spooled], _Place]:
        """Return the next records, and the place after them, for `done`. Raises SpoolError if one is damaged."""
        found: list[Spooled] = []
        place = self._place
        while len(found) < records_max:
            last = place.segment == self._number
            end = self._size if last else self._path(place.segment).stat().st_size
            for record, byte in _frames(self._path(place.segment), place.byte, end):
                found.append(record)
                place = _Place(segment=place.segment, byte=byte)
                if len(found) == records_max:
                    return found, place
            if last:
                break
            place = _Place(segment=place.segment + 1)
        return found, place

    def done(self, place: _Place) -> None:
        """Note that Kafka has every record before this place, and delete the segments that hold only such ones."""
        write_file(self.folder / _POSITION, msgspec.json.encode(place))
        with self._mutex:
            for number in [each for each in self._segments() if each < place.segment]:
                self._path(number).unlink()
            self._place = place
            self._waiting = sum(self._path(n).stat().st_size for n in self._segments()) - place.byte

    def _write(self, frames: bytearray) -> None:
        written = 0
        while written < len(frames):
            written += os.write(self._file.fileno(), memoryview(frames)[written:])
        if self._sync:
            os.fdatasync(self._file.fileno())

    def _read_place(self) -> _Place:
        try:
            return msgspec.json.decode((self.folder / _POSITION).read_bytes(), type=_Place)
        except FileNotFoundError:
            return _Place(segment=min(self._segments(), default=1))
        except msgspec.MsgspecError as error:
            raise SpoolError(
                f"{self.folder / _POSITION}: damaged ({error}). Remove the file: all records are sent again, as copies"
            ) from error

    def _mended(self, path: Path) -> int:
        """Cut off half a frame at the end of the newest segment, and return the segment's size."""
        if not path.exists():
            return 0
        whole = 0
        for _, byte in _frames(path, 0, path.stat().st_size, torn=True):
            whole = byte
        if whole < path.stat().st_size:
            os.truncate(path, whole)
        return whole

    def _segments(self) -> list[int]:
        return sorted(int(path.stem) for path in self.folder.glob(_GLOB))

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:08d}.spool"


def waiting_on_disk(folder: Path) -> int:
    """Return the size of the records in a spool that Kafka does not have yet, also if another process writes it."""
    try:
        place = msgspec.json.decode((folder / _POSITION).read_bytes(), type=_Place)
    except (OSError, msgspec.MsgspecError):
        place = _Place()
    waiting = 0
    for path in folder.glob(_GLOB):
        with contextlib.suppress(OSError):  # Sent and deleted meanwhile.
            if int(path.stem) >= place.segment:
                waiting += path.stat().st_size - (place.byte if int(path.stem) == place.segment else 0)
    return waiting


def _frames(path: Path, start: int, end: int, *, torn: bool = False) -> Iterator[tuple[Spooled, int]]:
    """Yield each record between two bytes, and the byte after it. torn: the end may be half a frame.

    Raises SpoolError for a damaged record; with `torn`, the last whole one ends the reading.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(start)
        byte = start
        while byte < end:
            head = file.read(_FRAME.size)
            length, checksum = _FRAME.unpack(head) if len(head) == _FRAME.size else (0, 1)
            content = file.read(length)
            if len(content) < length or zlib.crc32(content) != checksum:
                if torn:
                    return
                raise SpoolError(f"{path}: the record at byte {byte} is damaged. Move the folder away, and keep it")
            byte += _FRAME.size + length
            yield _decoder.decode(content), byte
