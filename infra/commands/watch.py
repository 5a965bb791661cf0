"""`searchloop watch`: the progress of a run, in the terminal."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import click
import msgspec
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from infra.app.app import App
from infra.app.home import RunFolder
from infra.app.interrupts import interrupts
from storage.monitor.view import VersionLine, View
from storage.reports.text import printable
from streams.stopping import Stop

if TYPE_CHECKING:
    from infra.monitoring.watching import Watcher

VERSIONS_SHOWN = 12
REFRESH_SECONDS = 1.0
STATE_STYLES = {"stalled": "red", "unknown": "yellow", "stopped": "yellow"}


@click.command()
@click.option("--run", "name", required=True, help="Name of the run.")
@click.option("--once", is_flag=True, help="Show the run once, as soon as everything in the log is counted, and end.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line on standard output.")
@click.pass_obj
def watch(app: App, name: str, once: bool, as_json: bool) -> None:
    """Show the progress of a run: its state; reward, spread, validity and staleness by policy version; lags, dead
    letters and alerts.

    \b
    `watch` reads the windows that a monitor publishes. If no monitor is running, `watch` starts one and stops it at the
    end. The run depends on neither, so you can stop or kill both at any time. Ctrl-C ends `watch`.

    \b
    Example:
      searchloop watch --run leser-shop-0
      searchloop watch --run leser-shop-0 --once --json
    """
    from infra.monitoring.watching import Watcher, monitored, wait_until_read

    run_dir = app.home.existing_run(name)
    app = app.at(app.local_services().endpoints())
    console = Console(soft_wrap=True) if once else Console()
    watcher = Watcher(app, name, reads_log=not once)
    stop = Stop()
    try:
        # kafka-python 3.0 swallows exceptions that a signal handler raises while it polls; a flag is not lost.
        with interrupts(stop), monitored(app, name) as process:
            if process is not None:
                click.echo(f"started a monitor of run {name} until this command ends (pid {process.pid})", err=True)
            if once:
                wait_until_read(watcher, process, run_dir, stop)
                _show(watcher.view(), console, as_json=as_json)
            elif as_json:
                while not stop():
                    _refresh(watcher, process, run_dir)
                    _show(watcher.view(), console, as_json=True)
            else:
                with Live(console=console, auto_refresh=False) as live:
                    while not stop():
                        live.update(render(watcher.view()), refresh=True)
                        _refresh(watcher, process, run_dir)
    finally:
        watcher.close()
    if stop():
        raise KeyboardInterrupt


def _refresh(watcher: Watcher, process: subprocess.Popen[bytes] | None, run_dir: RunFolder) -> None:
    from infra.monitoring.watching import check_alive

    check_alive(process, run_dir)
    watcher.read(wait_seconds=REFRESH_SECONDS)


def _show(view: View, console: Console, *, as_json: bool) -> None:
    if as_json:
        click.echo(msgspec.json.encode(view).decode())
    else:
        console.print(render(view))


def render(view: View) -> RenderableType:
    """Return the view for a terminal. Names from the log are shown literally, never as markup."""
    wanted = f" of {view.updates_wanted}" if view.updates_wanted else ""
    lag = "-" if view.policy_lag is None else str(view.policy_lag)
    head = Text(
        f"run {printable(view.run)}: {view.updates_done}{wanted} updates, policy {printable(view.policy) or '-'}",
        "bold",
    )
    counts = Text(
        f"policy lag {lag}; records to read: " + ", ".join(f"{item.stage} {item.records:,}" for item in view.lags)
    )
    stands = Text(f"{view.state.state}: {printable(view.state.says)}", STATE_STYLES.get(view.state.state, ""))
    return Group(head, stands, counts, _versions(view), _dead(view), *_alerts(view))


def _versions(view: View) -> Table:
    table = Table(box=None, header_style="bold")
    for title in (
        "policy",
        "groups",
        "reward",
        "spread",
        "flat",
        "valid",
        "no-op",
        "repeats",
        "staleness",
        "p95",
        "expired",
    ):
        table.add_column(title, justify="left" if title == "policy" else "right")
    for line in view.versions[-VERSIONS_SHOWN:]:
        table.add_row(Text(printable(f"{line.lineage}-{line.step:06d}")), *_cells(line))
    return table


def _cells(line: VersionLine) -> list[str]:
    return [
        f"{line.groups:,}",
        _number(line.reward_mean, ".3f"),
        _number(line.reward_std, ".3f"),
        _number(line.flat_share, ".0%"),
        _number(line.valid_share, ".0%"),
        _number(line.unchanged_share, ".0%"),
        _number(line.repeat_share, ".0%"),
        _number(line.staleness_mean, ".2f"),
        _number(line.staleness_p95, "d"),
        f"{line.expired:,}",
    ]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _dead(view: View) -> Text:
    letters = ", ".join(f"{printable(stage)} {count:,}" for stage, count in view.dead_letters.items()) or "none"
    malformed = ", ".join(f"{printable(kind)} {count:,}" for kind, count in view.malformed.items()) or "none"
    return Text(f"dead letters: {letters}; malformed: {malformed}; duplicates {view.duplicates:,}; late {view.late:,}")


def _alerts(view: View) -> list[Text]:
    said = [
        Text(printable(f"{alert.name}: {alert.what}"), "red" if alert.severity == "critical" else "yellow")
        for alert in view.alerts
    ]
    quiet = [f"{each.rule} {each.state}" for each in view.rules if each.state in ("recovered", "silenced")]
    return [*(said or [Text("no alerts", "green")]), *([Text(printable(", ".join(quiet)), "dim")] if quiet else [])]
