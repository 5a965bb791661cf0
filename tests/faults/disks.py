"""A disk that fills up under the ledger, the archive or a checkpoint: a clear error, and what was there before loads.

Each kind writes in a process of its own until nothing more fits, says what it was told, makes room, and goes on.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from learner.checkpoints import CheckpointError, Manifest, load_current
from learner.learning import write_policy_checkpoint
from learner.policy import Policy, build_tiny
from learner.policy_settings import TinySettings
from storage.archive import ARCHIVE, ArchiveSettings
from storage.errors import StorageError
from storage.ledger import LEDGER
from storage.log import open_log
from storage.sink import Sink, SinkSettings
from streams.events import PolicyRef
from tests.faults.results import Row
from tests.small_disk import on_small_disk
from tests.stored_events import record, reward

ROOT = Path(__file__).parents[2]
BATCH = 64
RECORDS_MAX = 40_000
BALLAST_MIB = 4  # DuckDB folds its write-ahead log into the file before it takes the next batch.
KINDS = {"ledger": "the DuckDB file", "archive": "the Parquet archive", "checkpoint": "a checkpoint"}
# A first segment, checkpoint or ledger has to fit beside the ballast.
SIZES_MIB = {"ledger": range(9, 17), "archive": range(5, 13), "checkpoint": range(8, 16)}


def fill_disks() -> list[Row]:
    """Fill disks of eight sizes under each kind; return a row for each kind."""
    return [_filled(kind, sizes) for kind, sizes in SIZES_MIB.items()]


def fill_disk(kind: str, mib: int) -> str:
    """Fill a disk of this size under one kind; return what did not hold, or nothing."""
    with tempfile.TemporaryDirectory(prefix="searchloop-full-") as scratch:
        small = Path(scratch) / ARCHIVE if kind == "archive" else Path(scratch)
        small.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "tests.faults.disks", kind, scratch]
        ended = subprocess.run(
            on_small_disk(small, mib, command), cwd=ROOT, capture_output=True, text=True, check=False
        )
    return "" if ended.returncode == 0 else f"{kind} on {mib} MiB: {(ended.stdout + ended.stderr).strip()[-300:]}"


def _filled(kind: str, sizes: range) -> Row:
    began = time.monotonic()
    broken = tuple(said for mib in sizes if (said := fill_disk(kind, mib)))
    held = f"{len(sizes) - len(broken)} of {len(sizes)}: a clear error, the state before loads, goes on with room"
    return Row(
        fault=f"disk full under {KINDS[kind]}",
        dose=len(sizes),
        held=held,
        broken=broken,
        seconds=time.monotonic() - began,
    )


def write_log(folder: Path, ballast: Path, *, archive: bool) -> None:
    """Store rewards until the disk is full, make room, and store the rest; then every one of them is there once."""
    settings = SinkSettings(
        batch_records_max=BATCH,
        archive=ArchiveSettings(segment_mib_max=1, segment_seconds_max=0.01 if archive else 1e6),
    )
    sink = Sink(folder / LEDGER, settings)
    stored = 0
    try:
        for first in range(0, RECORDS_MAX, BATCH):
            sink.write([record(reward(number), number) for number in range(first, first + BATCH)])
            stored = first + BATCH
        raise SystemExit("the disk never filled up")
    except StorageError as error:
        if "disk is full" not in str(error):
            raise SystemExit(f"it said only: {error}") from error
    finally:
        with contextlib.suppress(StorageError):  # The disk is still full, and closing says so once more.
            sink.close()
    ballast.unlink()
    with Sink(folder / LEDGER, settings) as again:
        start = again.positions()["test.rewards", 0]
        if start not in (stored, stored + BATCH):  # The batch that failed may be durable all the same.
            raise SystemExit(f"{stored} records were promised, {start} are there")
        again.write([record(reward(number), number) for number in range(start - 10, start + BATCH)])
    with open_log(folder) as log:
        (row,) = log.rows("SELECT count(*) AS n, count(DISTINCT record_offset) AS d FROM rewards")
        kept = sum(1 for _ in log.records())
    if not row["n"] == row["d"] == kept == start + BATCH:
        raise SystemExit(f"expected {start + BATCH} rows and records, found {row} and {kept}")


def write_checkpoints(folder: Path, ballast: Path) -> None:
    """Write checkpoints until the disk is full: the one before is loaded; with room the next one is written."""
    policy = build_tiny(["red patch cable"] * 4, TinySettings(vocabulary_size=300, layers=1))
    root = folder / "checkpoints"
    step = 0
    try:
        for step in range(1000):
            _write(policy, root, step)
        raise SystemExit("the disk never filled up")
    except CheckpointError as error:
        if "the disk is full" not in str(error):
            raise SystemExit(f"it said only: {error}") from error
    if step == 0 or load_current(root)[1].policy.step != step - 1:
        raise SystemExit(f"checkpoint {step} did not fit, and {step - 1} is not the one that is loaded")
    ballast.unlink()
    _write(policy, root, step)
    if load_current(root)[1].policy.step != step:
        raise SystemExit(f"checkpoint {step} is not the one that is loaded")


def _write(policy: Policy, root: Path, step: int) -> None:
    manifest = Manifest(policy=PolicyRef(lineage="1-full", step=step, sha256=""), parent=None)
    write_policy_checkpoint(root, policy, manifest, None)


def main() -> None:
    """Be the process that writes: of a kind, in a folder."""
    kind, folder = sys.argv[1], Path(sys.argv[2])
    ballast = (folder / ARCHIVE if kind == "archive" else folder) / "ballast"
    ballast.write_bytes(b"\x01" * (BALLAST_MIB << 20))
    if kind == "checkpoint":
        write_checkpoints(folder, ballast)
    else:
        write_log(folder, ballast, archive=kind == "archive")


if __name__ == "__main__":
    main()
