"""A Kafka record in the form that this package passes on."""

from __future__ import annotations

import msgspec

from streams.events import Position


class Received(msgspec.Struct, frozen=True, kw_only=True):
    """A record as received: its place and its bytes, uninterpreted.

    taken_ns: when a worker took it, in nanoseconds since 1970; 0 if nobody traces the worker.
    """

    position: Position
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()
    taken_ns: int = 0


class StageLag(msgspec.Struct, frozen=True, kw_only=True):
    """The lag of a consumer group: the unread records of its topic before the log's end."""

    stage: str
    topic: str
    records: int
