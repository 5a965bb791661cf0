"""UBI out: rows that the schema takes, with `anyOf` for its `oneOf`, and that come back as the same events."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from infra.serving.events import read_event
from search_env.traffic.ubi_export import event_row, query_row
from streams.traffic_events import Impression, Shown, UserAction

NOW = 1_764_000_000_123
# The rules of UBI 1.3.0 that a row can break: longest texts, and what is required.
LONGEST = {"application": 100, "action_name": 100, "query_id": 100, "session_id": 100, "client_id": 100}


def plain(client: str, session: str) -> tuple[str, str]:
    return client, session


def impression(**changes: Any) -> Impression:
    given: dict[str, Any] = {
        "impression_id": "i1",
        "query_id": "i1",
        "query": "red mug",
        "application": "shop",
        "client": "c1",
        "shown": (Shown(document_id="p1", rank=1), Shown(document_id="p2", rank=2)),
        "at_ms": NOW,
        "policy": "v-1",
        "action_propensity": 0.25,
        "offered": {"": 0.75, "v-1": 0.25},
        "index": "shop-1",
    }
    return Impression(**(given | changes))


def action(**changes: Any) -> UserAction:
    given = {"action_id": "a1", "impression_id": "i1", "kind": "click", "document_id": "p2", "at_ms": NOW + 5_000}
    return UserAction(**(given | changes))


@pytest.mark.parametrize("seen", [impression(), impression(impression_id="x" * 400, client="c" * 90, offered={})])
def test_a_query_keeps_the_schema_and_comes_back(seen: Impression) -> None:
    row = query_row(seen)
    assert all(len(row[name]) <= longest for name, longest in LONGEST.items() if name in row)
    assert datetime.fromisoformat(row["timestamp"]).timestamp() * 1000 == pytest.approx(NOW)
    assert all(isinstance(each, str) for each in row["query_response_hit_ids"])
    back = read_event(row, now_ms=NOW, pseudonyms=plain)
    assert isinstance(back, Impression)
    for name in ("query", "application", "client", "shown", "at_ms", "policy", "action_propensity"):
        assert getattr(back, name) == getattr(seen, name)
    assert back.impression_id == seen.impression_id or row["query_attributes"]["impression_id"] == seen.impression_id


@pytest.mark.parametrize(
    ("done", "seen", "ordinal"),
    [
        (action(), impression(), 2),
        (action(document_id="elsewhere"), impression(), 0),
        (action(), None, 0),
        (action(document_id="d" * 400, impression_id="i" * 300), None, 0),
    ],
)
def test_an_event_keeps_the_schema_and_comes_back(done: UserAction, seen: Impression | None, ordinal: int) -> None:
    row = event_row(done, seen)
    assert all(len(row[name]) <= longest for name, longest in LONGEST.items() if name in row)
    attributes = row["event_attributes"]
    assert (attributes["position"], len(attributes["object"]["object_id"]) <= 256) == ({"ordinal": ordinal}, True)
    back = read_event(row, now_ms=NOW, pseudonyms=plain)
    assert isinstance(back, UserAction)
    assert (back.action_id, back.kind, back.at_ms) == (done.action_id, done.kind, done.at_ms)
    assert back.document_id == done.document_id or attributes["document_id"] == done.document_id
