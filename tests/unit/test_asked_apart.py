"""SQL of people in a process of its own: it may be late, too large or deadly, and neither pages nor sinks suffer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from storage.archive import ArchiveSettings
from storage.ledger import LEDGER
from storage.questions.apart import AskingProcess, HeldElsewhere
from storage.questions.asking import AskLimits, Refusal
from storage.questions.sources import LedgerSource
from storage.sink import Sink, SinkSettings
from tests.shown_pages import whole_run, write_run

COUNT = "SELECT count(*) AS groups FROM first_rewards"
SOON = AskLimits(seconds=0.3)


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return write_run(tmp_path, whole_run(8)) / LEDGER


@pytest.fixture
def apart() -> Iterator[AskingProcess]:
    found = AskingProcess()
    yield found
    found.close()


def pid_of(apart: AskingProcess) -> int:
    assert apart._process is not None
    return apart._process.pid


def test_an_answer_is_that_of_the_same_question_in_this_process(ledger: Path, apart: AskingProcess) -> None:
    found = apart.ask(ledger, "SELECT $a AS a, [1, NULL] AS b, 'x'::BLOB AS c, 1e300 AS d", {"a": "ä\u202e"})
    assert (found.columns, found.rows) == (("a", "b", "c", "d"), (("ä\u202e", [1, None], "(1 bytes)", 1e300),))
    cut = apart.ask(ledger, "SELECT range FROM range(10)", limits=AskLimits(rows=3))
    assert (cut.rows, cut.cut) == (((0,), (1,), (2,)), True)
    with pytest.raises(Refusal, match="expected one SELECT, got DROP"):
        apart.ask(ledger, "DROP TABLE rewards")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps a limit of addresses")
@pytest.mark.parametrize(
    "sql",
    [
        "SELECT len(range(1000000000))",  # A list of 8 GB, beyond DuckDB's own limit.
        "SELECT repeat('x', 4000000000)",
        "SELECT len(repeat(repeat('x', 100000), 30000))",
        "SELECT string_agg(repeat('x', 1000000)) FROM range(100000)",
    ],
)
def test_a_question_that_needs_more_memory_than_there_is_gets_its_error(
    sql: str, ledger: Path, apart: AskingProcess
) -> None:
    with pytest.raises(Refusal, match=r"within 1,024 MiB of memory"):
        apart.ask(ledger, sql)
    assert apart.ask(ledger, COUNT).rows == ((8,),)


def test_a_question_that_cannot_be_interrupted_ends_with_its_process_and_leaves_the_file(
    ledger: Path, apart: AskingProcess
) -> None:
    apart.ask(ledger, COUNT)
    before = pid_of(apart)
    with pytest.raises(Refusal, match=r"within 0\.3 s"):
        apart.ask(ledger, "SELECT levenshtein(repeat('a', 300000), repeat('b', 300000))", limits=SOON)
    with duckdb.connect(str(ledger)) as writing:  # A sink, which this process would have kept out for minutes.
        assert writing.execute(COUNT).fetchone() == (8,)
    assert apart.ask(ledger, COUNT).rows == ((8,),)
    assert pid_of(apart) != before


def test_a_process_that_is_killed_is_told_and_the_next_question_is_answered(ledger: Path, apart: AskingProcess) -> None:
    apart.ask(ledger, COUNT)
    os.kill(pid_of(apart), signal.SIGKILL)
    with pytest.raises(Refusal, match="expected an answer"):
        apart.ask(ledger, COUNT)
    assert apart.ask(ledger, COUNT).rows == ((8,),)


def test_a_file_that_a_sink_has_taken_is_told_apart(ledger: Path, apart: AskingProcess) -> None:
    with duckdb.connect(str(ledger)), pytest.raises(HeldElsewhere):
        apart.ask(ledger, COUNT)
    assert apart.ask(ledger, COUNT).rows == ((8,),)


def test_a_run_that_goes_on_is_asked_in_a_snapshot_of_its_copy(tmp_path: Path, apart: AskingProcess) -> None:
    folder = tmp_path / "demo"
    at_once = SinkSettings(archive=ArchiveSettings(segment_seconds_max=1e-9))
    records = whole_run(12)
    with Sink(folder / LEDGER, at_once) as sink:
        sink.write(records[: len(records) // 3])
        source = LedgerSource(folder, "demo", lambda: None)
        try:
            seen = []
            for part in (records[len(records) // 3 : len(records) // 2], records[len(records) // 2 :]):
                sink.write(part)
                while not source.live or not source.caught_up:
                    with source.cursor():
                        pass
                seen.append(apart.ask(source.file(), COUNT).rows[0][0])
            assert seen[0] <= 12
            while apart.ask(source.file(), COUNT).rows != ((12,),):  # The archive is read again every other second.
                assert source.live
        finally:
            source.close()


def test_the_process_ends_with_the_one_that_has_started_it(ledger: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from storage.questions.apart import AskingProcess\n"
        "apart = AskingProcess(); apart.ask(Path(sys.argv[1]), 'SELECT 1'); print(apart._process.pid, flush=True)\n"
        "apart.ask(Path(sys.argv[1]), \"SELECT levenshtein(repeat('a', 300000), repeat('b', 300000))\")"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(ledger)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    while Path(f"/proc/{child}").exists():  # It looks every second.
        time.sleep(0.1)
