"""A rebuild of the ledger, killed at any moment, leaves the old ledger or the new one."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pytest

from storage.errors import StorageError
from storage.ledger import LEDGER
from storage.log import open_log, rebuild_ledger
from storage.sink import Sink, SinkSettings
from tests.stored_events import record, reward

ROOT = Path(__file__).parents[2]
QUICK = SinkSettings(batch_records_max=10)
PLACES = ["file.before-rename", "file.after-rename"] + [
    f"rebuild.{place}" for place in ("before-choice", "after-choice", "before-replace", "after-replace")
]
# A sink that is killed leaves a write-ahead log, in which there is a change that the log does not know: so the old
# ledger can be told from the new one.
LEFT_BEHIND = """
import os, signal, sys
from pathlib import Path
from storage.archive import close_segments
from storage.sink import Sink, SinkSettings
from tests.stored_events import record, reward
sink = Sink(Path(sys.argv[1]), SinkSettings(batch_records_max=10))
sink.write([record(reward(n), n) for n in range(20)])
sink.run(lambda connection: close_segments(connection, sink.archive))
sink.write([record(reward(n), n) for n in range(20, 30)])
sink.run(lambda connection: connection.execute("UPDATE rewards SET relevance_model = 'old'"))
os.kill(os.getpid(), signal.SIGKILL)
"""
REBUILD = """
import sys
from pathlib import Path
from storage.log import rebuild_ledger
from streams.failpoints import FailpointSettings, arm
arm(FailpointSettings(kill=sys.argv[2], folder=sys.argv[3]))
rebuild_ledger(Path(sys.argv[1]))
"""


def left_behind(folder: Path) -> None:
    subprocess.run([sys.executable, "-c", LEFT_BEHIND, str(folder / LEDGER)], cwd=ROOT, check=False)
    assert (folder / f"{LEDGER}.wal").stat().st_size > 0


def rebuild(folder: Path, place: str) -> int:
    command = [sys.executable, "-c", REBUILD, str(folder), place, str(folder / "killed")]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def models(folder: Path) -> tuple[int, set[str]]:
    """Return how many rewards the ledger holds, and which of the two ledgers it is by the model's name."""
    with open_log(folder) as log:
        rows = log.rows("SELECT relevance_model AS model FROM rewards")
    return len(rows), {row["model"] for row in rows}


@pytest.mark.parametrize("place", PLACES)
def test_a_rebuild_killed_at_a_named_place_leaves_the_old_ledger_or_the_new_one(tmp_path: Path, place: str) -> None:
    left_behind(tmp_path)
    assert rebuild(tmp_path, place) == -signal.SIGKILL
    assert (tmp_path / LEDGER).exists()
    is_new = place not in ("file.before-rename", "rebuild.before-choice")
    assert models(tmp_path) == (30, {"gbdt-1" if is_new else "old"})
    with Sink(tmp_path / LEDGER, QUICK) as sink:
        assert sink.positions()["test.rewards", 0] == 30
        assert sink.write([record(reward(n), n) for n in range(25, 40)]) == 10
    assert models(tmp_path)[0] == 40
    assert rebuild_ledger(tmp_path) == 40
    assert models(tmp_path) == (40, {"gbdt-1"})
    left = {path.name for path in tmp_path.iterdir()} - {"killed", "archive"}
    assert left <= {LEDGER, f"{LEDGER}.lock", f"{LEDGER}.damaged", f"{LEDGER}.damaged.wal"}


def test_a_rebuild_killed_at_random_times_leaves_the_old_ledger_or_the_new_one(tmp_path: Path) -> None:
    left_behind(tmp_path)
    code = "import sys; from pathlib import Path; from storage.log import rebuild_ledger; print(flush=True)\n"
    code += "rebuild_ledger(Path(sys.argv[1]))"
    for number in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.05 * number)
        process.kill()
        process.wait()
        assert (tmp_path / LEDGER).exists()
        assert models(tmp_path) in [(30, {"old"}), (30, {"gbdt-1"})]


def test_the_old_ledger_is_kept_with_its_write_ahead_log_and_nothing_older_stands_beside_it(tmp_path: Path) -> None:
    left_behind(tmp_path)
    (tmp_path / f"{LEDGER}.damaged.wal").write_text("of another time")
    before = {suffix: (tmp_path / f"{LEDGER}{suffix}").read_bytes() for suffix in ("", ".wal")}
    rebuild_ledger(tmp_path)
    for suffix, content in before.items():
        assert (tmp_path / f"{LEDGER}.damaged{suffix}").read_bytes() == content
    assert not (tmp_path / f"{LEDGER}.wal").exists()
    with duckdb.connect(str(tmp_path / f"{LEDGER}.damaged"), read_only=True) as kept:
        assert kept.execute("SELECT DISTINCT relevance_model FROM rewards").fetchall() == [("old",)]
    rebuild_ledger(tmp_path)
    assert not (tmp_path / f"{LEDGER}.damaged.wal").exists()


def test_the_ledger_is_never_out_of_its_place_while_it_is_built_anew(tmp_path: Path) -> None:
    left_behind(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", REBUILD, str(tmp_path), "", ""], cwd=ROOT)
    looks = 0
    while process.poll() is None:
        (tmp_path / LEDGER).stat()
        looks += 1
    assert process.returncode == 0 and looks > 100


FULL = """
import resource, sys
from pathlib import Path
from storage.errors import StorageError
from storage.log import rebuild_ledger
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
try:
    rebuild_ledger(Path(sys.argv[1]))
except StorageError as error:
    print(error)
"""


def test_a_full_disk_leaves_the_old_ledger_and_says_so(tmp_path: Path) -> None:
    left_behind(tmp_path)
    command = [sys.executable, "-c", FULL, str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "the disk is full" in ended.stdout, ended.stderr
    assert models(tmp_path) == (30, {"old"})
    assert not list(tmp_path.glob(f"{LEDGER}.rebuil*"))


def test_two_rebuilds_at_once_do_not_meet(tmp_path: Path) -> None:
    left_behind(tmp_path)
    (tmp_path / f"{LEDGER}.rebuilding").write_text("being written")
    with Sink(tmp_path / LEDGER, QUICK), pytest.raises(StorageError, match="another sink"):
        rebuild_ledger(tmp_path)
    assert (tmp_path / f"{LEDGER}.rebuilding").read_text() == "being written"
