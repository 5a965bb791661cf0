"""Scratch folders of the pages: one that a killed process left goes, and nobody else's does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from storage.scratch import COPIES, Scratch, remove_abandoned
from tests.commands import ROOT

OWNER = """
import sys
from storage.scratch import Scratch
kept = Scratch()
(kept.path / "ledger.duckdb").write_bytes(b"rows")
print(kept.path, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder of this test alone, also for its processes."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert Path(tempfile.gettempdir()) == tmp_path
    return tmp_path


def owner() -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_a_folder_goes_when_its_process_was_killed_and_not_before(folder: Path) -> None:
    process, path = owner()
    mine = Scratch()
    assert remove_abandoned() == [] and path.exists()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert remove_abandoned() == [path]
    assert not path.exists() and mine.path.exists()
    mine.remove()
    assert list(folder.iterdir()) == []


def test_what_has_not_our_mark_stays(folder: Path) -> None:
    other = folder / "other"
    other.mkdir()
    (other / "kept").write_text("x")
    bare, wrong, longer, linked, piped = (
        folder / f"{COPIES.prefix}{n}" for n in ("bare", "wrong", "long", "linked", "piped")
    )
    for each in (bare, wrong, longer, linked, piped):
        each.mkdir()
    (wrong / COPIES.mark).write_text("somebody's own file")
    (longer / COPIES.mark).write_bytes(COPIES.says + b"more")
    (other / COPIES.mark).write_bytes(COPIES.says)
    (linked / COPIES.mark).symlink_to(other / COPIES.mark)
    os.mkfifo(piped / COPIES.mark)
    (folder / f"{COPIES.prefix}link").symlink_to(other)
    (folder / f"{COPIES.prefix}file").write_bytes(COPIES.says)
    before = sorted(folder.rglob("*"))
    assert remove_abandoned() == []
    assert sorted(folder.rglob("*")) == before


def test_a_folder_that_is_just_being_made_stays(folder: Path) -> None:
    making = folder / f"{COPIES.prefix}new"
    making.mkdir()
    (making / f"{COPIES.mark}.making").write_bytes(COPIES.says)
    assert remove_abandoned() == [] and making.exists()


SPILLING = """
import sys
from pathlib import Path
import duckdb
from storage.questions.asking import reading_options
connection = duckdb.connect(config=reading_options(memory_mib=40))
connection.execute("CREATE TABLE big AS SELECT range AS n, repeat(hash(range)::VARCHAR, 8) AS text FROM range(600_000)")
folder = Path(reading_options()["temp_directory"])
print(folder, len(list(folder.iterdir())), flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, None])
def test_what_questions_put_aside_goes_with_their_process_or_after_it(folder: Path, number: int | None) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SPILLING], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdin is not None
    path, files = process.stdout.readline().split()
    assert int(files) > 0 and Path(path).is_relative_to(folder)
    assert remove_abandoned() == [] and Path(path).exists()
    if number is None:
        process.stdin.close()
    else:
        process.send_signal(number)
    process.wait()
    assert remove_abandoned() == ([] if number is None else [Path(path).parent])
    assert list(folder.iterdir()) == []
