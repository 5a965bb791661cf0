"""`searchloop listen`: what people saw and did, joined and stored."""

from __future__ import annotations

import click
import msgspec

from infra.app.app import App
from infra.app.interrupts import interrupts
from infra.app.progress import progress
from streams.stopping import Stop


@click.command()
@click.option("--run", "run_name", default="live", show_default=True, help="Run of the live traffic.")
@click.option(
    "--until-read", is_flag=True, help="End when everything is read that the log holds now; all outcomes become final."
)
@click.option("--json", "as_json", is_flag=True, help="Print the counts as one JSON object on standard output.")
@click.pass_obj
def listen(app: App, run_name: str, until_read: bool, as_json: bool) -> None:
    """Join what people saw with what they did, and store both, until Ctrl-C.

    \b
    `searchloop serve` and your own applications write impressions and actions. A click may come a day late, twice, or
    before its impression: it counts once, for its impression, within the window of `[join] window_ms`. An event that
    counts for none becomes a dead letter with the reason. Each impression gets one final outcome.
    You may kill this verb at any time: it goes on where it was, and nothing is lost or counted twice.

    \b
    Example:
      searchloop listen --run live
      searchloop listen --run live --until-read --json
    """
    from infra.runs.listening import begin_live
    from infra.runs.listening import listen as listen_to
    from search_env.feedback.outcomes import JoinCounts

    stop = Stop()
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
            f"outcomes, {counts.open:,} open; {counts.counted:,} actions counted, {left_out:,} events left out"
        )
    if stop():
        raise KeyboardInterrupt
