"""Records as far as they are stored: each with its event, without what no column holds, or with the reason for none."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from streams.codec import RECORD_BYTES_MAX, decode
from streams.delivery import Received
from streams.errors import EventError
from streams.events import (
    DeadLetter,
    Feedback,
    Generation,
    Hit,
    Outcome,
    PolicyRef,
    PolicyVersion,
    Position,
    Request,
    Reward,
    Update,
)


class StoredCompletion(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What `outcomes` keep of a `Completion`: its numbers stand in `candidates`, which are read from the generation."""

    text: str


class StoredRequest(msgspec.Struct, frozen=True, kw_only=True, tag="request/1", tag_field="event"):
    """What `rewards` keep of a `Request`."""

    request_id: str
    run: str
    query_id: str
    query: str
    split: str = "train"


class StoredGeneration(msgspec.Struct, frozen=True, kw_only=True, tag="generation/1", tag_field="event"):
    """What `rewards` keep of a `Generation`."""

    request: StoredRequest
    policy: PolicyRef
    completions: tuple[StoredCompletion, ...]


class StoredReward(msgspec.Struct, frozen=True, kw_only=True, tag="reward/1", tag_field="event"):
    """A `Reward` without what no column holds: half of its bytes are tokens, which only the learner reads.

    Decoding it takes half the time of the whole. The record itself is archived byte for byte.
    """

    group_id: str
    generation: StoredGeneration
    source: Position
    content_sha256: str
    outcomes: tuple[Outcome, ...]
    index: str
    relevance_model: str
    reward_sha256: str
    raw_hits: tuple[Hit, ...] = ()
    search_body: str = ""
    made_at_ms: int = 0


Stored = Request | Generation | StoredReward | Update | PolicyVersion | Feedback | DeadLetter

_stored_decoder: msgspec.json.Decoder[Stored] = msgspec.json.Decoder(Stored)


class Entry(NamedTuple):
    """A record and its event, or the reason why it has none."""

    record: Received
    event: Stored | Reward | None
    error: str = ""


def read_entry(record: Received) -> Entry:
    """Decode a record as far as it is stored; never raises for what stands in it."""
    if record.value and len(record.value) <= RECORD_BYTES_MAX:
        try:
            return Entry(record, _stored_decoder.decode(record.value))
        except (msgspec.DecodeError, ValueError, RecursionError):
            pass  # The codec below says what is wrong.
    try:
        return Entry(record, decode(record.value))
    except EventError as error:
        return Entry(record, None, str(error))


def dead_letter(entry: Entry) -> DeadLetter:
    """Return the dead letter of a record that the sink could not decode."""
    return DeadLetter(
        source=entry.record.position,
        key=entry.record.key,
        value=entry.record.value,
        headers=entry.record.headers,
        stage="sink",
        error=entry.error,
        attempts=1,
        made_at_ms=entry.record.timestamp_ms,  # The record's own time: a rebuilt ledger is the same ledger.
    )
