"""Batches are read and written as kafka-python, which is the oracle here, writes and reads them."""

from __future__ import annotations

import struct

import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st
from kafka.record import MemoryRecords
from kafka.record.default_records import DefaultRecordBatchBuilder

from streams.errors import DeliveryError
from streams.record_batches import (
    BatchBuilder,
    RawRecord,
    body_of,
    next_offset,
    read_records,
    read_varint,
    value_bytes,
    varint,
)

Item = tuple[int, bytes | None, bytes | None, list[tuple[str, bytes]]]
GZIP = 1
ITEM = st.tuples(
    st.integers(0, 2**42),
    st.none() | st.binary(max_size=40),
    st.none() | st.binary(max_size=300),
    st.lists(st.tuples(st.text(max_size=9), st.binary(max_size=9)), max_size=3),
)
ITEMS = st.lists(ITEM, min_size=1, max_size=20)


def theirs(items: list[Item], *, base: int = 0, compression: int = 0) -> bytes:
    """A batch by kafka-python, at an offset as a broker would have put it."""
    builder = DefaultRecordBatchBuilder(2, compression, False, 7, 0, 0, 1 << 20)
    for number, item in enumerate(items):
        builder.append(number, *item)
    batch = bytearray(builder.build())
    struct.pack_into(">q", batch, 0, base)
    return bytes(batch)


def ours(items: list[Item]) -> bytes:
    builder = BatchBuilder()
    for at_ms, *content in items:
        builder.append(at_ms, body_of(*content))
    return builder.build(producer_id=9, producer_epoch=1, sequence=5)


def with_attributes(batch: bytes, attributes: int) -> bytes:
    """The same batch with other attributes, and a checksum that fits."""
    changed = bytearray(batch)
    struct.pack_into(">h", changed, 21, attributes)
    struct.pack_into(">I", changed, 17, crc32c(bytes(changed[21:])))
    return bytes(changed)


@given(ITEMS)
def test_kafka_python_reads_what_is_built(items: list[Item]) -> None:
    batch = MemoryRecords(ours(items)).next_batch()
    assert batch.validate_crc()
    assert (batch.producer_id, batch.producer_epoch, batch.base_sequence) == (9, 1, 5)
    assert [(r.timestamp, r.key, r.value, r.headers) for r in batch] == [(*i[:3], i[3]) for i in items]


@given(st.lists(ITEMS, min_size=1, max_size=3), st.sampled_from([0, GZIP]), st.integers(0, 40))
def test_what_kafka_python_builds_is_read_and_a_batch_that_is_cut_off_is_left(
    batches: list[list[Item]], compression: int, cut: int
) -> None:
    fetched, expected, end = b"", [], 100
    for items in batches:
        fetched += theirs(items, base=end, compression=compression)
        for at_ms, *content in items:
            expected.append(RawRecord(end, at_ms, body_of(*content)))
            end += 1
    rest = theirs(batches[0], base=end)[:cut]
    assert list(read_records(fetched + rest)) == expected
    assert next_offset(fetched + rest) == end
    assert [value_bytes(record.body) for record in expected] == [
        len(item[2] or b"") for items in batches for item in items
    ]


def test_where_nothing_is_whole_there_is_no_next_offset() -> None:
    assert next_offset(b"") is None
    assert next_offset(theirs([(0, None, b"x", [])])[:-1]) is None


def test_a_marker_is_no_record_and_times_of_the_broker_are_the_last_one() -> None:
    batch = theirs([(5, b"k", b"v", []), (9, None, b"w", [])], base=3)
    assert list(read_records(with_attributes(batch, 0x30))) == []
    assert next_offset(with_attributes(batch, 0x30)) == 5
    assert [record.timestamp_ms for record in read_records(with_attributes(batch, 0x08))] == [9, 9]


def test_a_damaged_batch_and_an_old_format_are_errors() -> None:
    batch = theirs([(5, b"k", b"value", [])], base=3)
    for place in range(21, len(batch)):
        damaged = batch[:place] + bytes([batch[place] ^ 1]) + batch[place + 1 :]
        with pytest.raises(DeliveryError, match="at offset 3: its checksum does not match"):
            list(read_records(damaged))
    with pytest.raises(DeliveryError, match="expected message format 2, got 1"):
        list(read_records(batch[:16] + b"\x01" + batch[17:]))


@pytest.mark.parametrize("codec", [1, 2, 3, 4])
def test_records_that_no_codec_can_unpack_are_an_error(codec: int) -> None:
    """gzip, snappy, lz4 or zstd, says the batch, and its checksum fits."""
    with pytest.raises(DeliveryError, match="at offset 3: cannot be read, although its checksum matches"):
        list(read_records(with_attributes(theirs([(5, b"k", b"value", [])], base=3), codec)))


@given(st.integers(-(2**63), 2**63 - 1))
def test_numbers_come_back(number: int) -> None:
    written = varint(number)
    assert read_varint(b"\xff" + written + b"\x00", 1) == (number, 1 + len(written))
