"""`searchloop listen --what-changed`: what late events altered between provisional and final outcomes."""

from __future__ import annotations

import click
import msgspec
from rich.console import Console
from rich.table import Table

from infra.app.app import App
from storage.reports.text import printable

SHOWN = 10


def show_changes(app: App, run_name: str, *, as_json: bool) -> None:
    """Show what late events altered between the newest provisional outcome of each impression and its final one.

    A provisional outcome may have been used before its window ended, in a report or as a reward. This reads the run's
    ledger, and needs no service.
    """
    from search_env.feedback.changes import what_changed as changes_of
    from storage.log import open_log
    from streams.traffic_events import ImpressionOutcome

    provisional: dict[str, ImpressionOutcome] = {}
    final: dict[str, ImpressionOutcome] = {}
    with open_log(app.home.existing_run(run_name)) as log:
        for _, outcome in log.events(ImpressionOutcome):
            name = outcome.impression.impression_id
            if outcome.final:
                final.setdefault(name, outcome)
            else:
                provisional[name] = outcome
    found = changes_of(provisional.values(), final.values())
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
        return
    click.echo(
        f"{run_name}: {len(provisional):,} provisional outcomes: {found.altered:,} altered, {found.unaltered:,} not, "
        f"{found.not_final:,} without a final one yet; {found.new:,} final ones had no provisional one"
    )
    if not found.changes:
        return
    table = Table("impression", "field", "before", "after", title=f"the first {min(SHOWN, len(found.changes))} changes")
    for change in found.changes[:SHOWN]:
        table.add_row(
            printable(change.impression_id), printable(change.field), _said(change.before), _said(change.after)
        )
    Console(markup=False).print(table)
    click.echo(", ".join(f"{field}: {count:,}" for field, count in found.by_field.items()))


def _said(value: object) -> str:
    """Return a value in words: actions by kind and document, anything else as it is."""
    if isinstance(value, tuple):
        return printable(", ".join(str(getattr(each, "document_id", each)) for each in value)) or "none"
    return printable(str(value))
