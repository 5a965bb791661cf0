"""The workers of a run on this machine, from the files that they and their supervisor keep."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import psutil

from infra.app.interrupts import at_hard_end
from storage.monitor.stalls import WorkerFacts
from streams.whole_file import write_file

SUPERVISED = "workers.json"
TOLERANCE_SECONDS = 1.0


class WorkerEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One worker in a file. A pid with its start time is never used again."""

    role: str
    pid: int
    started: float


def write_workers(run_dir: Path, workers: Iterable[tuple[str, int]], *, name: str = SUPERVISED) -> None:
    """Write (role, pid) of running workers into the run's folder. A worker that has died meanwhile is left out."""
    rows = []
    for role, pid in workers:
        with contextlib.suppress(psutil.NoSuchProcess):
            rows.append({"role": role, "pid": pid, "started": psutil.Process(pid).create_time()})
    write_file(run_dir / name, json.dumps(rows).encode())


@contextmanager
def registered(run_dir: Path, role: str, worker: int) -> Iterator[None]:
    """List this process in the run's folder as a worker started by hand, for as long as the block lasts."""
    name = f"workers-{role}-{worker}.json"
    if run_dir.is_dir():  # A missing run is refused where it is opened.
        write_workers(run_dir, [(role, os.getpid())], name=name)

    def forget() -> str:
        (run_dir / name).unlink(missing_ok=True)
        return ""

    try:
        with at_hard_end(forget):
            yield
    finally:
        forget()


def living_workers(runs: Path) -> list[tuple[str, str, int]]:
    """Return (run, role, pid) of every worker that is alive."""
    return [
        (run_dir.name, worker.role, worker.pid)
        for run_dir in sorted({file.parent for file in runs.glob("*/workers*.json")})
        for worker in known_workers(run_dir)
        if worker.state != "dead"
    ]


def known_workers(run_dir: Path) -> list[WorkerFacts]:
    """Return the workers in a run's files, dead ones included: their entries are still there."""
    return [_seen(row) for file in sorted(run_dir.glob("workers*.json")) for row in _rows(file)]


def supervised_roles(run_dir: Path) -> set[str]:
    """Return the roles that a supervisor keeps alive; empty if none is at work."""
    return {row.role for row in _rows(run_dir / SUPERVISED)}


def _rows(file: Path) -> list[WorkerEntry]:
    try:
        return msgspec.json.decode(file.read_bytes(), type=list[WorkerEntry])
    except (FileNotFoundError, msgspec.DecodeError):
        return []


def _seen(row: WorkerEntry) -> WorkerFacts:
    facts = WorkerFacts(role=row.role, pid=row.pid, started_ms=int(row.started * 1000), state="dead")
    try:
        process = psutil.Process(row.pid)
        status = process.status()
        if abs(process.create_time() - row.started) >= TOLERANCE_SECONDS or status == psutil.STATUS_ZOMBIE:
            return facts
    except psutil.NoSuchProcess:
        return facts
    frozen = status in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
    return msgspec.structs.replace(facts, state="stopped" if frozen else "alive")
