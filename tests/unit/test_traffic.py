"""Traffic from outside: each application's habits are understood, and what cannot be used is counted, not guessed."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path

import pytest

from search_env.catalogue.corpora import load_queries
from search_env.traffic.limits import SEARCH_ROWS_MAX
from search_env.traffic.sessions import WITHOUT, SessionFile, SessionSummary, read_sessions
from search_env.traffic.ubi import read_ubi
from search_env.traffic.ubi_application import ApplicationSummary
from streams.codec import RECORD_BYTES_MAX, encode_event
from streams.errors import InputError, SettingsError
from streams.inputs.values import read_time_ms
from streams.traffic_events import Action, Feedback, Shown


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
def test_a_line_that_is_no_object_is_counted_and_a_file_of_such_lines_is_refused(tmp_path: Path, line: str) -> None:
    good = json.dumps(query("q", "x"))
    (tmp_path / "queries").write_text(f"{good}\n{line}\n")
    (tmp_path / "events").write_text("")
    feedback, (lines, summary) = read_ubi(tmp_path / "queries", tmp_path / "events")
    assert [each.query_id for each in feedback] == ["q"] and summary.query_rows == 1
    assert (lines.application, lines.query_rows, lines.queries_unreadable) == ("", 1, 1)
    (tmp_path / "queries").write_text(f"{good}\n{line}\n{line}\n")
    with pytest.raises(InputError, match=r"2 of 3 cannot be read: 2 unreadable \(first, line 2: expected"):
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
    assert_adds_up(summary)


def assert_adds_up(summary: ApplicationSummary) -> None:
    """Check that every row was counted once, under what became of it."""
    used = summary.searches - summary.searches_of_events
    assert summary.query_rows == used + (
        summary.repeated + summary.queries_without_id + summary.queries_without_text + summary.queries_unreadable
    )
    assert summary.event_rows == summary.shown - summary.shown_by_queries + summary.shown_again + summary.actions + (
        summary.without_query + summary.other + summary.rejected + summary.unreadable + summary.beyond
    )


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
    counts = {"sessions": 2, "rows": 3, "clicks": 2, "unknown": 2, "rows_read": 3, "texts_cut": 0}
    assert summary.as_dict() == counts | {"left_out": dict.fromkeys(WITHOUT, 0)}


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        (["1,q,0,d,1"], "a,b", "line 1: expected the columns"),
        (["1,q,x,d,1"], None, "line 2: expected rank0"),
        (["1,q,0,d,1", "1,q,-1,d,1"], None, "line 3: expected rank0 .* counts from 0"),
        (["1,q,0,d,1", "1,q,1.5,d,1"], None, "line 3: expected rank0"),
        (["1,q,0,d,1", f"1,q,{'9' * 5000},d,1"], None, "line 3: expected rank0"),
        (["1,q,0,d,yes"], None, "line 2: expected clicked to be 0 or 1"),
        (["1,q,1,d", "1,q,1,d"], None, "2 of 2 cannot be read"),
        (
            [",q,0,d,1", "1,,0,d,1", "1,q,0,,1"],
            None,
            "none of its 3 rows can be used: 1 without_session .first, line 2",
        ),
        ([], None, "none of its 0 rows can be used"),
        (["1,q,0,d,1", "2,q,0,d,1", "1,q,1,d,0"], None, "are not adjacent"),
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
    for broken, said in ((path, "damaged gzip"), (tmp_path / "nothing", "no such .* file")):
        with pytest.raises(InputError, match=said):
            list(read_sessions(broken, SessionSummary(), application="shop"))
        with pytest.raises(InputError, match=said):
            read_ubi(broken, broken)


def test_a_bad_session_row_is_counted_and_the_rest_is_read(tmp_path: Path) -> None:
    rows = [
        "1,q,0,d,1", "1,q,1,d", "1,q,1,d2,0", "1,q,1,d3,0", ",q,0,d,0", "2,\u200b,0,d,0", "2,q,0,,1", "3,q,0,d,0",
        '4,"q,0,d,0', "5,q,0,d,0", '6,"two ""words"" of\n6 lines",0,d,1', '7,5" tv,0,d,0',
    ]  # fmt: skip
    summary = SessionSummary()
    feedback = list(read_sessions(sessions(tmp_path, *rows), summary, application="shop"))
    assert [each.session for each in feedback] == ["1", "3", "5", "6", "7"]
    assert [each.query for each in feedback][3:] == ['two "words" of 6 lines', '5" tv']
    left_out = {"without_session": 1, "without_query": 1, "without_document": 1, "repeated": 1, "unreadable": 2}
    assert summary.left_out.counts == left_out
    assert summary.rows_read == summary.rows + sum(left_out.values()) == len(rows)
    assert summary.left_out.said["unreadable"].startswith("line 3: expected 5 columns")


def test_a_line_that_is_no_utf8_is_counted_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "sessions.csv"
    path.write_bytes(b"session_id,query,rank0,doc_id,clicked\n1,caf\xe9,0,d,1\n2,q,0,d,1\n")
    summary = SessionSummary()
    assert len(list(read_sessions(path, summary, application="shop"))) == 1
    assert summary.left_out.told().startswith("1 unreadable (first, line 2: expected UTF-8 text, got byte 0xe9")


def test_sessions_with_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    path = tmp_path / "sessions.csv"
    path.write_bytes(b"\xef\xbb\xbfsession_id,query,rank0,doc_id,clicked\r\ns1,red mug,0,p0,1\r\n")
    (feedback,) = read_sessions(path, SessionSummary(), application="sessions")
    assert (feedback.session, feedback.query, feedback.shown[0].rank) == ("s1", "red mug", 1)


def test_ids_of_two_searches_never_meet(tmp_path: Path) -> None:
    path = sessions(
        tmp_path, "u1:x,y,0,d,1", "u1,x:y,0,d,1", "u1,x%3Ay,0,d,1", f"u2,{'y' * 600}1,0,d,0", f"u2,{'y' * 600}2,0,d,0"
    )
    ids = [each.feedback_id for each in read_sessions(path, SessionSummary(), application="sessions")]
    assert len(set(ids)) == 5
    assert all(len(each.encode()) <= 512 for each in ids)
    ubi, _ = read(tmp_path, [query("b:c", "x"), query("c", "y", application="a:b")], [])
    assert len({each.feedback_id for each in ubi}) == 2
    plain, _ = read(tmp_path, [query("q1", "x")], [])
    assert plain[0].feedback_id == "a:q1"


def test_a_file_that_grows_between_two_readings_is_refused(tmp_path: Path) -> None:
    path = sessions(tmp_path, "1,q,0,d,1")
    file = SessionFile(path, application="shop", known=None)
    assert file.read_through().sessions == 1
    sessions(tmp_path, "1,q,0,d,1", "2,q,0,d,1")
    with pytest.raises(InputError, match="changed while it was read"):
        list(file.read_again())


@pytest.mark.parametrize("absent", [None, "", "  ", [], {}, 1.5, True, "a\u200bb", "x" * 600])
def test_a_search_without_an_id_is_no_search_and_joins_no_event(tmp_path: Path, absent: object) -> None:
    unnamed = [{**query("q", f"text {number}"), "query_id": absent} for number in range(3)]
    events = [
        event("q1", "impression", "d1", 1, 10**12),
        event("q1", "click", "d1", 1, 10**12),
        *({**event("q", kind, "d2", rank, 10**12), "query_id": absent, "user_query": "red"}
          for kind, rank in (("click", 1), ("click", 2), ("impression", 4))),
    ]  # fmt: skip
    (feedback,), (summary,) = read(tmp_path, [*unnamed, query("q1", "red mug")], events)
    assert (feedback.query_id, len(feedback.shown), len(feedback.actions)) == ("q1", 1, 1)
    assert (summary.queries_without_id, summary.repeated, summary.without_query) == (3, 0, 3)
    assert summary.positions_rejected == ()
    assert_adds_up(summary)


def test_copies_of_a_row_without_an_id_are_repetitions(tmp_path: Path) -> None:
    bulk = [{"index": {"_index": "ubi"}}, query("q1", "red mug"), {"index": {"_index": "ubi"}}, query("q2", "lamp")]
    events = [
        {"index": {}},
        event("q1", "impression", "d", 1, 10**12),
        {"index": {}},
        event("q2", "click", "d", 1, 10**12),
    ]
    feedback, (actions, summary) = read(tmp_path, bulk, events)
    assert [each.query_id for each in feedback] == ["q1", "q2"]
    assert (actions.repeated, actions.queries_without_id, actions.unreadable) == (1, 1, 2)
    for each in (actions, summary):
        assert_adds_up(each)


def test_searches_without_a_text_are_counted_unless_an_event_says_it(tmp_path: Path) -> None:
    rows = [
        {**query(f"q{number}", ""), "user_query": text} for number, text in enumerate(["", None, "  ", 5, "\u200b"])
    ]
    said = {**event("q1", "click", "d", None, 10**12), "user_query": "lamp"}
    feedback, (summary,) = read(tmp_path, [*rows, query("q9", "red")], [said])
    assert [each.query for each in feedback] == ["lamp", "red"]
    assert (summary.queries_without_text, summary.searches) == (4, 2)
    assert_adds_up(summary)


def test_the_first_row_with_a_text_counts(tmp_path: Path) -> None:
    rows = [query("q1", ""), query("q1", "red"), query("q1", "blue")]
    (feedback,), (summary,) = read(tmp_path, rows, [])
    assert (feedback.query, summary.repeated, summary.queries_without_text) == ("red", 2, 0)
    assert_adds_up(summary)


def test_traffic_texts_are_cleaned_and_cut_as_those_of_a_query_file(tmp_path: Path) -> None:
    texts = ["red\u202emug\u200b\u0007 \u0000x", "line\nbreak\ttab", "cafe\u0301", "word " * 500]
    rows = [query(f"q{number}", text) for number, text in enumerate(texts)]
    feedback, (summary,) = read(tmp_path, rows, [])
    asked = [{"_id": f"q{number}", "text": text} for number, text in enumerate(texts)]
    (tmp_path / "file").write_text("".join(f"{json.dumps(row)}\n" for row in asked))
    told: list[str] = []
    assert {each.query_id: each.query for each in feedback} == {
        each.id: each.text for each in load_queries(tmp_path / "file", tell=told.append)
    }
    assert [each.query for each in feedback][:3] == ["redmug x", "line break tab", "caf\u00e9"]
    assert summary.texts_cut == 1 and "1 query was cut at 512 characters (the first: query 'q3')" in told[0]


@pytest.mark.parametrize(
    ("written", "at_ms"),
    [
        ("1724081170914", 1724081170914),
        ("1724081170", 1724081170000),
        ("1724081170.914", 1724081170914),
        (1724081170914.0, 1724081170914),
        ("2025-03-01T10:00:00", 1740823200000),
        (" 2025-03-01T10:00:00Z ", 1740823200000),
        ("2025-03-01T11:00:00+01:00", 1740823200000),
        ("2025-03-01", 1740787200000),
        ("20250301", 1740787200000),
        ("03/01/2025 10:00:30 AM", None),
        ("17240811709", None),
        ("20240811709", None),
        ("1724081170914000", None),
        ("1724-08-11T09:00:00Z", None),
        ("9999-12-31T23:59:59Z", None),
        ("0001-01-01T00:00:00+14:00", None),
        (20250301, None),
        (0, None),
        ("", None),
        ({}, None),
        (10**400, None),
    ],
)
@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Kolkata"])
def test_a_time_is_the_same_in_every_zone_of_the_machine_or_none(
    monkeypatch: pytest.MonkeyPatch, written: object, at_ms: int | None, zone: str
) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert read_time_ms(written) == at_ms
    finally:
        monkeypatch.undo()
        time.tzset()


def test_one_bad_time_is_counted_and_stands_last(tmp_path: Path) -> None:
    rows = [query(f"q{number}", "x") | {"timestamp": f"2025-03-01T10:00:{number}0Z"} for number in range(3)]
    rows.insert(0, query("bad", "x") | {"timestamp": "03/01/2025 10:00:30 AM"})
    feedback, (summary,) = read(tmp_path, rows, [])
    assert [each.query_id for each in feedback] == ["q0", "q1", "q2", "bad"]
    assert [each.at_ms for each in feedback] == [1740823200000, 1740823210000, 1740823220000, 0]
    assert summary.queries_without_time == 1


def test_a_position_zero_where_impressions_begin_with_one_is_no_rank(tmp_path: Path) -> None:
    events = [event("q", "impression", "d1", 1, 10**12), event("q", "add_to_cart", "d1", 0, 10**12)]
    (feedback,), (summary,) = read(tmp_path, [query("q", "x")], events)
    assert (feedback.actions, summary.unreadable) == ((), 1)
    assert_adds_up(summary)


def test_a_search_of_more_rows_than_a_record_holds_is_cut_and_told(tmp_path: Path) -> None:
    events = [event("q", "impression", f"d{number}", number, 10**12) for number in range(SEARCH_ROWS_MAX + 7)]
    (feedback,), (summary,) = read(tmp_path, [query("q", "x")], events)
    assert (len(feedback.shown), summary.beyond) == (SEARCH_ROWS_MAX, 7)
    assert_adds_up(summary)
    path = sessions(tmp_path, *(f"1,q,{number},d{number},0" for number in range(SEARCH_ROWS_MAX + 7)))
    read_of = SessionSummary()
    (feedback,) = read_sessions(path, read_of, application="shop")
    assert (len(feedback.shown), read_of.left_out.counts["beyond"]) == (SEARCH_ROWS_MAX, 7)


def test_a_session_beyond_what_a_record_holds_is_cut_and_counted(tmp_path: Path) -> None:
    quotes = '""' * 506  # JSON doubles a quotation mark, as CSV does.
    path = sessions(tmp_path, *(f'1,q,{number},"{number:06d}{quotes}",1' for number in range(SEARCH_ROWS_MAX)))
    read_of = SessionSummary()
    (feedback,) = read_sessions(path, read_of, application="shop")
    size = len(encode_event(feedback))
    assert RECORD_BYTES_MAX - 512 * 1024 < size <= RECORD_BYTES_MAX
    assert len(feedback.shown) == len(feedback.actions) == SEARCH_ROWS_MAX - read_of.left_out.counts["beyond"]
    assert f"{read_of.left_out.counts['beyond']:,} beyond (first, line {len(feedback.shown) + 2})" in (
        read_of.left_out.told()
    )


GOOD_UBI = json.dumps(query("q", "x"))
GOOD_EVENT = json.dumps(event("q", "click", "d", 1, 10**12))
OTHER_FILES = {
    "a corpus": ('{"_id": "d1", "title": "mug", "text": "red"}\n', "expected rows with"),
    "queries of a file": ('{"_id": "q1", "text": "red mug"}\n', "expected rows with"),
    "judgments": ("q1 0 d1 1\n", "cannot be read"),
    "a JSON array": (
        f"[{GOOD_UBI}]",
        "cannot be read: 1 unreadable .first, line 1: expected one JSON object, got an array",
    ),
    "indented JSON": (json.dumps([query("q", "x")], indent=1), "cannot be read"),
    "HTML": ("<!DOCTYPE html><html></html>", "got an HTML page"),
    "a program": ("\x7fELF\x02\x01\x01\x00", "got a program"),
    "zeroes": ("\x00" * 100, "got binary data"),
    "UTF-16": ("\ufeff" + GOOD_UBI, "got UTF-16"),
}


@pytest.mark.parametrize("kind", OTHER_FILES)
def test_a_file_of_another_kind_is_refused_whole(tmp_path: Path, kind: str) -> None:
    text, said = OTHER_FILES[kind]
    other = tmp_path / "other"
    other.write_bytes(text.encode("utf-16-le" if kind == "UTF-16" else "latin-1"))
    (tmp_path / "queries").write_text(GOOD_UBI)
    (tmp_path / "events").write_text(GOOD_EVENT)
    with pytest.raises(InputError, match=said):
        read_ubi(other, tmp_path / "events")
    with pytest.raises(InputError, match=said):
        read_ubi(tmp_path / "queries", other)
    with pytest.raises(InputError, match=r"expected the columns|got "):
        list(read_sessions(other, SessionSummary(), application="a"))


def test_exchanged_files_and_logs_without_a_search_are_refused(tmp_path: Path) -> None:
    for name, text in (
        ("queries", GOOD_UBI),
        ("events", GOOD_EVENT),
        ("empty", ""),
        ("wordless", json.dumps(query("q", ""))),
    ):
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match="Were --queries and --events swapped"):
        read_ubi(tmp_path / "events", tmp_path / "queries")
    with pytest.raises(InputError, match=r"no search came out .*both files are empty"):
        read_ubi(tmp_path / "empty", tmp_path / "empty")
    with pytest.raises(
        InputError, match=r"no search came out .*1 queries_without_text .first, line 1.; 1 without_query"
    ):
        read_ubi(tmp_path / "wordless", tmp_path / "events")
