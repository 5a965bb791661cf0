"""Impressions and actions as User Behavior Insights (UBI 1.3): rows of queries and of events.

The published schema of events rejects its own common names, because "click" fits both branches of a `oneOf`. The rows
written here pass the schema with `anyOf` in its place. UBI has no field for a policy or a propensity: ours stand under
`query_attributes`. An id that is longer than UBI allows is replaced by a hash, and stands whole among the attributes.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any

from streams.traffic_events import Impression, UserAction

Row = dict[str, Any]

NAME_MAX = 100
OBJECT_MAX = 256


def query_row(impression: Impression) -> Row:
    """Return an impression as a query."""
    attributes: Row = {"policy": impression.policy}
    if impression.action_propensity is not None:
        attributes["action_propensity"] = impression.action_propensity
    if impression.offered:
        attributes["offered"] = impression.offered
    if impression.index:
        attributes["index"] = impression.index
    if len(impression.impression_id) > NAME_MAX:
        attributes["impression_id"] = impression.impression_id
    row: Row = {
        "query_id": _short(impression.impression_id, NAME_MAX),
        "user_query": impression.query,
        "timestamp": _time(impression.at_ms),
        "query_response_hit_ids": [each.document_id for each in impression.shown],
        "query_attributes": attributes,
    }
    return row | _named(application=impression.application, client_id=impression.client)


def event_row(action: UserAction, impression: Impression | None) -> Row:
    """Return an action as an event. impression: gives application, client and position; None if it is not known.

    The position counts from 1; 0 stands for a document that was not shown, because UBI asks for a position.
    """
    rank = 0
    if impression is not None:
        rank = next((each.rank for each in impression.shown if each.document_id == action.document_id), 0)
    attributes: Row = {
        "event_id": action.action_id,
        "object": {"object_id": _short(action.document_id, OBJECT_MAX)},
        "position": {"ordinal": rank},
    }
    if len(action.document_id) > OBJECT_MAX:
        attributes["document_id"] = action.document_id
    if len(action.impression_id) > NAME_MAX:
        attributes["impression_id"] = action.impression_id
    row: Row = {
        "action_name": action.kind[:NAME_MAX],
        "query_id": _short(action.impression_id, NAME_MAX),
        "timestamp": _time(action.at_ms),
        "event_attributes": attributes,
    }
    if impression is None:
        return row
    return row | _named(application=impression.application, client_id=impression.client, session_id=impression.session)


def _named(**names: str) -> Row:
    return {name: value[:NAME_MAX] for name, value in names.items() if value}


def _short(value: str, longest: int) -> str:
    return value if len(value) <= longest else hashlib.sha256(value.encode()).hexdigest()


def _time(at_ms: int) -> str:
    moment = datetime.fromtimestamp(at_ms / 1000, tz=UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
