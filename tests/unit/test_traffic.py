"""Traffic from outside: each application's habits are understood, and what cannot be used is counted, not guessed."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from infra.traffic.sessions import SessionSummary, read_sessions
from infra.traffic.ubi import ApplicationSummary, read_ubi
from streams.errors import SettingsError
from streams.events import Action, Feedback, Shown


def event(
    query_id: str, kind: str, document: str | None, ordinal: int | None, at: object, *, application: str = "a"
) -> dict[str, object]:
    attributes: dict[str, object] = {"object": {"object_id": document}} if document else {}
    if ordinal is not None:
        attributes["position"] = {"ordinal": ordinal}
    return {
        "application": application,
        "query_id": query_id,
        "action_name": kind,
        "timestamp": at,
        "event_attributes": attributes,
        "client_id": "c",
        "session_id": "s",
    }


def query(query_id: str, text: str, *, application: str = "a") -> dict[str, object]:
    return {
        "application": application,
        "query_id": query_id,
        "user_query": text,
        "client_id": "c",
        "timestamp": "2024-12-10T00:00:00Z",
    }


def read(
    folder: Path, queries: list[dict[str, object]], events: list[dict[str, object]], application: str | None = None
) -> tuple[list[Feedback], list[ApplicationSummary]]:
    for name, rows in (("queries", queries), ("events", events)):
        (folder / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return read_ubi(folder / "queries", folder / "events", application=application)


def test_positions_count_from_one_whatever_the_application_begins_with(tmp_path: Path) -> None:
    for base in (0, 1):
        events = [
            event("q", "impression", "d1", base, 10**12),
            event("q", "impression", "d2", base + 1, 10**12),
            event("q", "click", "d2", base + 1, 10**12 + 7),
        ]
        ((feedback,), (summary,)) = read(tmp_path, [query("q", "red shoe")], events)
        assert feedback.shown == (Shown(document_id="d1", rank=1), Shown(document_id="d2", rank=2))
        assert feedback.actions == (Action(kind="click", document_id="d2", rank=2, at_ms=10**12 + 7),)
        assert (summary.first_ordinal, summary.orphans) == (base, 0)


def test_times_are_iso_text_or_milliseconds(tmp_path: Path) -> None:
    events = [event("q", "click", "d", 1, at) for at in ("2001-09-09T01:46:40.000Z", 10**12, 10**9)]
    ((feedback,), _) = read(tmp_path, [query("q", "x")], events)
    assert {action.at_ms for action in feedback.actions} == {10**12}
    assert feedback.at_ms == 1_733_788_800_000
    (_, (summary,)) = read(
        tmp_path, [query("q", "x")], [event("q", "click", "d", 1, at) for at in ("soon", None, True, 1e300, -(10**18))]
    )
    assert (summary.actions, summary.unreadable) == (0, 5)


def test_a_position_with_more_clicks_than_impressions_is_left_out_and_said(tmp_path: Path) -> None:
    events = [
        event("q", "impression", "d1", 1, 10**12),
        event("q", "impression", "d2", 2, 10**12),
        event("q", "click", "d1", 1, 10**12),
        event("q", "click", "d9", 1, 10**12),
        event("q", "click", "d2", 2, 10**12),
    ]
    ((feedback,), (summary,)) = read(tmp_path, [query("q", "x")], events)
    assert (summary.positions_rejected, summary.rejected) == ((1,), 3)
    assert [shown.rank for shown in feedback.shown] == [2]
    assert [action.document_id for action in feedback.actions] == ["d2"]


def test_orphans_are_kept_and_counted_and_searches_without_a_text_are_not(tmp_path: Path) -> None:
    events = [
        event("q", "impression", "d1", 1, 10**12),
        event("q", "add_to_cart", "d7", 3, 10**12),
        event("unknown", "click", "d1", 1, 10**12),
        event("q", "type_filter", None, None, 10**12),
        {**event("late", "click", "d1", None, 10**12), "user_query": "said by the event"},
    ]
    feedback, (summary,) = read(tmp_path, [query("q", "x"), query("q", "x again")], events)
    assert {each.query for each in feedback} == {"x", "said by the event"}
    assert (summary.orphans, summary.without_query, summary.other, summary.repeated) == (2, 1, 1, 1)


def test_one_application_is_read_without_the_others(tmp_path: Path) -> None:
    queries = [query("q", "x"), query("q", "y", application="b")]
    feedback, summaries = read(tmp_path, queries, [], application="b")
    assert [each.query for each in feedback] == ["y"] and len(summaries) == 1
    with pytest.raises(SettingsError, match="--application: expected one of a, b, got 'c'"):
        read(tmp_path, queries, [], application="c")


@pytest.mark.parametrize("line", ["{", "[]", "\x00", '{"a": 1', "[" * 100_000, '{"a": "\\ud800"}', '{"a": NaN}'])
def test_a_line_that_is_no_object_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "queries").write_text(f"{json.dumps(query('q', 'x'))}\n{line}\n")
    (tmp_path / "events").write_text("")
    with pytest.raises(SettingsError, match="queries:2: expected"):
        read_ubi(tmp_path / "queries", tmp_path / "events")


def test_ill_typed_fields_are_counted_and_crash_nothing(tmp_path: Path) -> None:
    odd: list[object] = [None, 1, "x", [], {}, -1, 1.5, True]
    events: list[dict[str, object]] = []
    for value in odd:
        for field in ("query_id", "action_name", "timestamp", "event_attributes", "client_id", "user_query"):
            events.append({**event("q", "click", "d", 1, 10**12), field: value})
        for field in ("object", "position"):
            events.append({**event("q", "click", "d", 1, 10**12), "event_attributes": {field: value}})
        events.append({**event("q", "click", "d", 1, 10**12), "event_attributes": {"position": {"ordinal": value}}})
    feedback, (summary,) = read(tmp_path, [query("q", "x")], events)
    kept = sum(len(each.actions) for each in feedback)
    assert kept + summary.without_query + summary.other + summary.unreadable + summary.rejected == len(events)


def sessions(folder: Path, *rows: str, header: str = "session_id,query,rank0,doc_id,clicked") -> Path:
    path = folder / "sessions.csv.gz"
    path.write_bytes(gzip.compress("\n".join([header, *rows, ""]).encode()))
    return path


def test_sessions_become_feedback_and_unknown_products_are_counted_and_kept(tmp_path: Path) -> None:
    path = sessions(tmp_path, "1,blue ray,0,d1,1", "1,blue ray,1,d9,0", '2,"a, b",0,d9,1')
    summary = SessionSummary()
    first, second = read_sessions(path, summary, application="shop", known={"d1"})
    assert first.shown == (Shown(document_id="d1", rank=1), Shown(document_id="d9", rank=2))
    assert first.actions == (Action(kind="click", document_id="d1", rank=1),)
    assert (second.query, second.feedback_id) == ("a, b", "shop:2:a, b")
    assert summary.as_dict() == {"sessions": 2, "rows": 3, "clicks": 2, "unknown": 2}


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        (["1,q,0,d,1"], "a,b", ":1: expected the columns"),
        (["1,q,x,d,1"], None, ":2: expected"),
        (["1,q,0,d,1", "1,q,1,d"], None, ":3: expected"),
        (["1,q,0,d,yes"], None, ":2: expected .* clicked to be 0 or 1"),
        (["1,q,0,d,1", "2,q,0,d,1", "1,q,1,d,0"], None, "do not stand together"),
    ],
)
def test_a_bad_session_file_is_named_with_its_line(
    tmp_path: Path, rows: list[str], header: str | None, message: str
) -> None:
    path = sessions(tmp_path, *rows, **({"header": header} if header else {}))
    with pytest.raises(SettingsError, match=message):
        list(read_sessions(path, SessionSummary(), application="shop"))


def test_missing_and_torn_files_are_errors(tmp_path: Path) -> None:
    path = sessions(tmp_path, *(f"{n},q,0,d{n},1" for n in range(2000)))
    path.write_bytes(path.read_bytes()[:-40])
    for broken in (path, tmp_path / "nothing"):
        with pytest.raises(SettingsError, match="expected CSV"):
            list(read_sessions(broken, SessionSummary(), application="shop"))
        with pytest.raises(SettingsError, match="expected"):
            read_ubi(broken, broken)
