"""Locks between processes: who has one keeps the others out, and a killed holder keeps nobody out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from streams.locks import in_turn, is_held, only_one, take
from tests.unit.test_house import MODULES

HOLDER = """
import sys
from pathlib import Path
from streams.locks import only_one
with only_one(Path(sys.argv[1]), RuntimeError("taken")):
    print("held", flush=True)
    sys.stdin.read()
"""


class Taken(Exception):
    """The lock is somebody else's."""


def test_another_process_is_kept_out_until_the_holder_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "new" / "run.lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    assert is_held(path)
    with pytest.raises(Taken), only_one(path, Taken()):
        pass
    holder.kill()
    holder.wait()
    assert not is_held(path)
    with only_one(path, Taken()):
        assert is_held(path)


def test_whoever_waits_is_told_once_and_gets_the_lock(tmp_path: Path) -> None:
    path, told = tmp_path / "run.lock", []
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"

    def waiting() -> None:
        told.append(path)
        holder.kill()

    with in_turn(path, refusal=RuntimeError, waiting=waiting):
        assert told == [path]
    holder.wait()


def test_a_place_that_cannot_be_written_is_refused_in_the_callers_words(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Taken, match="File exists"), in_turn(tmp_path / "file" / "lock", refusal=Taken):
        pass


def test_shared_locks_go_together_and_exclude_the_exclusive_one(tmp_path: Path) -> None:
    path = tmp_path / "lease"
    with path.open("w") as one, path.open("w") as two, path.open("w") as three:
        assert take(one, shared=True)
        assert take(two, shared=True)
        assert not take(three)


def test_nobody_else_locks_files() -> None:
    assert [
        path.name for path in MODULES if "fcntl.flock" in path.read_text() or "fcntl.lockf" in path.read_text()
    ] == ["locks.py"]
