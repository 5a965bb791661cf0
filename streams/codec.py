"""Encoding of events to bytes, and decoding: JSON, so that any tool can read a topic.

Floats survive the round trip bit for bit (shortest round-trip form). JSON has no NaN and no infinity. To encode one
raises EventError at once, so that a poisoned number never reaches the log.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any, TypeVar

import msgspec

from streams.errors import EventError
from streams.events import DeadLetter, Event, Generation, Reward, WindowEvent

RECORD_BYTES_MAX = 8 * 1024 * 1024  # A group has tens of kB; we write no larger record than this.
LETTER_BYTES_MAX = 2 * RECORD_BYTES_MAX  # A dead letter holds a whole record, and base64 adds a third to its size.

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)
_window_decoder: msgspec.json.Decoder[WindowEvent] = msgspec.json.Decoder(WindowEvent)

E = TypeVar("E")


def encode_event(event: Event | WindowEvent) -> bytes:
    """Return the event's bytes; the same event always gives the same bytes.

    Raises EventError if a number in it is NaN or infinite, or if the record would be too large to be read back.
    """
    value = _encoder.encode(event)
    # msgspec writes NaN and infinities as null, which would come back as "no reward". So look where a null comes from.
    if b"null" in value and (where := _not_finite(msgspec.structs.asdict(event), type(event).__name__)):
        raise EventError(f"{where}: expected a finite number, got NaN or infinity; it was not written to the log")
    bytes_max = _bytes_max(event)
    if len(value) > bytes_max:
        group = isinstance(event, Generation | Reward)  # Only settings decide on the size of a group.
        remedy = "; lower generation.candidates or generation.tokens_max" if group else ""
        raise EventError(f"{type(event).__name__}: expected at most {bytes_max} bytes, got {len(value)}{remedy}")
    return value


def decode(value: bytes | None) -> Event:
    """Return the event in these bytes.

    Raises EventError for a tombstone, for bytes that are not JSON, for an unknown event or version, and for a known
    event whose fields have the wrong type. The message names the field.
    """
    return _decode(value, _decoder)


def decode_window(value: bytes | None) -> WindowEvent:
    """Return the derived event in these bytes. Raises the errors of `decode`."""
    return _decode(value, _window_decoder)


def _decode(value: bytes | None, decoder: msgspec.json.Decoder[E]) -> E:
    if not value:
        raise EventError("expected an event as JSON, got an empty record (a tombstone)")
    if len(value) > LETTER_BYTES_MAX:
        raise EventError(f"expected at most {RECORD_BYTES_MAX} bytes, got {len(value)}")
    try:
        event = decoder.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:  # ValidationError is a DecodeError.
        raise EventError(f"not an event: {error}") from error
    except RecursionError as error:
        raise EventError("not an event: nested too deeply") from error
    if len(value) > _bytes_max(event):
        raise EventError(f"expected at most {RECORD_BYTES_MAX} bytes, got {len(value)}")
    return event


def _bytes_max(event: object) -> int:
    return LETTER_BYTES_MAX if isinstance(event, DeadLetter) else RECORD_BYTES_MAX


def content_sha256(value: bytes) -> str:
    """Return the hash that identifies a record's content."""
    return hashlib.sha256(value).hexdigest()


def _not_finite(value: Any, where: str) -> str:
    if isinstance(value, float):
        return "" if math.isfinite(value) else where
    if isinstance(value, msgspec.Struct):
        value = msgspec.structs.asdict(value)
    if isinstance(value, dict):
        found = (_not_finite(item, f"{where}.{key}") for key, item in value.items())
    elif isinstance(value, tuple | list):
        found = (_not_finite(item, f"{where}[{index}]") for index, item in enumerate(value))
    else:
        return ""
    return next((path for path in found if path), "")
