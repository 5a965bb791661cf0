"""`searchloop replay`: copy or reproduce a recorded window, rescore it under other settings, or use it as load."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import reduce, wraps
from typing import TYPE_CHECKING, Any

import click
import msgspec

from infra.app.app import App
from infra.app.interrupts import interrupts
from infra.app.progress import progress
from infra.commands.results import show_result
from infra.commands.times import moment_ms
from infra.commands.traffic import export_ubi, import_sessions, import_ubi
from storage.recorded import Limits
from streams.clock import now_ms
from streams.replay import parse_speed
from streams.stopping import Stop
from streams.topics import BY_KIND

if TYPE_CHECKING:
    from infra.replaying.replays import Selection


@click.group()
def replay() -> None:
    """Replay a window of a run's log, from Kafka or, beyond its retention, from the archive.

    \b
    A replay only reads the recorded run. It writes to separate topics and to a separate folder.

    \b
    Example:
      searchloop replay copy --run shop-0 --topic rewards --from 2h --into shop-0-copy
      searchloop replay reproduce --run shop-0
      searchloop replay counterfactual --run shop-0 --into shop-0-l1 --set leser.reward.size_weight=1
      searchloop replay load --run shop-0 --into shop-0-load --speed x4
    """


def window(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that select a window of a run's log; the verb gets them as one `selection`."""

    @wraps(command)
    def with_selection(
        *arguments: Any, name: str, begin: str, end: str, partition: int | None, gaps: bool, **others: Any
    ) -> Any:
        from infra.replaying.replays import Selection

        selection = Selection(
            run=name, begin=_limits(begin, "--from"), end=_limits(end, "--to"), partition=partition, gaps=gaps
        )
        return command(*arguments, selection=selection, **others)

    options = (
        click.option("--run", "name", required=True, help="Name of the recorded run."),
        click.option(
            "--from",
            "begin",
            default="",
            help="Start of the window: an offset, or a time such as 2026-01-31T08:00, 90m, 2h, 3d.",
        ),
        click.option("--to", "end", default="", help="End of the window: an offset (exclusive), or a time."),
        click.option("--partition", type=click.IntRange(min=0), help="Use only this partition."),
        click.option(
            "--gaps", is_flag=True, help="Accept missing offsets: Kafka never had a record where no segment holds one."
        ),
    )
    return reduce(lambda decorated, option: option(decorated), reversed(options), with_selection)


new_run = click.option("--into", required=True, help="Name of the new run.")
changed_settings = click.option(
    "--set", "assignments", multiple=True, metavar="TABLE.KEY=VALUE", help="Setting to change; may be repeated."
)
json_summary = click.option(
    "--json", "as_json", is_flag=True, help="Print the summary as one JSON object on standard output."
)


@replay.command(name="copy")
@window
@click.option(
    "--topic",
    "kinds",
    multiple=True,
    type=click.Choice(sorted(BY_KIND)),
    help="Topic to copy; may be repeated. Default: all topics.",
)
@new_run
@click.option(
    "--speed",
    default="max",
    show_default=True,
    help="Speed: recorded, max, or a multiple of the recorded speed, such as x4.",
)
@json_summary
@click.pass_obj
def copy_topics(
    app: App,
    selection: Selection,
    kinds: tuple[str, ...],
    into: str,
    speed: str,
    as_json: bool,
) -> None:
    """Copy a window to the topics of another run, byte for byte: key, value, headers and times.

    \b
    Example:
      searchloop replay copy --run shop-0 --topic requests --from 100 --to 200 --into shop-0-copy --speed recorded
    """
    from infra.replaying.replays import copy_window

    times = parse_speed(speed)
    stop = Stop()
    with progress() as report, app.running_services(report) as running, interrupts(stop):
        count = copy_window(
            running,
            selection,
            kinds=kinds,
            into=into,
            speed=times,
            stop=stop,
            report=report,
        )
    if stop():
        raise KeyboardInterrupt
    show_result(count, f"copied {selection.run} into {into}", as_json=as_json)


@replay.command()
@click.option("--run", "name", required=True, help="Name of the recorded run.")
@click.option(
    "--policy", default="0", show_default=True, help="Policy version to start from; its checkpoint must still exist."
)
@click.option("--updates", type=click.IntRange(min=1), help="Maximum number of updates to make.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object on standard output.")
@click.pass_obj
def reproduce(app: App, name: str, policy: str, updates: int | None, as_json: bool) -> None:
    """Repeat a run's updates from its log, and compare every version's weights bit for bit.

    \b
    The verb needs neither Kafka nor Elasticsearch. The exit status is 1 if a version's weights differ. On a CPU in
    fp32, all weights are equal.

    \b
    Example:
      searchloop replay reproduce --run shop-0
    """
    from infra.replaying.reproduction import reproduce as make_again

    with progress() as report:
        result = make_again(app, name, begin=policy, updates_max=updates, report=report)
    if as_json:
        click.echo(msgspec.json.encode(result).decode())
    elif result.different is None:
        click.echo(
            f"run {name}: {result.updates} updates made again from {result.begin}; the weights of each are bit-equal "
            f"({result.policy}, sha256 {result.weights_sha256[:12]}…)"
        )
    else:
        click.echo(f"run {name}: {result.different} differs: its weights are {result.weights_sha256[:12]}… this time")
    if result.different is not None:
        sys.exit(1)


@replay.command()
@window
@new_run
@changed_settings
@click.option(
    "--policy", default="0", show_default=True, help="Policy version to train further; its checkpoint must still exist."
)
@json_summary
@click.pass_obj
def counterfactual(
    app: App,
    selection: Selection,
    into: str,
    assignments: tuple[str, ...],
    policy: str,
    as_json: bool,
) -> None:
    """Rescore recorded generations under other settings, and train on them; nothing is generated.

    \b
    --set can change the reward (leser.reward.size_weight=1), the relevance model (relevance.model=cosine) or the
    objective (learner.objective.kl_weight=0.1). All other settings are those of the recorded run.

    \b
    Example:
      searchloop replay counterfactual --run shop-0 --into shop-0-l1 --set leser.reward.size_weight=1
    """
    from infra.replaying.replays import counterfactual as score_anew

    stop = Stop()
    with progress() as report, app.running_services(report) as running, interrupts(stop):
        result = score_anew(
            running,
            selection,
            into=into,
            assignments=assignments,
            begin=policy,
            report=report,
            stop=stop,
        )
    show_result(result, f"{selection.run} as {into}", as_json=as_json)


@replay.command()
@window
@new_run
@changed_settings
@click.option("--like", help="Run whose settings and policy answer. Default: the recorded run.")
@click.option(
    "--policy",
    default="latest",
    show_default=True,
    help="Policy version that answers; its checkpoint must still exist.",
)
@click.option(
    "--frozen/--learning",
    default=True,
    show_default=True,
    help="Mode of the policy: it stays frozen, or it learns from requests of split train.",
)
@click.option(
    "--speed",
    default="recorded",
    show_default=True,
    help="Speed: recorded, max, or a multiple of the recorded speed, such as x4.",
)
@json_summary
@click.pass_obj
def load(
    app: App,
    selection: Selection,
    into: str,
    assignments: tuple[str, ...],
    like: str | None,
    policy: str,
    frozen: bool,
    speed: str,
    as_json: bool,
) -> None:
    """Send recorded requests to a new run, at the recorded speed or faster, and time its answers.

    \b
    Example:
      searchloop replay load --run shop-0 --into shop-0-load --speed x4 --from 2h --to 1h
    """
    from infra.replaying.replays import load as send

    times = parse_speed(speed)
    stop = Stop()
    with progress() as report, app.running_services(report) as running, interrupts(stop):
        result = send(
            running,
            selection,
            into=into,
            assignments=assignments,
            begin=policy,
            like=like or selection.run,
            learning=not frozen,
            speed=times,
            stop=stop,
            report=report,
        )
    show_result(result, f"{selection.run} as load on {into}", as_json=as_json)


def _limits(text: str, option: str) -> Limits:
    if not text:
        return Limits()
    if text.isdecimal():
        return Limits(offset=int(text))
    return Limits(moment_ms=moment_ms(text, now_ms=now_ms(), option=option))


replay.add_command(import_ubi)
replay.add_command(import_sessions)
replay.add_command(export_ubi)
