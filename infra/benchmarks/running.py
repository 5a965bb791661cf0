"""The run of a row: its script in a process of its own, the values from its JSON line, and kept ones to compare."""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeGuard

import msgspec

from infra.benchmarks.rows import BenchRow
from streams.errors import SearchloopError, SettingsError

ROOT = Path(__file__).resolve().parents[2]  # Of a clone; an installed package has no tests beside it.
WORSE = 0.10


class BenchError(SearchloopError, RuntimeError):
    """A row could not be measured: its peer is missing, or its script failed."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """A row's values: the median of the runs, the lowest and the highest.

    floor: what the row's floor gives in the same unit, if the script measured it. sides: medians of both sides, in
    seconds or in their own unit. load: the machine's average load at the end. day: when it was measured.
    """

    row: str
    value: float
    low: float
    high: float
    runs: int
    unit: str
    goal: float | None
    better: str
    floor: float | None = None
    sides: dict[str, float] = {}
    load: float = 0.0
    processors: int = 0
    day: str = ""

    @property
    def reached(self) -> bool | None:
        """Return whether the goal is reached; None without a goal."""
        if self.goal is None:
            return None
        return self.value <= self.goal if self.better == "lower" else self.value >= self.goal


class Worse(msgspec.Struct, frozen=True, kw_only=True):
    """A row that is worse than its kept value. by: the share, .25 for a quarter worse."""

    row: str
    value: float
    kept: float
    by: float


Say = Callable[[str], None]


def measure(
    rows: Iterable[BenchRow], *, runs: int | None, root: Path = ROOT, say: Say = lambda _: None
) -> tuple[list[Result], dict[str, str]]:
    """Run each row's script; return the results in the rows' order, and by row why another one has none.

    runs: instead of each row's own number. Rows of one script with the same arguments share its run.
    """
    said: dict[tuple[str, ...], dict[str, object] | BenchError] = {}
    results, failed = [], {}
    for row in rows:
        command = row.command(runs)
        if command not in said:
            say(f"{row.name}: {' '.join(command)}")
            try:
                said[command] = _run(command, root)
            except BenchError as error:
                said[command] = error
        found = said[command]
        try:
            if isinstance(found, BenchError):
                raise found
            results.append(read_result(row, found))
        except BenchError as error:
            failed[row.name] = str(error)
    return results, failed


def read_result(row: BenchRow, said: dict[str, object]) -> Result:
    """Return a row's result from its script's JSON line. Raises BenchError if the line has no values of the row."""
    values = _mapping(said, "values").get(row.name)
    if not isinstance(values, list) or not values or not all(_is_number(each) for each in values):
        raise BenchError(f"{row.name}: expected values of this row from {row.script}, got {values!r}")
    floor = _mapping(said, "floors").get(row.name)
    sides = _mapping(_mapping(said, "sides"), row.name)
    return Result(
        row=row.name,
        value=_rounded(statistics.median(values)),
        low=_rounded(min(values)),
        high=_rounded(max(values)),
        runs=len(values),
        unit=row.unit,
        goal=row.goal,
        better=row.better,
        floor=_rounded(floor) if _is_number(floor) else None,
        sides={name: _rounded(each) for name, each in sides.items() if _is_number(each)},
        load=round(os.getloadavg()[0], 1),
        processors=os.cpu_count() or 0,
        day=datetime.now(UTC).date().isoformat(),
    )


def read_results(path: Path) -> list[Result]:
    """Return the results in a file that `--json` wrote. Raises SettingsError if it is not one."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[Result])
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path}: expected results that searchloop bench --json wrote, {error}") from error


def worse(now: Sequence[Result], kept: Sequence[Result]) -> list[Worse]:
    """Return the rows that are at least `WORSE` worse than their kept value; a row without one is left out.

    A share that is lost may be kept as 0 or less: whatever is worse than 0 is infinitely worse.
    """
    before = {result.row: result.value for result in kept}
    found = []
    for result in now:
        was = before.get(result.row)
        if was is None:
            continue
        lost = result.value - was if result.better == "lower" else was - result.value
        by = lost / abs(was) if was else math.copysign(math.inf, lost) if lost else 0.0
        if by >= WORSE:
            found.append(Worse(row=result.row, value=result.value, kept=was, by=round(by, 3)))
    return found


def _run(command: Sequence[str], root: Path) -> dict[str, object]:
    script = root / command[0]
    if not script.is_file():
        raise BenchError(
            f"expected the row's peer in {script}, found none. Needs the peer: clone the repository, run make setup "
            "there, and call its searchloop"
        )
    done = subprocess.run(
        [sys.executable, str(script), *command[1:]],
        capture_output=True,
        text=True,
        cwd=root,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)},
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        try:
            said = json.loads(lines[-1])
        except ValueError:
            said = None
        if isinstance(said, dict):
            return said
    if "ModuleNotFoundError" in done.stderr:
        missing = done.stderr.strip().splitlines()[-1]
        raise BenchError(f"{command[0]} needs the peer: make setup ({missing})")
    reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    raise BenchError(f"{command[0]} ended with status {done.returncode}, expected a JSON line: {reason[:500]}")


def _mapping(said: dict[str, object], name: str) -> dict[str, object]:
    found = said.get(name)
    return found if isinstance(found, dict) else {}


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
