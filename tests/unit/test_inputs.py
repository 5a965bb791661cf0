"""Files from outside: every compression, encoding and kind is read the same by every reader, or refused the same."""

from __future__ import annotations

import gzip
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.commands.search import queries_or_text
from infra.replaying.replays import clean_request
from search_env.catalogue.corpora import load_corpus, load_qrels, load_queries, read_run
from search_env.traffic.sessions import SessionSummary, read_sessions
from search_env.traffic.ubi import read_ubi
from streams.codec import decode, encode_event
from streams.errors import InputError, SearchloopError
from streams.events import Position, Request
from streams.inputs.values import join_ids, read_id, read_rank
from streams.records import Received

UBI_QUERY = b'{"query_id": "q1", "user_query": "red mug", "timestamp": 1724081170914}\n'
UBI_EVENT = b'{"query_id": "q1", "action_name": "click", "timestamp": 1724081170914}\n'


def ubi_queries(path: Path) -> object:
    events = path.with_name("sound-events")
    events.write_bytes(UBI_EVENT)
    return read_ubi(path, events)


def ubi_events(path: Path) -> object:
    queries = path.with_name("sound-queries")
    queries.write_bytes(UBI_QUERY)
    return read_ubi(queries, path)


READERS: dict[str, tuple[bytes, Callable[[Path], object]]] = {
    "corpus": (
        b'{"_id": "d1", "title": "red mug"}\n{"_id": "d2", "text": "mug"}\n',
        lambda path: list(load_corpus(path)),
    ),
    "queries": (b'{"_id": "q1", "text": "red mug"}\n', load_queries),
    "qrels": (b"q1 0 d1 1\nq1 0 d2 0\n", load_qrels),
    "run": (b"q1 Q0 d1 1 2.5 tag\n", read_run),
    "sessions": (
        b"session_id,query,rank0,doc_id,clicked\ns1,red mug,0,d1,1\n",
        lambda path: list(read_sessions(path, SessionSummary(), application="a")),
    ),
    "UBI queries": (UBI_QUERY, ubi_queries),
    "UBI events": (UBI_EVENT, ubi_events),
}
each_reader = pytest.mark.parametrize("reader", READERS)


def zstd(data: bytes) -> bytes:
    return pa.Codec("zstd").compress(data).to_pybytes()


@each_reader
def test_a_byte_order_mark_line_ends_and_compression_change_nothing(tmp_path: Path, reader: str) -> None:
    data, read = READERS[reader]
    path = tmp_path / "file"
    path.write_bytes(data)
    expected = read(path)
    mark = b"\xef\xbb\xbf"
    for other in (
        mark + data,
        data.replace(b"\n", b"\r\n"),
        data.rstrip(b"\n"),
        data + b"\n\n  \n",
        gzip.compress(data),
        gzip.compress(mark + data),
        gzip.compress(data[:5]) + gzip.compress(data[5:]),
        zstd(data),
        zstd(mark + data),
    ):
        path.write_bytes(other)
        assert read(path) == expected


def damaged(data: bytes) -> dict[str, tuple[bytes, str]]:
    """Return files that are no such file, and what must be said of each."""
    long = data + b"\n" * 100_000 + os.urandom(100_000).hex().encode()
    return {
        "gzip, cut": (gzip.compress(long)[:-20_000], "damaged gzip"),
        "gzip, wrong checksum": (gzip.compress(data)[:-8] + b"\0" * 8, "damaged gzip"),
        "gzip, with a rest": (gzip.compress(data) + b"rest", "damaged gzip"),
        "zstd, cut": (zstd(long)[:-20_000], "damaged zstd"),
        "zstd, flipped": (zstd(data)[:6] + b"\xff\xff\xff" + zstd(data)[9:], "damaged zstd"),
        "gzip twice": (gzip.compress(gzip.compress(data)), "got gzip within gzip"),
        "zip": (b"PK\x03\x04" + data, "got a zip archive"),
        "xz": (b"\xfd7zXZ\x00" + data, "got xz"),
        "Parquet": (b"PAR1" + data, "got Parquet"),
        "UTF-16": (data.decode().encode("utf-16"), "got UTF-16. Convert it: iconv -f UTF-16 -t UTF-8"),
        "UTF-16 without a mark": (data.decode().encode("utf-16-be"), "got UTF-16. Convert it"),
        "UTF-32": (data.decode().encode("utf-32"), "got UTF-32"),
        "HTML": (b"\xef\xbb\xbf\n <!doctype HTML><html>" + data, "got an HTML page"),
        "XML": (b"<?xml version='1.0'?>" + data, "got XML"),
        "zeroes": (b"\0" * 5000, "got binary data"),
    }


@each_reader
@pytest.mark.parametrize("kind", damaged(b""))
def test_a_damaged_file_or_one_of_another_kind_is_named(tmp_path: Path, reader: str, kind: str) -> None:
    data, read = READERS[reader]
    content, said = damaged(data)[kind]
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(InputError, match=said) as caught:
        read(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


@each_reader
def test_what_is_no_file_is_named_and_waits_for_nothing(tmp_path: Path, reader: str) -> None:
    _, read = READERS[reader]
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "a.gz").write_bytes(b"plain")
    (tmp_path / "a.zst").write_bytes(b"plain")
    for name, said in {
        "pipe": "it is a pipe",
        "socket": "it is a socket",
        "loop": "cannot read this",
        "nothing": "no such",
        "n" * 300: "cannot read this .* file: File name too long",
        ".": "Is a directory",
        "a.gz": "expected gzip",
        "a.zst": "expected zstd",
    }.items():
        with pytest.raises(InputError, match=said):
            read(tmp_path / name)
    with pytest.raises(InputError, match="it is a device"):
        READERS["corpus"][1](Path("/dev/null"))
    with pytest.raises(InputError, match="no such"):
        READERS["corpus"][1](Path("a\0b"))


def test_a_text_is_never_tried_as_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mugs").mkdir()
    (tmp_path / "queries").write_bytes(READERS["queries"][0])
    for text in ("赤いマグ" * 75, "a/" * 2000 + "b", "mugs", "usb c/lightning cable", "what is a .gz\0file"):
        (asked,) = queries_or_text(text)
        assert asked.id == "query" and asked.text[:20] == text.replace("\0", "")[:20]
    assert queries_or_text("queries")[0].id == "q1"
    for path in ("./mugs", "mugs/", "/nowhere/at/all", "nothing.jsonl", str(tmp_path)):
        with pytest.raises(InputError):
            queries_or_text(path)


def test_a_text_is_cleaned_and_cut_and_told(capsys: pytest.CaptureFixture[str]) -> None:
    (asked,) = queries_or_text(" red\u202emug\u200b cafe\u0301 " + "x" * 600)
    assert asked.text.startswith("redmug caf\u00e9 xxx") and len(asked.text) == 512
    assert "warning: 1 query was cut at 512 characters" in capsys.readouterr().err


@given(st.lists(st.lists(st.text(max_size=5), min_size=2, max_size=2), min_size=2, max_size=2, unique_by=tuple))
def test_two_lists_of_ids_are_never_joined_to_one(parts: list[list[str]]) -> None:
    first, second = (join_ids(*each) for each in parts)
    assert first != second
    assert first.isprintable() and len(first.encode()) <= 512


def test_long_ids_are_told_apart_by_their_ends() -> None:
    made = {join_ids("a", "é" * 600 + end) for end in "xyz"}
    assert len(made) == 3 and all(len(each.encode()) <= 512 for each in made)
    assert join_ids("shop", "q 1", "blue ray") == "shop:q 1:blue ray"


def test_an_absent_id_is_absent_and_a_rank_is_whole() -> None:
    assert [read_id(value) for value in (None, "", " ", True, 1.5, [], {}, "a\u200b", "\ud800", 10**400)] == [None] * 10
    assert [read_id(value) for value in ("q", 7, "None")] == ["q", "7", "None"]
    assert [read_rank(value) for value in (0, "0", 3.0, "10")] == [0, 0, 3, 10]
    assert [read_rank(value) for value in (-1, "-1", 1.5, "1.5", True, None, "", 10**400, "1_0", "٣")] == [None] * 10


def test_a_recorded_request_is_cleaned_before_it_is_asked_again() -> None:
    made = Request(request_id="r", run="r", query_id="q", query="red\u202emug\u0007 " + "x" * 600, index="i-1")
    record = Received(
        position=Position(topic="r.requests", partition=0, offset=3), timestamp_ms=5, key=b"r", value=encode_event(made)
    )
    again = clean_request(record)
    event = decode(again.value)
    assert isinstance(event, Request) and event.query == "redmug " + "x" * 505
    assert (again.position, again.key, again.timestamp_ms) == (record.position, record.key, record.timestamp_ms)
    for value in (b"{", None, encode_event(Request(request_id="r", run="r", query_id="q", query="mug", index="i-1"))):
        other = Received(position=record.position, timestamp_ms=5, key=b"r", value=value)
        assert clean_request(other) is other


def test_an_error_that_nobody_expected_is_one_line_and_a_file_with_its_trace(tmp_path: Path) -> None:
    code = (
        "import sys, click, infra.cli as cli\n"
        "def fail(*a, **k): raise RecursionError('too\\ndeep')\n"
        "cli.cli = fail\ncli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        check=False,
    )
    (trace,) = tmp_path.glob("searchloop-error-*.log")
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        done.stderr
        == f"error: RecursionError: too deep. Nobody expected this: please report it; the trace is in {trace}\n"
    )
    assert "Traceback" in trace.read_text() and "in fail" in trace.read_text()


def test_every_error_of_a_reader_is_ours() -> None:
    assert issubclass(InputError, SearchloopError)
