"""SQL of people: it reads one ledger and nothing else, whatever it says."""

from __future__ import annotations

import hashlib
from pathlib import Path

import duckdb
import pytest

from storage.ledger import LEDGER, build_batch, store_registered
from storage.questions.asking import CHARACTERS_MAX, AskLimits, Refusal, ask, connect_reading, reading_options
from storage.questions.examples import move_of, read_group
from storage.schema import migrate
from tests.shown_pages import in_log_order, whole_run, write_run
from tests.stored_events import generation, reward


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("home"), whole_run(8)) / LEDGER


def refused(ledger: Path, sql: str, **limits: float) -> str:
    with connect_reading(ledger) as connection, pytest.raises(Refusal) as raised:
        ask(connection.cursor(), sql, limits=AskLimits(**limits))  # type: ignore[arg-type]
    return str(raised.value)


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM rewards",
        "WITH gone AS (DELETE FROM rewards RETURNING *) SELECT * FROM gone",
        "EXPLAIN ANALYZE DELETE FROM rewards",
        "SELECT 1; DROP TABLE rewards",
        "DROP VIEW first_rewards",
        "CREATE TEMP TABLE mine AS SELECT 1",
        "SET memory_limit = '100GB'",
        "RESET enable_external_access",
        "PRAGMA enable_external_access",
        "BEGIN",
        "ROLLBACK; DELETE FROM rewards",
        "ATTACH '/tmp/other.duckdb'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "COPY rewards TO '/tmp/stolen.csv'",
        "EXPORT DATABASE '/tmp/stolen'",
        "CALL pragma_version()",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM read_blob('/etc/passwd')",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM glob('/*')",
        "SELECT * FROM sniff_csv('/etc/passwd')",
        "SELECT * FROM read_json('https://example.com/x.json')",
        "SELECT * FROM query('DELETE FROM rewards')",
        "SELECT * FROM ledger",  # A variable of this module.
        "SELECT getenv('HOME')",
        "SELECT $missing",
        "selec",
        "",
        "   ;  ",
        "-- only a comment",
        "SELECT 'a\0b'",
        "SELECT '\ud800'",
        "SELECT " + "1," * CHARACTERS_MAX + "1",
    ],
)
def test_what_is_no_reading_of_this_ledger_is_refused_and_changes_nothing(sql: str, ledger: Path) -> None:
    before = hashlib.sha256(ledger.read_bytes()).hexdigest()
    said = refused(ledger, sql)
    assert said and "\n" not in said
    assert hashlib.sha256(ledger.read_bytes()).hexdigest() == before
    with connect_reading(ledger) as connection:
        assert ask(connection.cursor(), "SELECT count(*) FROM rewards").rows == ((8,),)


def test_a_question_that_takes_too_long_is_stopped_and_the_connection_goes_on(ledger: Path) -> None:
    with connect_reading(ledger) as connection:
        cursor = connection.cursor()
        slow = "SELECT max(hash(a.range, b.range)) FROM range(100000) a, range(1000000) b"
        with pytest.raises(Refusal, match=r"within 0\.3 s"):
            ask(cursor, slow, limits=AskLimits(seconds=0.3))
        assert ask(cursor, "SELECT 1").rows == ((1,),)


def test_a_long_answer_is_cut_and_says_so(ledger: Path) -> None:
    with connect_reading(ledger) as connection:
        cursor = connection.cursor()
        limits = AskLimits(rows=3, text_characters=10)
        many = ask(cursor, "SELECT range FROM range(10)", limits=limits)
        assert (many.rows, many.cut) == (((0,), (1,), (2,)), True)
        wide = ask(cursor, "SELECT repeat('x', 1000) AS text, 'short' AS other", limits=limits)
        assert (wide.rows, wide.cut) == ((("x" * 10 + "…", "short"),), True)
        exact = ask(cursor, "SELECT range FROM range(3)", limits=limits)
        assert (len(exact.rows), exact.cut) == (3, False)
        assert ask(cursor, "SELECT 'abc'::BLOB").rows == (("(3 bytes)",),)


def test_a_sink_can_take_the_file_between_two_questions(ledger: Path) -> None:
    with connect_reading(ledger) as connection:
        ask(connection.cursor(), "SELECT 1")
    with duckdb.connect(str(ledger)) as writing:
        assert writing.execute("SELECT count(*) FROM rewards").fetchone() == (8,)
        # Another configuration of the same file in one process is what a sink in another process looks like.
        with pytest.raises(duckdb.Error):
            connect_reading(ledger)


def test_a_group_is_shown_through_all_its_stages(ledger: Path) -> None:
    with connect_reading(ledger) as connection:
        group = read_group(connection.cursor(), generation(5).group_id)
    expected = reward(5, step=1)
    assert (group.query, group.query_id, group.step, group.index) == (
        expected.generation.request.query,
        "q5",
        1,
        "shop-1",
    )
    assert [each["stage"] for each in group.stages] == ["request", "generation", "reward", "update"]
    assert [each["place"] for each in group.stages] == [
        "requests[0]@5",
        "generations[0]@5",
        "rewards[0]@5",
        "updates[0]@1",
    ]
    assert group.fate == "It gave a gradient to version 2."
    assert [each.reward for each in group.candidates] == [each.reward for each in expected.outcomes]
    mean = sum(each.reward or 0 for each in expected.outcomes) / 8
    for shown, judged in zip(group.candidates, expected.outcomes, strict=True):
        assert shown.advantage == pytest.approx((judged.reward or 0) - mean)
        assert [hit.document_id for hit in shown.results] == [hit.document_id for hit in judged.hits]
        raw = {hit.document_id: hit.rank for hit in expected.raw_hits}
        assert [hit.was for hit in shown.results] == [raw.get(hit.document_id) for hit in judged.hits]
        assert set(shown.lost) == set(raw) - {hit.document_id for hit in judged.hits}
        assert shown.tokens == 12 and shown.text.startswith("<answer>")


def test_a_group_that_waits_says_for_what(tmp_path: Path) -> None:
    path = write_run(tmp_path, in_log_order([generation(0), generation(1), reward(1)])) / LEDGER
    with connect_reading(path) as connection:
        waiting, judged = (read_group(connection.cursor(), generation(n).group_id) for n in (0, 1))
        assert (waiting.fate, {each.status for each in waiting.candidates}) == ("No reward has come yet.", {"waiting"})
        assert judged.fate == "No update has taken it yet."
        with pytest.raises(Refusal, match="expected the id of a group"):
            read_group(connection.cursor(), "' OR 1=1 --")


@pytest.mark.parametrize(("rank", "was", "move"), [(1, None, "gained"), (1, 2, "up"), (3, 2, "down"), (4, 4, "same")])
def test_a_result_moves_against_the_raw_ones(rank: int, was: int | None, move: str) -> None:
    assert move_of(rank, was) == move


def test_a_batch_that_does_not_fit_leaves_nothing_and_the_connection_goes_on(tmp_path: Path) -> None:
    first, second = (build_batch(in_log_order([generation(n), reward(n)])) for n in (0, 1))
    with duckdb.connect(str(tmp_path / "copy.duckdb"), config=reading_options()) as connection:
        migrate(connection)
        wrong = {**first.tables, "no_such_table": first.tables["rewards"]}
        with pytest.raises(duckdb.Error):
            store_registered(connection, wrong, first.extents)
        assert connection.execute("SELECT count(*) FROM rewards").fetchone() == (0,)
        for batch in (first, second):
            store_registered(connection, batch.tables, batch.extents)
        assert connection.execute("SELECT count(*) FROM rewards").fetchone() == (2,)
