"""`searchloop alerts`: the states of a run's alert rules, silences, and the back-test of rules on a logged window."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from infra.app.app import App
from infra.app.home import RunFolder
from infra.commands.times import moment_ms
from infra.monitoring.alert_settings import AlertTable
from storage.reports.text import printable
from streams.clock import now_ms
from streams.errors import SettingsError

if TYPE_CHECKING:
    from storage.monitor.alert_states import AlertState
    from storage.monitor.backtesting import Backtest
    from storage.monitor.figures import Point
    from storage.monitor.rules import AlertRule

STYLES = {"firing": "red", "recovered": "yellow", "no data": "dim", "silenced": "blue", "ok": "green"}
CHANGES_SHOWN = 40
DURATION = re.compile(r"\d+(?:\.\d+)?[smhd]")


@click.group()
def alerts() -> None:
    """Show which alert rules fire in a run, silence a rule, and test rules on a logged window.

    \b
    Example:
      searchloop alerts list --run leser-shop-0
      searchloop alerts silence entropy --for 2h --run leser-shop-0
      searchloop alerts backtest --run leser-shop-0 --labels faults.toml
    """


@alerts.command(name="list")
@click.option("--run", "name", required=True, help="Name of the run.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array on standard output.")
@click.pass_obj
def list_alerts(app: App, name: str, as_json: bool) -> None:
    """List every alert rule with its state in a run, computed from the run's log alone.

    \b
    States: ok, firing, recovered (for an hour), no data, silenced. A rule that fires comes with the query for the rows
    behind it, which runs on the run's ledger. While a sink is running, the newest minute is missing.

    \b
    Example:
      searchloop alerts list --run leser-shop-0
    """
    from infra.monitoring.alert_files import read_silences
    from storage.monitor.alert_states import standing
    from storage.monitor.backtesting import backtest

    run_dir = app.home.existing_run(name)
    rules = _rules(app)
    figures = _figures(run_dir)
    before = backtest(figures, rules).last
    found = standing(figures, before, rules, read_silences(run_dir), now_ms=now_ms())
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
        return
    console = Console(soft_wrap=True)
    table = Table("rule", "state", "since", "what")
    for each in found:
        until = f" until {_time(each.until_ms)}" if each.until_ms else ""
        table.add_row(
            Text(printable(each.rule)),
            Text(each.state + until, style=STYLES[each.state]),
            _time(each.since_ms) if each.state != "no data" else "-",
            Text(printable(each.says)),
        )
    console.print(table)
    for each in found:
        if each.state == "firing":
            console.print(Text(printable(f"{each.rule}: {each.says}. {each.hint}"), style="bold"))
            console.print(Text(f"  rows: {printable(each.sql)}"))
    console.print(_counts(found))


@alerts.command()
@click.argument("rule")
@click.option("--run", "name", required=True, help="Name of the run.")
@click.option("--for", "duration", help="How long the rule tells nobody: 90s, 30m, 2h, 3d.")
@click.option("--end", is_flag=True, help="End the rule's silence now.")
@click.pass_obj
def silence(app: App, rule: str, name: str, duration: str | None, end: bool) -> None:
    """Let a rule tell nobody for some time, in one run. It is still judged, and `alerts list` shows it as silenced.

    \b
    Example:
      searchloop alerts silence entropy --for 2h --run leser-shop-0
      searchloop alerts silence entropy --end --run leser-shop-0
    """
    from infra.monitoring.alert_files import write_silence
    from storage.monitor.alert_states import Silence

    if (duration is None) == (not end):
        raise click.UsageError("expected one of --for and --end")
    if duration is not None and not DURATION.fullmatch(duration):
        raise SettingsError(f"--for: expected a duration such as 90s, 30m, 2h or 3d, got {duration!r}")
    run_dir = app.home.existing_run(name)
    known = [each.name for each in _rules(app)]
    if rule not in known:
        raise SettingsError(f"RULE: expected one of {', '.join(known)}, got {rule!r}")
    now = now_ms()
    until = now if duration is None else 2 * now - moment_ms(duration, now_ms=now, option="--for")
    write_silence(run_dir, Silence(rule=rule, until_ms=until), now_ms=now)
    click.echo(f"{rule}: silenced until {_time(until)}" if duration is not None else f"{rule}: no longer silenced")


@alerts.command(name="backtest")
@click.option("--run", "name", required=True, help="Name of the run.")
@click.option("--from", "since", default="", help="Begin of the window: 2026-01-31T08:00, 2h, 3d. Default: the log's.")
@click.option("--until", default="", help="End of the window: 2026-01-31T09:00, 1h. Default: the log's.")
@click.option("--labels", type=click.Path(path_type=Path), help="TOML or JSON file that says when something was wrong.")
@click.option(
    "--rules", "rules_file", type=click.Path(path_type=Path), help="TOML file of rules over the built-in ones."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
@click.pass_obj
def backtest_rules(
    app: App, name: str, since: str, until: str, labels: Path | None, rules_file: Path | None, as_json: bool
) -> None:
    """Print what the alert rules would have said of a logged window, and when.

    \b
    With --labels: hits, misses, false alarms a day and the time to detection. The file holds a table for each fault:
      [[fault]]
      name = "search was slow"
      from = 2026-01-31T08:00:00Z
      until = 2026-01-31T09:00:00Z
      rules = ["search"]              # may be left out: then any rule counts

    \b
    Example:
      searchloop alerts backtest --run leser-shop-0
      searchloop alerts backtest --run leser-shop-0 --from 3h --labels faults.toml --rules mine.toml
    """
    from infra.monitoring.alert_files import read_labels
    from storage.monitor.backtesting import backtest

    run_dir = app.home.existing_run(name)
    rules = _rules(app, rules_file)
    known = read_labels(labels, rules=[rule.name for rule in rules]) if labels is not None else []
    now = now_ms()
    from_ms = moment_ms(since, now_ms=now, option="--from") if since else None
    until_ms = moment_ms(until, now_ms=now, option="--until") if until else None
    if from_ms is not None and until_ms is not None and until_ms < from_ms:
        raise SettingsError(f"--until: expected a time after --from {since}, got {until}")
    found = backtest(_figures(run_dir), rules, labels=known, from_ms=from_ms, until_ms=until_ms)
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
        return
    print_backtest(found, labelled=labels is not None, console=Console(soft_wrap=True))


def print_backtest(found: Backtest, *, labelled: bool, console: Console) -> None:
    """Print the changes of a back-test and, with labels, its score."""
    changes = [each for each in found.transitions if "firing" in (each.before, each.state)]
    table = Table("time", "rule", "change", "what")
    for each in changes[:CHANGES_SHOWN]:
        table.add_row(
            _time(each.at_ms),
            Text(printable(each.rule)),
            Text(f"{each.before} → {each.state}", style=STYLES[each.state]),
            Text(printable(each.says)),
        )
    if changes:
        console.print(table)
    if len(changes) > CHANGES_SHOWN:
        console.print(f"… and {len(changes) - CHANGES_SHOWN} more: see --json")
    fired = sum(each.state == "firing" for each in changes)
    console.print(f"window {_time(found.from_ms)} to {_time(found.until_ms)}: {fired} alerts", highlight=False)
    if not labelled:
        return
    for result in found.labels:
        said = "missed"
        if result.rule:
            steps = "" if result.steps is None else f", {result.steps} versions"
            said = f"found by {result.rule} after {result.seconds:.0f} s{steps}"
        console.print(Text(printable(f"{result.label.fault}: {said}"), style="green" if result.rule else "red"))
    rate = found.false_alarms_a_day
    median = "-" if found.seconds_median is None else f"{found.seconds_median:.0f} s"
    console.print(
        f"hits {found.hits}, misses {len(found.labels) - found.hits}, false alarms {len(found.false_alarms)} in "
        f"{found.days:.2f} days without a fault ({'-' if rate is None else f'{rate:.2f}'} a day), "
        f"median time to detection {median}",
        highlight=False,
    )


def _rules(app: App, path: Path | None = None) -> tuple[AlertRule, ...]:
    from infra.monitoring.alert_files import alert_rules

    return alert_rules(app.tables(AlertTable).alerts, path)


def _figures(run_dir: RunFolder) -> dict[str, list[Point]]:
    from infra.monitoring.alert_files import staleness_limit
    from storage.log import open_log
    from storage.monitor.ledger_figures import ledger_figures

    with open_log(run_dir) as log:
        if log.live:
            click.echo("a sink is running: the newest minute is missing", err=True)
        return ledger_figures(log, staleness_max=staleness_limit(run_dir))


def _counts(found: Sequence[AlertState]) -> str:
    counts = {name: sum(each.state == name for each in found) for name in STYLES}
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)


def _time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000).astimezone().strftime("%Y-%m-%d %H:%M:%S")
