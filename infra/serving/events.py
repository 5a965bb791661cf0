"""Events from outside as ours: UBI 1.3 queries become impressions, UBI events become actions; others are refused.

A query carries `user_query`, its id, and the ids of the documents that were shown (`query_response_hit_ids` or, as the
OpenSearch plugin writes, `query_response_object_ids`). An event carries `action_name`, the id of its query, and the
document as `event_attributes.object.object_id`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import msgspec

from streams.inputs.text import QUERY_CHARACTERS_MAX, clean_text, visible_text
from streams.inputs.values import read_id, read_time_ms
from streams.traffic_events import Impression, Shown, UserAction

PseudonymsOf = Callable[[str, str], tuple[str, str]]
"""Gives the pseudonyms of a client and of a session."""

NAME_CHARACTERS_MAX = 100
HITS_MAX = 1_000
CHOICES_MAX = 100
CHOICE = frozenset({"policy", "action_propensity", "offered"})
HIT_IDS = ("query_response_hit_ids", "query_response_object_ids")


class Refused(ValueError):
    """An event that cannot be taken; the text says what was expected and what came."""


def read_event(
    event: Any, *, now_ms: int, pseudonyms: PseudonymsOf, from_page: bool = False
) -> Impression | UserAction:
    """Return one event, without the ids of client and session. Raises Refused, and what `pseudonyms` raises.

    now_ms: the time of an event that gives none. from_page: it comes from somebody's browser, so it may say what was
    shown and clicked, and not which version was drawn with which probability: promotion believes that.
    """
    if not isinstance(event, dict):
        raise Refused(f"expected an object, got {type(event).__name__}")
    if "action_name" in event:
        return _action(event, now_ms, pseudonyms)
    if "user_query" in event:
        if from_page and (claimed := sorted(CHOICE & set(_object(event.get("query_attributes"))))):
            raise Refused(
                f"query_attributes.{claimed[0]}: expected none from a page, because anybody may write it there. Send "
                "the search from your own server, with serve.token"
            )
        return _impression(event, now_ms, pseudonyms)
    raise Refused("expected an event with action_name or a query with user_query, got neither")


def read_batch(body: bytes) -> list[Any]:
    """Return the events of a request: one object, a list of them, or JSON lines. Raises Refused."""
    if not body.strip():
        raise Refused("expected JSON: an event, a list of events, or one a line; got an empty body")
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        try:
            return list(msgspec.json.Decoder().decode_lines(body))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Refused(f"expected JSON: an event, a list of events, or one a line; got {error}") from None
    except RecursionError:
        raise Refused("expected JSON, got one that is nested too deeply") from None
    return found if isinstance(found, list) else [found]


def _action(event: dict[str, Any], now_ms: int, pseudonyms: PseudonymsOf) -> UserAction:
    attributes = _object(event.get("event_attributes"))
    kind = _name(event.get("action_name"), "action_name")
    impression_id = _id(event.get("query_id"), "query_id")
    document_id = _id(_object(attributes.get("object")).get("object_id"), "event_attributes.object.object_id")
    at_ms = _time(event.get("timestamp"), now_ms)
    given = read_id(attributes.get("event_id", event.get("event_id")))
    if not given:
        # Without an id of its own, an event that is sent again is told by its content.
        client, _ = pseudonyms(_visitor(event.get("client_id")), "")
        said = [impression_id, kind, document_id, event.get("timestamp"), client]
        given = hashlib.sha256(msgspec.json.encode(said)).hexdigest()[:32]
    return UserAction(
        action_id=given,
        impression_id=impression_id,
        kind=kind,
        document_id=document_id,
        at_ms=at_ms,
        made_at_ms=now_ms,
    )


def _impression(event: dict[str, Any], now_ms: int, pseudonyms: PseudonymsOf) -> Impression:
    query = event.get("user_query")
    text = visible_text(query) if isinstance(query, str) and len(query) <= 16 * QUERY_CHARACTERS_MAX else ""
    if not text or len(text) > QUERY_CHARACTERS_MAX:
        raise Refused(f"user_query: expected 1 to {QUERY_CHARACTERS_MAX} visible characters, got another text or none")
    hits: Any = next((event[name] for name in HIT_IDS if event.get(name) is not None), [])
    if not isinstance(hits, list) or len(hits) > HITS_MAX:
        raise Refused(f"{HIT_IDS[0]}: expected a list of at most {HITS_MAX} document ids")
    ids = [_id(hit, HIT_IDS[0]) for hit in hits]
    attributes = _object(event.get("query_attributes"))
    propensity = attributes.get("action_propensity")
    if propensity is not None and not (isinstance(propensity, int | float) and 0 < propensity <= 1):
        raise Refused(f"query_attributes.action_propensity: expected a number above 0, at most 1, got {propensity!r}")
    offered = _object(attributes.get("offered"))
    if len(offered) > CHOICES_MAX or not all(
        isinstance(each, int | float) and 0 < each <= 1 for each in offered.values()
    ):
        raise Refused(
            f"query_attributes.offered: expected at most {CHOICES_MAX} numbers above 0, at most 1, got others"
        )
    query_id = _id(event.get("query_id"), "query_id")
    at_ms = _time(event.get("timestamp"), now_ms)
    client, session = pseudonyms(_visitor(event.get("client_id")), _visitor(event.get("session_id")))
    return Impression(
        impression_id=query_id,
        query_id=query_id,
        query=text,
        application=_visitor(event.get("application")),
        client=client,
        session=session,
        shown=tuple(Shown(document_id=name, rank=rank) for rank, name in enumerate(dict.fromkeys(ids), start=1)),
        at_ms=at_ms,
        policy=_visitor(attributes.get("policy")),
        action_propensity=None if propensity is None else float(propensity),
        offered={_visitor(name): float(each) for name, each in offered.items()},
        made_at_ms=now_ms,
    )


def _id(value: object, name: str) -> str:
    found = read_id(value)
    if found is None:
        raise Refused(f"{name}: expected an id of 1 to 512 visible bytes, got {str(value)[:60]!r}")
    return found


def _name(value: object, name: str) -> str:
    found = clean_text(value, characters_max=NAME_CHARACTERS_MAX) if isinstance(value, str) else ""
    if not found:
        raise Refused(f"{name}: expected a name, got {str(value)[:60]!r}")
    return found


def _time(value: object, now_ms: int) -> int:
    if value is None:
        return now_ms
    found = read_time_ms(value)
    if found is None:
        raise Refused(f"timestamp: expected ISO 8601 or milliseconds since 1970, got {str(value)[:60]!r}")
    return found


def _visitor(value: object) -> str:
    return clean_text(value, characters_max=NAME_CHARACTERS_MAX) if isinstance(value, str) else (read_id(value) or "")


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
