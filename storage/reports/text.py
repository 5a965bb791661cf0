"""The report for a terminal: the page's first sections, as tables. Text from outside is never read as markup."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from rich.console import Console
from rich.table import Table
from rich.text import Text

from storage.evaluation.comparison import Interval
from storage.evaluation.tables import Evaluation
from storage.reports.report import Report
from storage.reports.result import result_lines
from storage.reports.versions import VersionRow

VERSIONS_SHOWN = 12
BARS = "▁▂▃▄▅▆▇█"


def print_report(report: Report, console: Console) -> None:
    """Print the report."""
    console.print(Text(f"run {printable(report.run)}", style="bold"))
    if report.live:
        console.print("[yellow]the run is still going: this report lacks its newest minute[/yellow]")
    rewards = [version.reward for version in report.versions if version.reward is not None]
    if rewards:
        console.print(f"reward by version  {_spark(rewards)}  {rewards[0]:.3f} → {rewards[-1]:.3f}")
    else:
        console.print("no group has been rewarded yet")
    _print_versions(report.versions, console)
    if report.lag:
        console.print(
            f"updates {len(report.updates)}; staleness p50 {report.lag.get('p50', 0):g}, "
            f"p95 {report.lag.get('p95', 0):g}, max {report.lag.get('max', 0):g} versions"
        )
    for name, evaluation in report.evaluations.items():
        _print_evaluation(name, evaluation, console)
    table = Table("split", "candidates", "scored", "failed", "expired", "waiting", "most uses", title="outcomes")
    for row in report.accounting:
        counts = (row.candidates, row.scored, row.failed, row.expired, row.waiting, row.uses_max)
        table.add_row(Text(printable(row.split)), *(f"{count:,}" for count in counts))
    if report.accounting:
        console.print(table)
    if report.dead_letters:
        counts_ = ", ".join(f"{printable(stage)} {count:g}" for stage, count in report.dead_letters.items())
        console.print(Text(f"dead letters: {counts_}", style="yellow"))
        for letter in report.letters[:3]:
            console.print(Text(f"  {letter.topic}/{letter.partition}@{letter.offset}: {printable(letter.error)[:200]}"))
    else:
        console.print("dead letters: none")
    for alert in report.alerts:
        console.print(Text(f"alert: {printable(alert.name)}: {printable(alert.what)}", style="yellow"))
    console.print(Text(f"result: {printable(result_lines(report).headline)}", style="bold"))


def printable(text: str) -> str:
    """Return text without characters that could steer a terminal."""
    return "".join(c if c.isprintable() else " " for c in text)


def _print_versions(versions: Sequence[VersionRow], console: Console) -> None:
    if not versions:
        return
    table = Table("step", "lineage", "groups", "reward", "best", "valid", "flat", "expansions")
    step = max(1, -(-len(versions) // VERSIONS_SHOWN))
    shown = [row for number, row in enumerate(versions) if number % step == 0 or number == len(versions) - 1]
    for row in shown:
        table.add_row(
            str(row.step),
            Text(printable(row.lineage)),
            str(row.groups),
            "–" if row.reward is None else f"{row.reward:.3f} ± {row.reward_error or 0:.3f}",
            _number(row.best, ".3f"),
            _number(row.valid, ".1%"),
            _number(row.flat, ".1%"),
            _number(row.expansions, ".1f"),
        )
    console.print(table)


def _print_evaluation(name: str, evaluation: Evaluation, console: Console) -> None:
    measures = evaluation.measures
    table = Table("run", *measures, title=Text(f"evaluation {printable(name)}: {evaluation.queries} queries"))
    for run in evaluation.runs:
        table.add_row(Text(printable(run.name)), *(Text(_interval(run.measures.get(measure))) for measure in measures))
    console.print(table)
    if evaluation.believed and evaluation.believed.line:
        console.print(Text(printable(evaluation.believed.line)))


def _interval(interval: Interval | None) -> str:
    if interval is None or interval.value is None or interval.low is None or interval.high is None:
        return "–"
    return f"{interval.value:.4f} [{interval.low:.4f}, {interval.high:.4f}]"


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _spark(values: Sequence[float], width: int = 40) -> str:
    """Return the values as bars; more than `width` values are averaged with their neighbors."""
    count = min(width, len(values))
    edges = [round(part * len(values) / count) for part in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    if high == low:
        return BARS[3] * count
    return "".join(BARS[min(int((mean - low) / (high - low) * len(BARS)), len(BARS) - 1)] for mean in means)
