"""Single bits flipped at random places of what is kept: noticed or harmless, and mended from what is whole."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import duckdb

from learner.checkpoints import CURRENT, Manifest, load_current
from learner.learning import write_policy_checkpoint
from learner.policy import build_tiny
from learner.policy_settings import TinySettings
from storage.archive import ARCHIVE, ArchiveSettings, close_segments, find_segments
from storage.contents import table_hashes
from storage.errors import StorageError
from storage.ledger import LEDGER
from storage.log import open_log, rebuild_ledger
from storage.sink import Sink, SinkSettings
from streams.events import PolicyRef
from streams.records import Received
from tests.faults.results import Row
from tests.stored_events import record, reward

RECORDS = 400
SETTINGS = SinkSettings(batch_records_max=50, archive=ArchiveSettings(segment_seconds_max=1e6))


def flip_checkpoints(*, dose: int) -> list[Row]:
    """Flip a bit in each file of the newest checkpoint and in CURRENT, so often in each; return a row."""
    began, chance = time.monotonic(), random.Random(0)
    broken: list[str] = []
    files = 0
    with tempfile.TemporaryDirectory(prefix="searchloop-flips-") as scratch:
        root = Path(scratch) / "checkpoints"
        policy = build_tiny(["red patch cable"] * 4, TinySettings(vocabulary_size=300, layers=1))
        saved = []
        for step in (1, 2):
            manifest = Manifest(policy=PolicyRef(lineage="1-a", step=step, sha256=""), parent=None)
            saved.append(write_policy_checkpoint(root, policy, manifest, None)[0])
        before, newest = saved
        for file in sorted(newest.iterdir()):
            files += 1
            whole = file.read_bytes()
            for _ in range(dose):
                place = _flip(file, whole, chance)
                if (found := load_current(root)[0]) != before:
                    broken.append(f"bit {place} of {file.name} flipped: {found.name} was loaded")
            file.write_bytes(whole)
        current = root / CURRENT
        whole = current.read_bytes()
        for _ in range(dose):
            place = _flip(current, whole, chance)
            if load_current(root)[0] not in (newest, before):
                broken.append(f"bit {place} of {CURRENT} flipped: no whole checkpoint was loaded")
    held = f"CURRENT and {files} files of a checkpoint: each flip noticed, the checkpoint before it used"
    return [_row("bit flips in CURRENT, weights, manifest …", (files + 1) * dose, held, broken, began)]


def flip_ledger(*, dose: int) -> list[Row]:
    """Flip a bit in the DuckDB file, its write-ahead log and a Parquet segment, so often in each; return a row each.

    What is read after is what was written, or an error; then the ledger is built anew and is the one that it was.
    """
    rows = []
    with tempfile.TemporaryDirectory(prefix="searchloop-flips-") as scratch:
        folder = Path(scratch) / "whole"
        made = subprocess.run([sys.executable, "-m", "tests.faults.damage", str(folder)], check=False)
        assert made.returncode == -signal.SIGKILL
        true = read(folder)
        (segment,) = find_segments(folder / ARCHIVE)
        for file, name in (
            (LEDGER, "the DuckDB file"),
            (f"{LEDGER}.wal", "DuckDB's write-ahead log"),
            (str(segment.relative_to(folder)), "a Parquet segment"),
        ):
            rows.append(_flip_and_mend(folder, file, name, true, dose))
    return rows


def _flip_and_mend(folder: Path, file: str, name: str, true: tuple[dict[str, str], list[Received]], dose: int) -> Row:
    began, chance = time.monotonic(), random.Random(0)
    seen: Counter[str] = Counter()
    broken: list[str] = []
    whole = (folder / file).read_bytes()
    harmed = folder.with_name("harmed")
    for _ in range(dose):
        shutil.rmtree(harmed, ignore_errors=True)
        shutil.copytree(folder, harmed)
        place = _flip(harmed / file, whole, chance)
        try:
            said = read(harmed)
        except (StorageError, duckdb.Error):
            seen["noticed"] += 1
        else:
            seen["harmless"] += said == true
            if said != true:
                broken.append(f"bit {place} of {file} flipped: other rows were read, without an error")
        if file.startswith(ARCHIVE):
            continue  # A segment comes back from a copy; there is nothing else to build it from.
        try:
            rebuild_ledger(harmed)
            with Sink(harmed / LEDGER, SETTINGS) as sink:
                sink.write(records())  # Kafka still has what was not archived.
            if read(harmed) != true:
                broken.append(f"bit {place} of {file} flipped: the ledger built anew is another")
        except (StorageError, duckdb.Error) as error:
            broken.append(f"bit {place} of {file} flipped: it could not be built anew: {error}")
    mended = "" if file.startswith(ARCHIVE) else "; built anew each time, with equal hashes"
    held = f"{seen['noticed']} noticed, {seen['harmless']} in bytes that hold nothing{mended}"
    return _row(f"bit flips in {name}", dose, held, broken, began)


def read(folder: Path) -> tuple[dict[str, str], list[Received]]:
    """Return everything that a reader is told: a hash of each table, and every record with its bytes."""
    with open_log(folder) as log:
        return table_hashes(log.connection), list(log.records())


def records() -> list[Received]:
    """Return what the ledger holds."""
    return [record(reward(number), number) for number in range(RECORDS)]


def leave_behind(folder: Path) -> None:
    """Make a ledger with a closed segment and an open write-ahead log, and die in the middle of it."""
    sink = Sink(folder / LEDGER, SETTINGS)
    everything = records()
    sink.write(everything[: RECORDS // 2])
    sink.run(lambda connection: close_segments(connection, sink.archive))
    sink.run(lambda connection: connection.execute("CHECKPOINT"))
    sink.write(everything[RECORDS // 2 :])
    os.kill(os.getpid(), signal.SIGKILL)


def _flip(file: Path, whole: bytes, chance: random.Random) -> int:
    """Write the file with one bit changed, and return which."""
    place = chance.randrange(len(whole) * 8)
    changed = bytearray(whole)
    changed[place // 8] ^= 1 << place % 8
    file.write_bytes(changed)
    return place


def _row(fault: str, dose: int, held: str, broken: list[str], began: float) -> Row:
    return Row(fault=fault, dose=dose, held=held, broken=tuple(broken), seconds=time.monotonic() - began)


if __name__ == "__main__":
    leave_behind(Path(sys.argv[1]))
