"""`searchloop listen`: what people saw and did, joined and stored."""

from __future__ import annotations

import sys

import click
import msgspec

from infra.app.app import App, WorkerTables
from infra.app.interrupts import interrupts
from infra.app.progress import progress
from streams.beats import show_life_in
from streams.errors import SettingsError
from streams.stopping import Stop


@click.command()
@click.option("--run", "run_name", default="live", show_default=True, help="Run of the live traffic.")
@click.option(
    "--until-read", is_flag=True, help="End when everything is read that the log holds now; all outcomes become final."
)
@click.option(
    "--forget",
    multiple=True,
    metavar="CLIENT",
    help="Forget a client or session for ever, and end; - reads ids from standard input, one a line.",
)
@click.option(
    "--what-changed",
    is_flag=True,
    help="Show instead what late events altered between provisional and final outcomes, and end.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the counts as one JSON object on standard output.")
@click.pass_obj
def listen(
    app: App, run_name: str, until_read: bool, forget: tuple[str, ...], what_changed: bool, as_json: bool
) -> None:
    """Join what people saw with what they did, and store both, until Ctrl-C.

    \b
    `searchloop serve` and your own applications write impressions and actions. A click may come a day late, twice, or
    before its impression: it counts once, for its impression, within the window of `[join] window_ms`. An event that
    counts for none becomes a dead letter with the reason. Each impression gets one final outcome.
    You may kill this verb at any time: it goes on where it was, and nothing is lost or counted twice.
    Clients and sessions are known by pseudonyms. --forget deletes the secret behind one, in this home; it needs no
    service, and listeners and servers go on.

    \b
    Example:
      searchloop listen --run live
      searchloop listen --run live --until-read --json
      searchloop listen --run live --what-changed
      searchloop listen --forget - < clients.txt
    """
    if what_changed:
        from infra.commands.changes import show_changes

        show_changes(app, run_name, as_json=as_json)
        return
    if forget:
        _forget(app, forget, as_json=as_json)
        return
    from infra.runs.listening import begin_live
    from infra.runs.listening import listen as listen_to
    from search_env.feedback.outcomes import JoinCounts

    stop = Stop()
    show_life_in(app.tables(WorkerTables).beat)
    with progress() as report, app.running_services(report) as running, interrupts(stop):
        begin_live(running, run_name)

        def told(counts: JoinCounts) -> None:
            report(
                f"{counts.impressions:,} impressions, {counts.actions:,} actions, {counts.final:,} final outcomes", 0, 0
            )

        counts = listen_to(running, run_name, until_read=until_read, stop=stop, report=told)
    if as_json:
        click.echo(msgspec.json.encode(counts).decode())
    else:
        left_out = sum(counts.impressions_left_out.values()) + sum(counts.actions_left_out.values())
        click.echo(
            f"{run_name}: {counts.impressions:,} impressions, {counts.actions:,} actions; {counts.final:,} final "
            f"outcomes, {counts.open:,} open; {counts.counted:,} actions counted, {left_out:,} events left out; "
            f"{sum(counts.bots.values()):,} outcomes are a bot's"
        )
    if stop():
        raise KeyboardInterrupt


def _forget(app: App, given: tuple[str, ...], *, as_json: bool) -> None:
    """Delete the secrets of persons; no id of theirs is printed."""
    from streams.pseudonyms import Pseudonyms

    if not app.home.people.is_dir():
        raise SettingsError(f"--home: expected a home that knows clients, got {app.home.root}. Name the home of serve")
    read = [line for each in given for line in (sys.stdin.read().splitlines() if each == "-" else [each])]
    ids = sorted({line.strip() for line in read if line.strip()})
    with Pseudonyms(app.home.people) as pseudonyms:
        count = pseudonyms.forget(ids)
    if as_json:
        click.echo(msgspec.json.encode({"asked": len(ids), "forgotten": count}).decode())
    else:
        click.echo(f"{count:,} secrets deleted for {len(ids):,} ids; any others were never seen, or forgotten before")
