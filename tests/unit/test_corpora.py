"""Corpus, query, judgment and run files: what is read is what was written, and bad files are named exactly."""

from __future__ import annotations

import gzip
import json
import os
import unicodedata
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_env.catalogue.corpora import (
    CorpusError,
    Document,
    Query,
    Ranking,
    check_qrels,
    checked_corpus,
    load_corpus,
    load_qrels,
    load_queries,
    read_run,
    write_qrels,
    write_queries,
    write_run,
)
from streams.inputs.text import clean_metadata, clean_text


def corpus_file(path: Path, *lines: object) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_plain_and_gzip_corpora_read_the_same(tmp_path: Path) -> None:
    line = {"_id": "1", "title": "Red mug", "text": "A mug", "metadata": {"attributes": {"colour": "Red"}}}
    plain = corpus_file(tmp_path / "c.jsonl", line)
    zipped = tmp_path / "c.jsonl.gz"
    zipped.write_bytes(gzip.compress(plain.read_bytes()))
    expected = [Document(id="1", title="Red mug", text="A mug", metadata={"attributes": {"colour": "Red"}})]
    assert list(load_corpus(plain)) == list(load_corpus(zipped)) == expected


def test_title_text_and_metadata_may_be_absent(tmp_path: Path) -> None:
    path = corpus_file(tmp_path / "c.jsonl", {"_id": "1", "text": None, "metadata": None})
    assert list(load_corpus(path)) == [Document(id="1", title="", text="")]


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (['{"_id": "1"}', '{"_id": "2"'], r"line 2: expected one JSON object, got malformed JSON"),
        (['{"_id": "1"}', "[" * 3000], r"line 2: expected one JSON object, got malformed JSON"),
        (['["a"]'], r"line 1: expected one JSON object, got an array"),
        (['{"title": "x"}'], r"line 1: expected '_id' to be a string, got nothing"),
        (['{"_id": 7}'], r"line 1: expected '_id' to be a string, got a number"),
        (['{"_id": "a b"}'], r"line 1: expected an '_id' of 1 to 512 visible bytes without spaces"),
        (['{"_id": "1", "title": 3}'], r"line 1: expected 'title' to be a string, got a number"),
        (['{"_id": "1", "metadata": []}'], r"line 1: expected 'metadata' to be an object, got an array"),
        (['{"_id": "1"}', '{"_id": "2"}', '{"_id": "1"}'], r"line 3: id '1' was used before, in line 1"),
        ([], r"expected at least one document, got an empty corpus"),
    ],
)
def test_a_bad_corpus_line_is_named(tmp_path: Path, lines: list[str], complaint: str) -> None:
    path = corpus_file(tmp_path / "c.jsonl", *lines)
    with pytest.raises(CorpusError, match=complaint) as caught:
        list(load_corpus(path))
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"nowhere\.jsonl: no such corpus file"):
        list(load_corpus(tmp_path / "nowhere.jsonl"))
    with pytest.raises(CorpusError, match="cannot read this corpus file"):
        list(load_corpus(tmp_path))


def test_bad_gzip_is_named(tmp_path: Path) -> None:
    data = gzip.compress(b"".join(b'{"_id": "%d", "text": "%d"}\n' % (n, n * n) for n in range(5000)))
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(data[: len(data) // 2])
    flipped = tmp_path / "flipped.jsonl.gz"
    flipped.write_bytes(data[:900] + bytes(b ^ 0x55 for b in data[900:960]) + data[960:])
    for path in (cut, flipped):
        with pytest.raises(CorpusError, match=r"damaged gzip|malformed JSON|UTF-8"):
            list(load_corpus(path))
    not_gzip = tmp_path / "plain.jsonl.gz"
    not_gzip.write_text('{"_id": "1"}\n')
    with pytest.raises(CorpusError, match="expected gzip"):
        list(load_corpus(not_gzip))


def test_bytes_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(b'{"_id": "1"}\n{"_id": "2", "title": "caf\xe9"}\n')
    with pytest.raises(CorpusError, match=r"line 2: expected UTF-8 text, got byte 0xe9"):
        list(load_corpus(path))


def test_queries_without_text_are_named(tmp_path: Path) -> None:
    path = corpus_file(tmp_path / "q.jsonl", {"_id": "q1", "text": "mug"}, {"_id": "q2", "text": "\u200b \u202e"})
    with pytest.raises(CorpusError, match=r"line 2: query 'q2' has no text"):
        load_queries(path)
    with pytest.raises(CorpusError, match="expected at least one query"):
        load_queries(corpus_file(tmp_path / "empty.jsonl"))


def test_queries_come_back_as_written(tmp_path: Path) -> None:
    queries = [Query(id="q1", text="red mug", metadata={"pair": ["colour", "Red"]}), Query(id="q2", text="blå kopp")]
    write_queries(tmp_path / "q.jsonl", queries)
    assert load_queries(tmp_path / "q.jsonl") == queries


def test_trec_and_beir_qrels_read_the_same(tmp_path: Path) -> None:
    expected = {"q1": {"d1": 2, "d2": 0}, "q2": {"d1": -1}}
    trec = tmp_path / "trec"
    trec.write_text("q1 0 d1 2\nq1 0 d2 0\nq2 0 d1 -1\n")
    beir = tmp_path / "beir.tsv"
    write_qrels(beir, expected)
    assert load_qrels(trec) == load_qrels(beir) == expected
    assert beir.read_text().startswith("query-id\tcorpus-id\tscore\n")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("q1 d1\n", "line 1: expected 4 columns"),
        ("q1 0 d1 1\nq1 0 d2\n", "line 2: expected 4 columns, got 3"),
        ("q1 0 d1 1.5\n", "line 1: expected an integer grade, got '1.5'"),
        ("q1 0 d1 1\nq1 0 d1 2\n", "line 2: document 'd1' of query 'q1' has grade 2 here and 1 before"),
        ("query-id\tcorpus-id\tscore\n", "expected at least one judgment"),
        ("q1\td1\t0.5\nq1\td2\t1\n", "line 1: expected an integer grade, got '0.5'"),
        ("q1\td1\trelevant\nq1\td2\t1\n", "line 1: expected an integer grade, got 'relevant'"),
        ("q1\td1\tscore\nq1\td2\t1\n", "line 1: expected an integer grade, got 'score'"),
        ("query-id\tcorpus-id\tscore\nquery-id\tcorpus-id\tscore\n", "line 2: expected an integer grade"),
        ("q1 0 d1 1001\n", "line 1: expected an integer grade, got '1001'"),
        (f"q1 0 d1 {'9' * 5000}\n", "line 1: expected an integer grade"),
        ("q1 0 d1 \uff11\n", "line 1: expected an integer grade"),
        ("q1 0 d\u200b 1\n", "line 1: expected ids of 1 to 512 visible bytes"),
        ("q1\t0\t\t1\n", "line 1: expected 4 columns, got an empty one between tabs"),
        ("q1 Q0 d1 1 2.5 tag\n", "line 1: expected 4 columns"),
        ('{"_id": "q1", "text": "mug"}\n', "line 1: expected an integer grade"),
    ],
)
def test_a_bad_qrels_line_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "qrels"
    path.write_text(text)
    with pytest.raises(CorpusError, match=complaint):
        load_qrels(path)


def test_unknown_ids_in_qrels_are_counted_or_refused() -> None:
    qrels = {"q1": {"d1": 1, "ghost": 1}, "q9": {"d1": 1}}
    found = check_qrels(qrels, query_ids=["q1"], document_ids=["d1"])
    assert found[:3] == (2, 1, 1)
    assert found.examples == ("query 'q9'", "document 'ghost'")
    with pytest.raises(CorpusError, match=r"2 judgments name 1 unknown queries and 1 unknown documents"):
        check_qrels(qrels, query_ids=["q1"], document_ids=["d1"], unknown="strict")


def test_a_run_comes_back_and_ties_are_broken_by_id(tmp_path: Path) -> None:
    write_run(tmp_path / "run", {"q1": Ranking(["b", "a", "c"], [1.5, 1.5, 2.0])}, tag="bm25")
    assert (tmp_path / "run").read_text().splitlines()[0] == "q1 Q0 b 1 1.5 bm25"
    assert read_run(tmp_path / "run") == {"q1": Ranking(["c", "a", "b"], [2.0, 1.5, 1.5])}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("q1 Q0 d1 1 2.0\n", "line 1: expected 6 columns"),
        ("q1 Q0 d1 1 nan bm25\n", "line 1: expected a finite score, got 'nan'"),
        ("q1 Q0 d1 1 2 t\nq1 Q0 d1 2 1 t\n", "line 2: document 'd1' is listed twice for query 'q1'"),
        ("q1 Q0 d1 1 1e999 t\n", "line 1: expected a finite score, got '1e999'"),
        ("q1 Q0 d1 1 1_0 t\n", "line 1: expected a finite score, got '1_0'"),
        ("q1 Q0 d1 1.5 2 t\n", "line 1: expected a whole rank from 0 to 1000000, got '1.5'"),
        ("q1 Q0 d1 -1 2 t\n", "line 1: expected a whole rank"),
        ("q1 0 d1 1\n", "line 1: expected 6 columns"),
        ("", "expected at least one ranked document, got an empty file"),
    ],
)
def test_a_bad_run_line_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "run").write_text(text)
    with pytest.raises(CorpusError, match=complaint):
        read_run(tmp_path / "run")


def test_hidden_characters_vanish_and_spaces_become_one() -> None:
    hidden = "Red\u200b mug\u202egum \x00\x1b[31m\ud800 tea\u00adpot\n\tnew\u00a0line \ufeff\u2066x\u2069"
    assert clean_text(hidden, characters_max=100) == "Red muggum [31m teapot new line x"


@given(st.text(max_size=60), st.integers(min_value=1, max_value=40))
def test_cleaning_is_idempotent_bounded_and_visible(text: str, characters_max: int) -> None:
    once = clean_text(text, characters_max=characters_max)
    assert clean_text(once, characters_max=characters_max) == once
    assert len(once) <= characters_max
    assert once.isprintable()
    once.encode()


def test_deep_metadata_is_cut_not_followed() -> None:
    deep: dict[str, object] = {}
    for _ in range(50):
        deep = {"a\u200b": deep}
    assert json.dumps(clean_metadata(deep, characters_max=10)).count('"a"') == 8


def test_a_run_goes_to_a_pipe_as_it_is_and_a_device_is_never_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(pipe.read_text)
        write_run(pipe, {"q1": Ranking(["a"], [2.0])}, tag="t")
        assert read.result() == "q1 Q0 a 1 2.0 t\n"
    assert pipe.is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_a_file_that_cannot_be_written_leaves_the_one_before_and_no_rest(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(CorpusError, match=r"run: cannot be written \(Is a directory\)\. Make room, or choose another"):
        write_run(tmp_path / "run", {}, tag="t")
    (tmp_path / "file").write_text("before")
    with pytest.raises(CorpusError, match="cannot be written"):
        write_run(tmp_path / "file" / "below", {}, tag="t")
    assert (tmp_path / "file").read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "run"]


def test_a_header_said_in_other_words_is_one(tmp_path: Path) -> None:
    for header in ("query_id\tcorpus_id\tscore", "Query-ID Doc-ID Relevance", "qid docid rel"):
        (tmp_path / "qrels").write_text(f"{header}\nq1\td1\t2\n")
        assert load_qrels(tmp_path / "qrels") == {"q1": {"d1": 2}}


def test_a_repeated_judgment_counts_once_and_is_told(tmp_path: Path) -> None:
    told: list[str] = []
    (tmp_path / "qrels").write_text("q1 0 d1 1\nq1 0 d1 1\n")
    assert load_qrels(tmp_path / "qrels", tell=told.append) == {"q1": {"d1": 1}}
    assert told == [f"{tmp_path / 'qrels'}: 1 judgments repeat an earlier one, with the same grade; each counts once"]


def test_what_is_cut_of_a_corpus_is_told_with_the_first_document(tmp_path: Path) -> None:
    told: list[str] = []
    lines = [
        {"_id": "b1", "title": "t" * 1_001, "text": "w " * 30_000},
        {"_id": "b2", "text": "w" * 50_000},
        {"_id": "b3", "text": "w" * 50_001, "metadata": {"note": "n" * 4_001}},
    ]
    documents = list(load_corpus(corpus_file(tmp_path / "c", *lines), tell=told.append))
    assert [len(each.text) for each in documents] == [49_999, 50_000, 50_000]
    assert told == [
        f"{tmp_path / 'c'}: 1 title was cut at 1,000 characters (the first: document 'b1')",
        f"{tmp_path / 'c'}: 2 texts were cut at 50,000 characters (the first: document 'b1')",
        f"{tmp_path / 'c'}: 1 metadata text was cut at 4,000 characters (the first: document 'b3')",
    ]


def test_composed_and_decomposed_words_are_the_same(tmp_path: Path) -> None:
    forms = {unicodedata.normalize(form, "caf\u00e9 \u1100\u1161 \u0b95\u0bcb") for form in ("NFC", "NFD")}
    assert len(forms) == 2
    corpus = corpus_file(tmp_path / "c", *({"_id": str(n), "title": form} for n, form in enumerate(forms)))
    asked = corpus_file(tmp_path / "q", *({"_id": str(n), "text": form} for n, form in enumerate(forms)))
    words = {each.title for each in load_corpus(corpus)} | {each.text for each in load_queries(asked)}
    assert words == {unicodedata.normalize("NFC", next(iter(forms)))}
    assert clean_text("e\u200b\u0301", characters_max=9) == "\u00e9"


def test_a_kept_corpus_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = corpus_file(tmp_path / "c", {"_id": "1", "title": "cafe\u0301", "text": "w" * 60_000})
    (document,) = load_corpus(path, kept=True)
    assert (document.title, len(document.text)) == ("cafe\u0301", 60_000)


def test_a_corpus_given_as_queries_is_refused(tmp_path: Path) -> None:
    path = corpus_file(tmp_path / "c", {"_id": "d1", "title": "Red mug", "text": "a mug"})
    with pytest.raises(CorpusError, match=r"expected queries, got lines that all have a 'title'"):
        load_queries(path)


def test_a_checked_corpus_is_valid_and_not_held(tmp_path: Path) -> None:
    lines = [{"_id": "d1", "title": "t" * 1_001}, {"_id": "d2"}]
    path = corpus_file(tmp_path / "c", *lines)
    told: list[str] = []
    documents = checked_corpus(path, tell=told.append)
    assert len(told) == 1 and "1 title was cut" in told[0]
    assert isinstance(documents, Iterator), "a list would hold all of it"
    assert [each.id for each in documents] == ["d1", "d2"]
    assert len(told) == 1, "it is told once"
    with pytest.raises(CorpusError, match="line 3"):
        checked_corpus(corpus_file(tmp_path / "c", *lines, {"_id": "d1"}))
