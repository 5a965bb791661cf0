"""`searchloop verify` and `report --policy`: the proof that nothing was lost, and the events behind each version."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from infra.app.app import App
from storage.reports.text import printable
from storage.verification.account import Account, place

if TYPE_CHECKING:
    from storage.lineage import GroupTaught, VersionMade

FINDINGS_SHOWN = 20
BROKEN, UNFINISHED = 1, 3  # Exit statuses; 2 is a wrong command line.
ANCESTORS_SHOWN = 5


@click.command()
@click.option("--run", "name", help="Name of the run. Default: every run.")
@click.option("--rebuild", is_flag=True, help="Read every record anew, not only new ones, and compare it with its row.")
@click.option("--offline", is_flag=True, help="Use only the DuckDB file, the archive and the checkpoints, not Kafka.")
@click.option("--trusted", metavar="VALUE", help="Seal that verify printed earlier; the run's history must contain it.")
@click.option("--json", "as_json", is_flag=True, help="Print the accounts as one JSON array on standard output.")
@click.pass_obj
def verify(app: App, name: str | None, rebuild: bool, offline: bool, trusted: str | None, as_json: bool) -> None:
    """Verify that no record was lost and none was counted twice.

    \b
    Exit status: 0 verified; 1 something does not add up; 3 sound so far, but unfinished (records wait for workers, and
    none is alive).

    \b
    Per partition of each topic: end - gaps = rows + dead letters. Per stage: every record taken has ended, and every
    candidate has exactly one outcome. Along the surviving checkpoints: at most one gradient from each candidate.
    The verdict names the faults that this mode cannot see. Keep the printed seal elsewhere: with --trusted it later
    proves that nobody rewrote the run's history.
    While a sink is running, only the archive's closed segments are checked; they lack the newest minute.
    After a --rebuild without findings, a later verify reads only the records that are new since.

    \b
    Example:
      searchloop verify --run leser-shop-0
      searchloop verify --run leser-shop-0 --rebuild --json
    """
    from infra.runs.verification import run_names, verify_run

    if trusted is not None and name is None:
        raise click.UsageError("--trusted applies to one run: name it with --run")
    names = [name] if name else run_names(app)
    accounts = [verify_run(app, each, rebuild=rebuild, offline=offline, trusted=trusted) for each in names]
    if as_json:
        click.echo(msgspec.json.encode(accounts).decode())
    else:
        for account in accounts:
            print_account(account, Console(soft_wrap=True))
    verdicts = {account.verdict for account in accounts}
    if verdicts - {"sound"}:
        sys.exit(BROKEN if "broken" in verdicts else UNFINISHED)


def print_lineage(app: App, run: str, *, policy: str | None, event: str | None, as_json: bool) -> None:
    """Print the events that made a policy version or, if `event` is given, the versions that an event taught.

    Raises UsageError unless exactly one of the two is given.
    """
    from storage.lineage import groups_taught, version_made_of
    from storage.log import open_log

    if (policy is None) == (event is None):
        raise click.UsageError("give one of --policy and --event")
    console = Console(soft_wrap=True)
    with open_log(app.home.existing_run(run)) as log:
        if log.live:
            click.echo("a sink is running: the output lacks the newest minute", err=True)
        if policy is not None:
            made = version_made_of(log, policy)
            if as_json:
                click.echo(msgspec.json.encode(made).decode())
                return
            _print_version(made, console)
            return
        taught = groups_taught(log, event or "")
        if as_json:
            click.echo(msgspec.json.encode(taught).decode())
            return
        _print_groups(taught, console)


def _print_version(made: VersionMade, console: Console) -> None:
    console.print(Text(f"{made.version}, weights {made.weights_sha256[:12]}…", style="bold"))
    groups = sorted({event["group_id"] for event in made.events if event["group_id"]})
    console.print(f"made by {len(groups)} groups of its own update and {made.inherited} groups of earlier updates")
    console.print(Text(f"stands on {', '.join(made.ancestors[:ANCESTORS_SHOWN])}{_more(made.ancestors)}"))
    for row in made.events:
        at = place(row["topic"], row["partition"], row["record_offset"])
        console.print(Text(f"{row['event']:<11} {at:<40} {row['group_id'] or ''}".rstrip()))


def _more(names: tuple[str, ...]) -> str:
    return f" and {len(names) - ANCESTORS_SHOWN} more" if len(names) > ANCESTORS_SHOWN else ""


def _print_groups(taught: list[GroupTaught], console: Console) -> None:
    for group in taught:
        lives = f"lives in {group.lives_in} versions" if group.surviving else "which did not survive"
        by = f"{group.fate} by {group.version}" if group.version else group.fate
        said = f"{by}, {lives}" if group.fate == "trained" else by
        console.print(Text(f"{group.group_id}  {said}: {printable(group.query or '')}"))


def print_account(account: Account, console: Console) -> None:
    """Print a run's account: partitions, stages, findings, and a last line with the verdict."""
    from storage.ledger import LEDGER

    console.print(Text(f"run {account.run}, policy {account.policy or 'none yet'}", style="bold"))
    if account.live:
        unusable = any(each.where.endswith(LEDGER) for each in account.findings)
        why = "the ledger cannot be used" if unusable else "a sink is running"
        console.print(f"[yellow]{why}: the account covers only the archive's closed segments[/yellow]")
    table = Table("topic", "", "start", "end", "stored to", "gaps", "rows", "dead letters", "archived", "residual")
    for row in account.partitions:
        counts = (row.start, row.end, row.next_offset, row.gaps, row.rows, row.dead_letters, row.archived, row.residual)
        shown = ("-" if count is None else f"{count:,}" for count in counts)
        table.add_row(Text(printable(row.topic)), str(row.partition), *shown)
    console.print(table)
    for stage in account.stages:
        fates = " + ".join(f"{count:,} {fate}" for fate, count in stage.fates.items())
        ahead = f"{stage.not_asked:,} not asked for yet; " if stage.not_asked else ""
        console.print(
            f"{stage.stage:<12} {stage.taken:,} {stage.unit} = {fates}; {stage.waiting:,} waiting; {ahead}"
            f"residual {stage.residual:,}",
            highlight=False,
        )
    console.print(
        f"gradients    at most {account.uses_max} from a candidate along the surviving lineage", highlight=False
    )
    for claim, count in account.unchecked.items():
        console.print(
            f"unproved     {count:,} groups {claim}: on the learner's word, with its reasons", highlight=False
        )
    for name, said in account.tables.items():
        console.print(f"rebuilt      {name:<18} {said}", highlight=False)
    if account.trusted is not None and account.trusted.version is not None:
        said = f"{account.trusted.version} is in the chain, {account.trusted.later:,} updates ago"
        console.print(f"trusted      {said}", highlight=False)
    for finding in account.findings[:FINDINGS_SHOWN]:
        style = "red" if finding.severity == "broken" else "yellow"
        console.print(Text(printable(f"{finding.rule}: {finding.where}: {finding.what}"), style=style))
    if len(account.findings) > FINDINGS_SHOWN:
        console.print(f"… and {len(account.findings) - FINDINGS_SHOWN} more: see --json")
    for sentence in account.unseen:
        console.print(Text(printable(f"not seen: {sentence}"), style="dim"))
    if account.seal is not None:
        console.print(f"seal: {account.seal} (keep it elsewhere, for --trusted)", highlight=False)
    console.print(verdict(account))


def verdict(account: Account) -> str:
    """Return one line: the proved numbers and the mode, or the failure."""
    if account.verdict == "broken":
        count = sum(finding.severity == "broken" for finding in account.findings)
        noun = "finding" if count == 1 else "findings"
        return f"[red]run {account.run} ({account.mode}): {count} {noun}: log, ledger and checkpoints disagree[/red]"
    records = sum(row.rows + row.dead_letters for row in account.partitions)
    candidates = sum(stage.taken for stage in account.stages if stage.unit == "candidates")
    counted = (
        f"{records:,} records and {candidates:,} candidates, none lost, none twice; "
        f"at most {account.uses_max} gradient from each ({account.mode})"
    )
    if account.verdict == "unfinished":
        return f"[yellow]sound so far, unfinished: {counted}[/yellow]"
    return f"verified: {counted}"
