"""`searchloop bench`: our speed beside that of a peer, row by row."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.table import Table

from infra.benchmarks.rows import ROWS, chosen
from infra.benchmarks.running import Result, measure, read_results, worse
from streams.whole_file import write_file


@click.command()
@click.option("--list", "only_list", is_flag=True, help="List the rows with their peers and goals; measure nothing.")
@click.option("--row", "names", multiple=True, metavar="NAME", help="Row to measure; repeatable. Default: all rows.")
@click.option("--runs", type=click.IntRange(min=1), help="Runs of each side. Default: the row's own number.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="File for the results as JSON.")
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    help="Results of an earlier --json. Rows that are 10 % worse are reported, and the exit status is then 1.",
)
def bench(
    only_list: bool, names: tuple[str, ...], runs: int | None, json_file: Path | None, against: Path | None
) -> None:
    """Measure our speed beside a peer's, both sides in turn, on this machine.

    \b
    Compare ratios, not seconds, and keep the machine quiet. The peers are scripts of the repository, so a row needs a
    clone with `make setup`. Rows with the whole loop start services of their own, and take minutes.

    \b
    Example:
      searchloop bench --list
      searchloop bench --row learner-step --row sink --json now.json
      searchloop bench --against infra/benchmarks/kept.json
    """
    rows = chosen(names)
    if only_list:
        for row in rows:
            sign = "≤" if row.better == "lower" else "≥"
            goal = "" if row.goal is None else f" (goal {sign} {row.goal:g} {row.unit})"
            click.echo(f"{row.name}: {row.what}; against {row.peer}{goal}")
        return
    kept = read_results(against) if against is not None else []
    results, failed = measure(rows, runs=runs, say=lambda line: click.echo(line, err=True))
    show(results)
    if json_file is not None:
        write_file(json_file, msgspec.json.format(msgspec.json.encode(results)) + b"\n")
    for name, reason in failed.items():
        click.echo(f"{name}: not measured: {reason}", err=True)
    lost = worse(results, kept)
    for each in lost:
        by = f"{each.by:.0%} " if each.kept else ""
        click.echo(f"{each.row}: {each.value:g} is {by}worse than the kept {each.kept:g}", err=True)
    if lost or failed:
        raise SystemExit(1)


def show(results: list[Result]) -> None:
    """Print the results as a table."""
    rows = {row.name: row for row in ROWS}
    shown = Table("row", "median", "lowest", "highest", "runs", "goal", "floor", "against", title="bench")
    for result in results:
        sign = "≤" if result.better == "lower" else "≥"
        goal = "" if result.goal is None else f"{sign} {result.goal:g}{'' if result.reached else ', missed'}"
        floor = "" if result.floor is None else f"{result.floor:g}"
        figures = (f"{result.value:g}", f"{result.low:g}", f"{result.high:g}", str(result.runs))
        shown.add_row(result.row, *figures, goal, floor, rows[result.row].peer)
    Console().print(shown)
