"""Events from outside: UBI's queries and events become ours, and each other one is refused with the reason."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.serving.events import Refused, read_batch, read_event
from infra.serving.openapi import ROUTES, openapi
from streams.codec import decode, encode_event
from streams.traffic_events import Impression, Shown, UserAction

NOW = 1_764_000_000_000
CLICK: dict[str, Any] = {
    "application": "shop",
    "action_name": "click",
    "query_id": "i1",
    "client_id": "c1",
    "timestamp": "2025-11-24T16:00:00.000Z",
    "event_attributes": {"object": {"object_id": "p1"}, "position": {"ordinal": 2}},
}
QUERY: dict[str, Any] = {
    "application": "shop",
    "user_query": "red\u202e mug",
    "query_id": "i1",
    "client_id": "c1",
    "timestamp": 1_764_000_000_000,
    "query_response_hit_ids": ["p1", "p2", "p1"],
    "query_attributes": {"policy": "v-1", "action_propensity": 0.25},
}


def plain(client: str, session: str) -> tuple[str, str]:
    return client, session


def test_a_click_is_an_action_on_its_impression_and_the_same_click_has_the_same_id() -> None:
    event = read_event(CLICK, now_ms=NOW, pseudonyms=plain)
    assert isinstance(event, UserAction)
    assert (event.impression_id, event.kind, event.document_id, event.at_ms) == ("i1", "click", "p1", NOW)
    assert read_event(dict(CLICK), now_ms=NOW + 5, pseudonyms=plain) != read_event(
        {**CLICK, "query_id": "i2"}, now_ms=NOW, pseudonyms=plain
    )
    again = read_event(dict(CLICK), now_ms=NOW + 5, pseudonyms=plain)
    assert isinstance(again, UserAction)
    assert again.action_id == event.action_id
    named = read_event(
        {**CLICK, "event_attributes": {**CLICK["event_attributes"], "event_id": "e7"}}, now_ms=NOW, pseudonyms=plain
    )
    assert isinstance(named, UserAction)
    assert named.action_id == "e7"


@pytest.mark.parametrize("name", ["query_response_hit_ids", "query_response_object_ids"])
def test_a_query_is_an_impression_by_either_name_of_its_hits(name: str) -> None:
    event = read_event(
        {**{k: v for k, v in QUERY.items() if "response" not in k}, name: ["p1", "p2", "p1"]},
        now_ms=NOW,
        pseudonyms=plain,
    )
    assert isinstance(event, Impression)
    assert (event.query, event.policy, event.action_propensity) == ("red mug", "v-1", 0.25)
    assert event.shown == (Shown(document_id="p1", rank=1), Shown(document_id="p2", rank=2))


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (7, "expected an object, got int"),
        ({"a": 1}, "got neither"),
        ({**CLICK, "query_id": None}, "query_id: expected an id"),
        ({**CLICK, "query_id": "x\u202e"}, "query_id: expected an id"),
        ({**CLICK, "query_id": "x" * 600}, "query_id: expected an id"),
        ({**CLICK, "event_attributes": None}, "object_id: expected an id"),
        ({**CLICK, "action_name": "\u0000"}, "action_name: expected a name"),
        ({**CLICK, "timestamp": "yesterday"}, "timestamp: expected ISO 8601"),
        ({**CLICK, "timestamp": -5}, "timestamp: expected ISO 8601"),
        ({**QUERY, "user_query": "x" * 10_000}, "1 to 512 visible characters"),
        ({**QUERY, "user_query": "\u200b"}, "1 to 512 visible characters"),
        ({**QUERY, "query_response_hit_ids": "p1"}, "expected a list"),
        ({**QUERY, "query_response_hit_ids": ["p1", None]}, "expected an id"),
        ({**QUERY, "query_attributes": {"action_propensity": 0}}, "above 0, at most 1"),
        ({**QUERY, "query_attributes": {"action_propensity": 1.5}}, "above 0, at most 1"),
        ({**QUERY, "query_attributes": {"action_propensity": "1"}}, "above 0, at most 1"),
    ],
)
def test_an_event_that_cannot_be_taken_is_refused_with_the_reason(event: Any, said: str) -> None:
    with pytest.raises(Refused, match=said):
        read_event(event, now_ms=NOW, pseudonyms=plain)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
FIELDS = st.fixed_dictionaries({}, optional=dict.fromkeys({**CLICK, **QUERY}, JSON))


@given(JSON | FIELDS)
def test_whatever_comes_is_taken_as_an_event_that_can_be_written_or_refused(event: Any) -> None:
    try:
        found = read_event(event, now_ms=NOW, pseudonyms=plain)
    except Refused:
        return
    assert decode(encode_event(found)) == found


@pytest.mark.parametrize(("body", "count"), [(b"[]", 0), (b'{"a": 1}', 1), (b"[1, 2]", 2), (b'{"a":1}\n{"a":2}\n', 2)])
def test_one_event_a_list_and_lines_are_batches(body: bytes, count: int) -> None:
    assert len(read_batch(body)) == count


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff\xfe", b'{"a": "\xff"}', b'{"\xff": 1}\n{"a": "\xff"}', b"[" * 100_000]
)
def test_a_body_that_is_no_json_is_refused(body: bytes) -> None:
    with pytest.raises(Refused, match="expected JSON"):
        read_batch(body)


def test_every_route_is_described_with_its_parameters_and_answers() -> None:
    described = openapi()
    assert set(described["paths"]) == {route.path for route in ROUTES}
    for route in ROUTES:
        for method in route.methods:
            operation = described["paths"][route.path][method.lower()]
            assert operation["summary"].endswith(".")
            assert {"200", "400", "503"} <= set(operation["responses"])
    names = [operation["operationId"] for path in described["paths"].values() for operation in path.values()]
    assert len(names) == len(set(names))
