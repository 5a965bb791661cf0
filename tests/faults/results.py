"""What came of each fault: kept line by line, so that a stopped driver goes on where it was, and shown as one table."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Generic, TypeVar

import msgspec
from rich.table import Table

T = TypeVar("T", bound=msgspec.Struct)


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One fault, how often it was done, and what came of it.

    lost, double: findings of the proof that say so; None where there is no run to prove. equal: whether the run could
    be made again bit-equal. recovery_seconds: from the fault to the first durable work of the stage that it hit. held:
    what was looked at. broken: what did not hold.
    """

    fault: str
    dose: int
    lost: int | None = None
    double: int | None = None
    equal: bool | None = None
    recovery_seconds: tuple[float, ...] = ()
    held: str = ""
    broken: tuple[str, ...] = ()
    seconds: float = 0.0


class Journal(Generic[T]):
    """Structs in a file, one on a line; what was added is there after a crash."""

    def __init__(self, path: Path, kind: type[T]) -> None:
        self._path = path
        self._kind = kind

    def read(self) -> list[T]:
        """Return everything added so far, in order; a last line that was cut off does not count."""
        lines = self._path.read_bytes().splitlines(keepends=True) if self._path.exists() else []
        return [msgspec.json.decode(line, type=self._kind) for line in lines if line.endswith(b"\n")]

    def add(self, entry: T) -> None:
        """Add one."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode(entry) + b"\n")


def quantile(values: tuple[float, ...], share: float) -> float:
    """Return the smallest value that at least this share of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(-int(-len(ordered) * share // 1) - 1, 0)]


def table(rows: list[Row]) -> Table:
    """Return all rows as a table."""
    shown = Table("fault", "dose", "lost", "double", "bit-equal", "recovery p50 / p95", "held", "broken", "wall")
    for row in rows:
        shown.add_row(*cells(row))
    return shown


def markdown(rows: list[Row]) -> str:
    """Return all rows as a table for a Markdown page."""
    head = "| fault | dose | lost | double | bit-equal | recovery p50 / p95 | held | broken | wall |"
    lines = [head, "|---" * head.count(" |") + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(cells(row))} |" for row in rows)])


def cells(row: Row) -> list[str]:
    """Return a row as texts; a dash stands where there is nothing to say."""
    times = row.recovery_seconds
    return [
        row.fault,
        str(row.dose),
        "–" if row.lost is None else str(row.lost),
        "–" if row.double is None else str(row.double),
        "–" if row.equal is None else "yes" if row.equal else "no",
        f"{statistics.median(times):.1f} / {quantile(times, 0.95):.1f} s" if times else "–",
        row.held,
        "; ".join(row.broken) or "nothing",
        f"{row.seconds:.0f} s",
    ]
