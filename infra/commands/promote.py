"""`searchloop promote`: bring a version to people step by step, and back at once if it harms."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

import click
import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

from infra.app.app import App
from infra.app.interrupts import interrupts
from infra.app.progress import Report, progress
from infra.commands.options import NumberRange, as_one, fields, need
from storage.reports.text import printable
from streams.stopping import Stop


class ActionOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options that say what to do; at most one is given."""

    once: bool
    hold: bool
    go_on: bool
    roll_back: bool
    why: bool


action_options = as_one(
    "action",
    ActionOptions,
    click.option("--once", is_flag=True, help="Look once and take the step that follows, for a scheduler of your own."),
    click.option("--hold", is_flag=True, help="Stay at the share of now until --go-on."),
    click.option("--go-on", is_flag=True, help="Go on with a ramp that is held."),
    click.option(
        "--roll-back",
        is_flag=True,
        help="Take the version away from people at once. With VERSION: that one, also if it is only explored.",
    ),
    click.option("--why", is_flag=True, help="Show every decision with its reason and figures; no service is needed."),
)


class HeldOutOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of the held-out gate."""

    queries: Path | None
    qrels: Path | None
    learned: str | None


held_out_options = as_one(
    "held_out",
    HeldOutOptions,
    click.option(
        "--queries",
        type=click.Path(path_type=Path),
        help="Your own judged queries (JSONL) for the held-out gate, beside the run's dev queries.",
    ),
    click.option("--qrels", type=click.Path(path_type=Path), help="Judgments of --queries."),
    click.option("--learned", metavar="RUN", help="Run that made the version. Default: the one that has it."),
)


@click.command()
@click.argument("version", required=False)
@click.option("--run", "run_name", default="live", show_default=True, help="Run of the live traffic.")
@action_options
@held_out_options
@click.option(
    "--every", type=NumberRange(0.1, 86_400), default=60, show_default=True, help="Seconds between two looks."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on standard output.")
@click.pass_context
def promote(
    context: click.Context,
    version: str | None,
    run_name: str,
    action: ActionOptions,
    held_out: HeldOutOptions,
    every: float,
    as_json: bool,
) -> None:
    """Bring a policy version to people on a ramp of rising shares, and take it back if it harms.

    \b
    First the held-out gate compares the version with raw results on judged queries that trained nothing, and finds
    the parts of the queries where it may serve. An admitted version is explored: a small share of the searches
    (serve.epsilon) shows it, so that the log can speak. Once the off-policy estimate from the log speaks for it, its
    share of the searches rises: 1, 5, 10, 25, 50, 100 %. At each stage its searches are compared with the others, with
    intervals that hold however often you look. Harm rolls it back; shares that do not match hold the ramp. Without
    data nothing changes. The verb follows the version to the end. Stopped, it goes on with the same command. Each
    decision is an event.

    \b
    Example:
      searchloop promote 1-a1b2c3-000040 --run live
      searchloop promote 1-a1b2c3-000040 --queries judged.jsonl --qrels qrels.tsv
      searchloop promote --why
      searchloop promote --roll-back
      searchloop promote 1-a1b2c3-000040 --roll-back
    """
    app: App = context.obj
    given = [name for name, value in msgspec.structs.asdict(action).items() if value]
    if len(given) > 1 or (version and given and given not in (["once"], ["roll_back"])):
        raise click.UsageError("expected a version, or one of --hold, --go-on, --roll-back, --why, --once; got several")
    if version is None:
        need(context, fields(HeldOutOptions), "VERSION")
    if action.why:
        _why(app, run_name, as_json)
        return
    from infra.promotion.promoting import Person, by_person, follow, following, look, withdraw

    stop = Stop()
    with progress() as report, app.running_services(report) as running, interrupts(stop):
        if action.hold or action.go_on or action.roll_back:
            what: Person = "hold" if action.hold else "go on" if action.go_on else "roll back"
            decision = withdraw(running, run_name, version) if version else by_person(running, run_name, what)
            _say(decision, as_json)
            return
        with following(running, run_name):
            if version and not _begin(
                running, run_name, version, held_out, _Way(action.once, every, as_json, stop, report)
            ):
                return
            ramp, step = (
                look(running, run_name)
                if action.once
                else follow(running, run_name, every_seconds=every, stop=stop, report=report)
            )
    if as_json:
        click.echo(msgspec.json.encode({"ramp": ramp, "step": step}).decode())
    else:
        click.echo(f"{printable(ramp.version)}: {ramp.status} at {ramp.share:.0%}; {printable(step.reason)}")
    if stop():
        raise KeyboardInterrupt


class _Way(NamedTuple):
    """The way in which a version is brought to people."""

    once: bool
    every: float
    as_json: bool
    stop: Stop
    report: Report


def _begin(app: App, run: str, version: str, held_out: HeldOutOptions, way: _Way) -> bool:
    """Bring a version through its gates; return whether its ramp is to be followed now. A refusal ends the verb."""
    from infra.commands.judged import read_judged
    from infra.promotion.promoting import admit, explore, needs_gate, ramp_of, start
    from infra.promotion.ranking import judge_held_out

    given = read_judged(held_out.queries, held_out.qrels)
    if ramp_of(app, run, version) in ("ramping", "held", "serves"):
        return True
    if needs_gate(app, run, version):
        verdict = judge_held_out(
            app, live=run, learned=held_out.learned, version=version, given=given, report=way.report
        )
        decision = admit(app, run, verdict)
        _say(decision, way.as_json and (way.once or decision.kind == "refuse"))
        if decision.kind == "refuse":
            raise SystemExit(1)
        if way.once:
            return False
    elif given is not None:
        raise click.UsageError(
            f"--queries: version {version} has passed its held-out gate. Leave the option out, or roll it back first"
        )
    spoken = None
    if not way.once and not app.settings.serve.ungated:
        spoken = explore(app, run, version, every_seconds=way.every, stop=way.stop, report=way.report)
        if way.stop():
            raise KeyboardInterrupt
    decision = start(app, run, version, spoken=spoken)
    _say(decision, way.as_json and (way.once or decision.kind == "refuse"))
    if decision.kind == "refuse":
        raise SystemExit(1)
    return not way.once


def _say(decision: msgspec.Struct, as_json: bool) -> None:
    if as_json:
        click.echo(msgspec.json.encode(decision).decode())
    else:
        facts = msgspec.structs.asdict(decision)
        click.echo(
            f"{printable(facts['version'])}: {facts['kind']} at {facts['share']:.0%}; {printable(facts['reason'])}"
        )


def _why(app: App, run: str, as_json: bool) -> None:
    from storage.log import open_log

    with open_log(app.home.existing_run(run)) as log:
        found = log.rows("SELECT * FROM first_decisions WHERE run = ? ORDER BY record_offset", [run])
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
        return
    if not found:
        click.echo(f"{run}: no decision is stored yet. `searchloop listen` stores them")
        return
    table = Table("when", "version", "decision", "share", "by", "reason", "figures", box=box.SIMPLE)
    for row in found:
        figures = ", ".join(f"{name} {value:.4g}" for name, value in sorted((row["evidence"] or {}).items()))
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(row["at_ms"] / 1000))
        table.add_row(
            when,
            printable(row["version"]),
            row["kind"],
            f"{row['share']:.0%}",
            row["by"],
            printable(row["reason"]),
            figures,
        )
    Console(markup=False).print(table)
