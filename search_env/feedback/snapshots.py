"""The state of a join as bytes: MessagePack with a version, behind a SHA-256 of itself.

A reader refuses a version that it does not know, and bytes that changed on their way. The state holds no deadlines:
they follow from what is held, so a restored join computes them again.
"""

from __future__ import annotations

import hashlib

import msgspec

from search_env.feedback.attribution import JoinSettings
from search_env.feedback.bots import KeptTally
from search_env.feedback.outcomes import JoinCounts
from streams.errors import SearchloopError
from streams.events import Position
from streams.traffic_events import Impression, UserAction

VERSION = "join/1"
DIGEST_BYTES = 32


class FeedbackError(SearchloopError, ValueError):
    """Feedback that does not fit: a snapshot of another version, or outcomes that cannot be compared."""


class HeldImpression(msgspec.Struct, frozen=True, array_like=True):
    """An impression without a final outcome, and the record that counts for it."""

    impression: Impression
    position: Position


class HeldAction(msgspec.Struct, frozen=True, array_like=True):
    """An action without a decision, and the record that counts for it."""

    action: UserAction
    position: Position


class JoinState(msgspec.Struct, frozen=True, kw_only=True, tag=VERSION, tag_field="state"):
    """Everything that a join remembers. `joining.Joiner` says what the parts mean."""

    settings: JoinSettings
    watermark_ms: int | None
    horizon_ms: int | None
    open: tuple[HeldImpression, ...]
    waiting: tuple[HeldAction, ...]
    final: dict[str, int]
    decided: dict[str, int]
    changed: tuple[str, ...]
    counts: JoinCounts
    clients: tuple[KeptTally, ...] | None = None  # None: a snapshot from before clients were counted.


_DECODER = msgspec.msgpack.Decoder(JoinState)


def encode_state(state: JoinState) -> bytes:
    """Return a state as bytes; the same state always gives the same bytes."""
    content = msgspec.msgpack.encode(state)
    return hashlib.sha256(content).digest() + content


def decode_state(data: bytes) -> JoinState:
    """Return the state in a snapshot. Raises FeedbackError if it is damaged or of an unknown version."""
    digest, content = data[:DIGEST_BYTES], data[DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        raise FeedbackError(
            f"expected a snapshot of a join, got {len(data):,} bytes whose SHA-256 differs. Use an older snapshot, and "
            "read the log from its position"
        )
    try:
        return _DECODER.decode(content)
    except msgspec.MsgspecError as error:
        raise FeedbackError(
            f"expected a snapshot of version {VERSION!r}, got another ({error}). Read the log from its start"
        ) from error
