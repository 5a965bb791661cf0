"""The table of `searchloop bench` in infra/BENCHMARKS.md, made from the kept results.

Run: python -m infra.benchmarks.page         writes the table between its marks
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from infra.benchmarks.rows import ROWS
from infra.benchmarks.running import Result, read_results

KEPT = Path(__file__).with_name("kept.json")
PAGE = Path(__file__).resolve().parents[1] / "BENCHMARKS.md"
BEGIN, END = "<!-- searchloop bench: begin -->", "<!-- searchloop bench: end -->"


def table(results: Sequence[Result]) -> str:
    """Return the results as a table in Markdown; a row that was not measured says so."""
    found = {result.row: result for result in results}
    lines = [
        "| row | measured | against | median (lowest to highest) | goal | floor, and how it was found | above it |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in ROWS:
        result = found.get(row.name)
        unit = "" if row.unit in ("ratio", "share") else f" {row.unit}"
        sign = "≤" if row.better == "lower" else "≥"
        value, floor = "not measured", row.floor
        if result is not None:
            reached = {True: "", False: ", missed", None: ""}[result.reached]
            value = (
                f"{result.value:g}{unit} ({result.low:g} to {result.high:g}), {result.runs} runs, "
                f"load {result.load:g}, {result.day}{reached}"
            )
            known = result.floor is None or row.floor[0] in ".0123456789"  # Its text names it.
            floor = row.floor if known else f"{result.floor:g}: {row.floor}"
        goal = "–" if row.goal is None else f"{sign} {row.goal:g}{unit}"
        lines.append(f"| {row.name} | {row.what} | {row.peer} | {value} | {goal} | {floor} | {row.above} |")
    return "\n".join(lines)


def with_table(page: str, results: Sequence[Result]) -> str:
    """Return the page with the table between its marks."""
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n\n{table(results)}\n\n{END}{tail}"


def main() -> None:
    """Write the page anew."""
    PAGE.write_text(with_table(PAGE.read_text(), read_results(KEPT)))


if __name__ == "__main__":
    main()
