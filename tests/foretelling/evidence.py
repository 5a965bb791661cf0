"""One part of the evidence: a table with its command, as JSON and as Markdown."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
from scipy.stats import beta

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[2] / "infra" / "EVIDENCE.md"
BEGIN, END = "<!-- {}: this table is generated -->", "<!-- end of {} -->"


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """A table. notes: lines below it: seeds, intervals, controls, and what differs from a published setting."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]

    @property
    def markdown(self) -> str:
        """The table as Markdown, with its command and notes."""
        lines = [
            "| " + " | ".join(self.columns) + " |",
            "|" + " --- |" * len(self.columns),
            *("| " + " | ".join(row) + " |" for row in self.rows),
            "",
            *(f"{note}  " for note in self.notes[:-1]),
            *self.notes[-1:],
            f"`python -m tests.foretelling {self.name}`",
        ]
        return "\n".join(lines).replace(self.notes[-1] + "\n", self.notes[-1] + "  \n") + "\n"


def keep(found: Evidence) -> None:
    """Write the result of a part to its file."""
    RESULTS.mkdir(exist_ok=True)
    content = msgspec.json.format(msgspec.json.encode(found), indent=1)
    (RESULTS / f"{found.name}.json").write_bytes(content + b"\n")


def kept() -> list[Evidence]:
    """Return every kept result, in the order of names."""
    return [msgspec.json.decode(path.read_bytes(), type=Evidence) for path in sorted(RESULTS.glob("*.json"))]


def with_tables(page: str) -> str:
    """Return the page with the tables of the kept results between their comments.

    Raises ValueError if the page has no place for a table.
    """
    for each in kept():
        begin, end = BEGIN.format(each.name), END.format(each.name)
        if page.count(begin) != 1 or page.count(end) != 1:
            raise ValueError(f"{PAGE}: expected the lines {begin!r} and {end!r} once each; add them")
        before, rest = page.split(begin)
        page = before + begin + "\n" + each.markdown + end + rest.split(end)[1]
    return page


def listed(seeds: tuple[int, ...]) -> str:
    """Return seeds as text."""
    return ", ".join(map(str, seeds))


def exact_interval(successes: int, trials: int) -> tuple[float, float]:
    """Return the 95 % interval of a share (Clopper and Pearson, 1934)."""
    low = float(beta.ppf(0.025, successes, trials - successes + 1)) if successes else 0.0
    high = float(beta.ppf(0.975, successes + 1, trials - successes)) if successes < trials else 1.0
    return low, high


def share(successes: int, trials: int) -> str:
    """Return a share with its interval, in percent."""
    low, high = exact_interval(successes, trials)
    return f"{100 * successes / trials:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def mean_of(values: object, digits: int = 3, samples: int = 2_000) -> str:
    """Return a mean with its bootstrap interval."""
    found = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(0).integers(len(found), size=(samples, len(found)))
    low, high = np.percentile(found[draws].mean(axis=1), [2.5, 97.5])
    return f"{found.mean():.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
