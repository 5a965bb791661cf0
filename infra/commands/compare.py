"""`searchloop compare`: which version people are better served by, from the log alone."""

from __future__ import annotations

import click
import msgspec
from rich import box
from rich.console import Console
from rich.table import Column, Table

from infra.app.app import App
from infra.commands.options import NumberRange
from storage.errors import EvaluationError
from storage.offpolicy.estimators import Estimate
from storage.offpolicy.versions import ESTIMATORS, VersionValue, evaluate_versions
from storage.online.interleaving import Duel, Foretold, foretold, read_duels
from storage.reports.text import printable

HOUR_MS = 3_600_000
WINDOW_HOURS_MAX = 1_000_000  # More than a century.
RAW_NAME = "raw results"


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the log says about versions. left_out: impressions that cannot be used, by the reason."""

    run: str
    impressions: int
    left_out: dict[str, int]
    trouble: str
    versions: list[VersionValue]
    duels: list[Duel]
    foretold: Foretold | None


@click.command()
@click.option("--run", "run_name", default="live", show_default=True, help="Run of the live traffic.")
@click.option(
    "--window",
    type=NumberRange(0.01, WINDOW_HOURS_MAX),
    help="Length of windows of time in hours. Default: all time.",
)
@click.option(
    "--segment",
    type=click.Choice(["all", "traffic", "words", "route"]),
    default="all",
    show_default=True,
    help="Parts of the queries: head and tail by traffic, short and long by words, or as the routes logged them.",
)
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object on standard output.")
@click.pass_obj
def compare(app: App, run_name: str, window: float | None, segment: str, as_json: bool) -> None:
    """Compare policy versions with raw results by what people did, from the run's ledger alone.

    \b
    Two kinds of evidence are shown. Off-policy estimates say what each version would have earned on all logged
    impressions, from the probabilities that the server logged. Interleaved impressions (serve.interleave) say which of
    two rankings people prefer; their intervals hold however often you look. With both, the last line says whether the
    first foretold the second.
    No service is needed. The same ledger gives the same figures.

    \b
    Example:
      searchloop compare --run live
      searchloop compare --run live --segment traffic --window 24
    """
    from storage.log import open_log
    from storage.offpolicy.reading import read_traffic

    with open_log(app.home.existing_run(run_name)) as log:
        traffic = read_traffic(log, run_name, app.settings.utility)
        duels = read_duels(log, run_name)
    trouble, versions = "", []
    try:
        versions = evaluate_versions(traffic, window_ms=int((window or 0) * HOUR_MS), segment=segment)  # type: ignore[arg-type]
    except EvaluationError as error:
        trouble = str(error)
    found = Comparison(
        run=run_name,
        impressions=len(traffic),
        left_out=traffic.left_out,
        trouble=trouble,
        versions=versions,
        duels=duels,
        foretold=foretold(_offline(versions), _online(duels)),
    )
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
    else:
        _show(found)


def _offline(versions: list[VersionValue]) -> dict[str, float]:
    """Return the gain over raw results by version, if the log is not parted."""
    if any(each.part for each in versions):
        return {}
    return {each.policy: each.gains["dr"].value for each in versions if each.gains}


def _online(duels: list[Duel]) -> dict[str, float]:
    """Return by version how much more people prefer it than raw results."""
    return {duel.other: -duel.mean for duel in duels if duel.one == ""}


def _show(found: Comparison) -> None:
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in sorted(found.left_out.items()))
    click.echo(
        f"{found.run}: {found.impressions:,} impressions with propensities"
        + (f"; left out: {left_out}" * bool(left_out))
    )
    console = Console(markup=False)
    if found.trouble:
        click.echo(found.trouble)
    for part in dict.fromkeys(each.part for each in found.versions):
        columns = [
            "version",
            "impressions",
            "matched",
            "ESS",
            "largest weight",
            *(f"{name} gain" for name in ESTIMATORS),
        ]
        table = Table(
            *(Column(name, overflow="fold") for name in columns), box=box.SIMPLE, title=printable(part) or None
        )
        for each in found.versions:
            if each.part == part:
                table.add_row(*_row(each))
        console.print(table)
    if found.duels:
        table = Table(
            "one", "other", "wins", "losses", "ties", "Δ", "95 %, at all times", "people prefer", box=box.SIMPLE
        )
        for duel in found.duels:
            table.add_row(
                _name(duel.one),
                _name(duel.other),
                *(f"{count:,}" for count in (duel.wins, duel.losses, duel.ties)),
                f"{duel.mean:+.3f}",
                f"[{duel.low:+.3f}, {duel.high:+.3f}]",
                "not known yet" if duel.winner is None else _name(duel.winner),
            )
        console.print(table)
    if found.foretold is not None:
        told = found.foretold
        click.echo(
            f"off-policy gains foretold interleaving: Kendall's τ {told.tau:+.2f} [{told.low:+.2f}, {told.high:+.2f}], "
            f"{told.versions} versions"
        )


def _row(each: VersionValue) -> list[str]:
    support = each.support
    cells = [_name(each.policy), f"{each.impressions:,}", f"{support.matched:.0%}", f"{support.ess:,.0f}"]
    cells.append(f"{support.largest:.1%}")
    if each.trouble:
        return [*cells, each.trouble]
    if not each.gains:
        return [*cells, *(f"worth {each.values[name].value:.3f}" for name in ESTIMATORS)]
    return [*cells, *(_interval(each.gains[name]) for name in ESTIMATORS)]


def _interval(estimate: Estimate) -> str:
    return f"{estimate.value:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}]"


def _name(policy: str) -> str:
    return printable(policy) or RAW_NAME
