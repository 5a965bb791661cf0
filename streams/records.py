"""A Kafka record as this package passes it on."""

from __future__ import annotations

import msgspec

from streams.events import Position


class Received(msgspec.Struct, frozen=True, kw_only=True):
    """A record as it came: its place, its bytes, and nothing interpreted."""

    position: Position
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()
