"""Kafka's record batches, taken apart and put together without decoding the records.

A record in a batch has a time and an offset, both relative to the batch's first, and a body: key, value and headers
with their lengths. When a record moves to another batch, the two numbers are rewritten, and the body stays unchanged.
Layout: "Record Batch" in Kafka's documentation of its message format, version 2, which every broker since 0.11 writes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from crc32c import crc32c
from kafka.record import MemoryRecords

from streams.errors import DeliveryError

MAGIC = 2
BATCH_BYTES = 1024 * 1024  # A batch is closed when it holds this many bytes; a single record may be larger.

# base offset, length, leader epoch, magic, crc | attributes, last offset delta, first and last time, producer id,
# producer epoch, base sequence, records. The checksum covers the bytes after it.
_HEAD = struct.Struct(">qiibI")
_TAIL = struct.Struct(">hiqqqhii")
_BEFORE_LENGTH = struct.calcsize(">qi")
_COMPRESSION, _APPEND_TIME, _CONTROL = 0x07, 0x08, 0x20


class RawRecord(NamedTuple):
    """A record whose key, value and headers are still encoded as in a batch (`body`)."""

    offset: int
    timestamp_ms: int
    body: bytes


def read_records(fetched: bytes) -> Iterator[RawRecord]:
    """Yield the records of all whole batches, in order; a broker may cut the last batch short.

    Transaction markers are not records. Raises DeliveryError if a batch is damaged or in a format before 2.
    """
    place = 0
    while place + _BEFORE_LENGTH <= len(fetched):
        end = place + _BEFORE_LENGTH + int.from_bytes(fetched[place + 8 : place + 12], "big")
        if end > len(fetched):
            return
        yield from _of_batch(fetched[place:end])
        place = end


def next_offset(fetched: bytes) -> int | None:
    """Return the offset after the last whole batch, even if its last record is gone; None without a whole batch."""
    place, found = 0, None
    while place + _BEFORE_LENGTH <= len(fetched):
        end = place + _BEFORE_LENGTH + int.from_bytes(fetched[place + 8 : place + 12], "big")
        if end > len(fetched):
            break
        first = int.from_bytes(fetched[place : place + 8], "big")
        found = first + int.from_bytes(fetched[place + _HEAD.size + 2 : place + _HEAD.size + 6], "big") + 1
        place = end
    return found


def body_of(key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]]) -> bytes:
    """Return a record's body as a batch holds it."""
    parts = [*_sized(key), *_sized(value), varint(len(headers))]
    for name, content in headers:
        parts += [*_sized(name.encode()), *_sized(content)]
    return b"".join(parts)


def value_bytes(body: bytes) -> int:
    """Return the length of a record's value."""
    key, place = read_varint(body, 0)
    size, _ = read_varint(body, place + max(key, 0))
    return max(size, 0)


class BatchBuilder:
    """A batch that grows record by record, uncompressed, with the records' own times."""

    def __init__(self) -> None:
        self.records = 0
        self.bytes = 0
        self._parts: list[bytes] = []
        self._first_ms = 0
        self._last_ms = 0

    def append(self, timestamp_ms: int, body: bytes) -> None:
        """Add a record at the end."""
        if not self.records:
            self._first_ms = self._last_ms = timestamp_ms
        elif timestamp_ms > self._last_ms:
            self._last_ms = timestamp_ms
        place = b"\0" + varint(timestamp_ms - self._first_ms) + varint(self.records)
        size = len(place) + len(body)
        self._parts += (varint(size), place, body)
        self.records += 1
        self.bytes += size

    def build(self, *, producer_id: int, producer_epoch: int, sequence: int) -> bytes:
        """Return the batch in the form that an idempotent producer sends. sequence: the number of its first record."""
        last = self.records - 1
        tail = _TAIL.pack(0, last, self._first_ms, self._last_ms, producer_id, producer_epoch, sequence, self.records)
        records = b"".join(self._parts)
        checksum = crc32c(records, crc32c(tail))
        size = _HEAD.size - _BEFORE_LENGTH + len(tail) + len(records)
        return b"".join((_HEAD.pack(0, size, -1, MAGIC, checksum), tail, records))


def varint(number: int) -> bytes:
    """Return a number in Kafka's encoding: zigzag, seven bits a byte, the lowest first."""
    number = number << 1 if number >= 0 else (-number << 1) - 1
    if number < 0x80:
        return _SMALL[number]
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def read_varint(data: bytes, place: int) -> tuple[int, int]:
    """Return the number at this place, and the place of the next item."""
    byte = data[place]
    place += 1
    number, shift = byte & 0x7F, 7
    while byte & 0x80:
        byte = data[place]
        place += 1
        number |= (byte & 0x7F) << shift
        shift += 7
    return (number >> 1) ^ -(number & 1), place


_SMALL = [bytes((number,)) for number in range(0x80)]


def _sized(content: bytes | None) -> tuple[bytes, bytes]:
    return (varint(-1), b"") if content is None else (varint(len(content)), content)


def _of_batch(batch: bytes) -> Iterator[RawRecord]:
    if len(batch) < _HEAD.size + _TAIL.size:
        raise DeliveryError(f"record batch: expected at least {_HEAD.size + _TAIL.size} bytes, got {len(batch)}")
    base, _, _, magic, checksum = _HEAD.unpack_from(batch)
    if magic != MAGIC:
        raise DeliveryError(f"record batch at offset {base}: expected message format {MAGIC}, got {magic}")
    if crc32c(memoryview(batch)[_HEAD.size :]) != checksum:
        raise DeliveryError(f"record batch at offset {base}: its checksum does not match, so it is damaged")
    attributes, _, first_ms, last_ms, _, _, _, count = _TAIL.unpack_from(batch, _HEAD.size)
    if attributes & _CONTROL:
        return
    if attributes & _COMPRESSION:
        yield from _decompressed(batch, base)
        return
    try:
        place = _HEAD.size + _TAIL.size
        for _ in range(count):
            size, place = read_varint(batch, place)
            end = place + size
            late, place = read_varint(batch, place + 1)  # One byte of attributes, unused.
            ahead, place = read_varint(batch, place)
            if not place <= end <= len(batch):
                raise ValueError(f"a record of {size} bytes does not fit into it")
            at = last_ms if attributes & _APPEND_TIME else first_ms + late
            yield RawRecord(base + ahead, at, batch[place:end])
            place = end
    except (ValueError, IndexError) as error:
        raise _unreadable(base, error) from error


def _decompressed(batch: bytes, base: int) -> list[RawRecord]:
    try:
        return [
            RawRecord(record.offset, record.timestamp, body_of(record.key, record.value, record.headers))
            for record in MemoryRecords(batch).next_batch()
        ]
    except Exception as error:  # Each of the four compression libraries has its own errors.
        raise _unreadable(base, error) from error


def _unreadable(base: int, error: Exception) -> DeliveryError:
    return DeliveryError(f"record batch at offset {base}: cannot be read, although its checksum matches: {error}")
