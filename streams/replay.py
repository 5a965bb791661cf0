"""Replay a window of the log, byte for byte, onto separate topics, at the recorded speed or as fast as possible.

Key, value and headers stay unchanged. The caller decides whether the records come from Kafka or the archive. At a given
speed, records are sent one by one, in the order of their times. As fast as possible, one partition is sent after
another, and records move from batch to batch undecoded (`streams.record_batches`).
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec
from kafka import TopicPartition

from streams.delivery import Outbox
from streams.errors import SettingsError
from streams.raw_log import RawWriter
from streams.record_batches import RawRecord, value_bytes
from streams.records import Received
from streams.stopping import Stop
from streams.topics import kind_of, topic_name

FLUSH_RECORDS = 2000  # At most this many records wait for their acknowledgement at once.
REPORT_RECORDS = 500


class ReplayCount(msgspec.Struct, frozen=True, kw_only=True):
    """The totals of a replay. bytes: of values. span_seconds: recorded time from the first record to the last."""

    records: int
    bytes: int
    seconds: float
    span_seconds: float


def parse_speed(text: str) -> float:
    """Return the factor over the recorded speed: "recorded" is 1, "max" is infinite, "x4" or "4" is 4.

    Raises SettingsError for 0, for a negative number, and for text that is not a number.
    """
    try:
        speed = {"recorded": 1.0, "max": math.inf}.get(text) or float(text.removeprefix("x"))
    except ValueError:
        speed = math.nan
    if not speed > 0:
        raise SettingsError(
            f"--speed: expected recorded, max, or a number above 0 such as x4 (four times as fast), got {text!r}"
        )
    return speed


def in_recorded_order(partitions: Sequence[Iterable[Received]]) -> Iterator[Received]:
    """Merge partitions by the records' times; within a partition the order stays the same, whatever the times are."""
    return heapq.merge(*partitions, key=lambda record: record.timestamp_ms)


def replay(
    records: Iterable[Received],
    outbox: Outbox,
    *,
    into: str,
    speed: float,
    keep_times: bool,
    stop: Stop,
    report: Callable[[int], None] = lambda count: None,
) -> ReplayCount:
    """Send records to the topics of the run `into`, each to its own kind and partition, and wait until they are safe.

    speed: times faster than recorded. keep_times: True keeps the records' times; False uses the broker's clock. report:
    is called now and then with the number of records sent. A stop ends the replay between two records.
    Raises DeliveryError if the broker does not take them.
    """
    began = time.monotonic()
    count = size = 0
    first_ms = last_ms = 0
    for record in records:
        if not count:
            first_ms = record.timestamp_ms
        if speed < math.inf:
            due = began + (record.timestamp_ms - first_ms) / 1000 / speed
            if (early := due - time.monotonic()) > 0:
                outbox.flush()
                stop.wait(early)
        if stop():
            break
        outbox.forward(
            topic=topic_name(into, kind_of(record.position.topic)),
            partition=record.position.partition,
            key=record.key,
            value=record.value,
            headers=record.headers,
            timestamp_ms=record.timestamp_ms if keep_times else None,
        )
        count += 1
        size += len(record.value or b"")
        last_ms = record.timestamp_ms
        if count % FLUSH_RECORDS == 0:
            outbox.flush()
            report(count)
    outbox.flush()
    report(count)
    return ReplayCount(
        records=count, bytes=size, seconds=time.monotonic() - began, span_seconds=(last_ms - first_ms) / 1000
    )


def copy(
    partitions: Iterable[tuple[TopicPartition, Iterable[RawRecord]]],
    writer: RawWriter,
    *,
    stop: Stop,
    report: Callable[[int], None] = lambda count: None,
) -> ReplayCount:
    """Append records to partitions with their own times, one partition after another, and wait until they are safe.

    partitions: each target partition with its records. report: is called now and then with the number of records sent.
    A stop ends the copy between two records.
    Raises DeliveryError if the broker does not take them.
    """
    began = time.monotonic()
    count = size = 0
    first_ms, last_ms = math.inf, -math.inf
    for partition, records in partitions:
        for record in records:
            writer.append(partition, record.timestamp_ms, record.body)
            size += value_bytes(record.body)
            first_ms, last_ms = min(first_ms, record.timestamp_ms), max(last_ms, record.timestamp_ms)
            count += 1
            if count % REPORT_RECORDS == 0:
                report(count)
                if stop():
                    break
        if stop():
            break
    writer.flush()
    report(count)
    span = (last_ms - first_ms) / 1000 if count else 0.0
    return ReplayCount(records=count, bytes=size, seconds=time.monotonic() - began, span_seconds=span)
