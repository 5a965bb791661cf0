"""`searchloop dead-letters`: read the records that workers gave up on, and resend them."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from infra.app.app import App
from infra.app.home import read_settings_file
from infra.commands.times import moment_ms
from storage.dead_letters import LetterFilter, find_letters
from storage.errors import StorageError
from storage.log import open_log
from storage.reports.text import printable
from streams.clock import now_ms
from streams.delivery import DeliverySettings, Outbox
from streams.events import DeadLetter, Position
from streams.resending import Resent, place_text, places_resent, prepare_resending, reason_to_refuse, resend, topics_of
from streams.topics import topic_name

if TYPE_CHECKING:
    from streams.kafka_settings import KafkaSettings

ERROR_SHOWN = 90
VALUE_SHOWN = 4000
PLACE = re.compile(r"(?:[^\[\]]*\.)?(?P<kind>[a-z-]+)\[(?P<partition>\d+)\]@(?P<offset>\d+)")


class DeliveryTable(msgspec.Struct, frozen=True, kw_only=True):
    """The table of a run's settings that resending needs."""

    delivery: DeliverySettings


class DeliveryRun(msgspec.Struct, frozen=True, kw_only=True):
    """The part of `RunSettings` that resending needs."""

    settings: DeliveryTable


@click.group(name="dead-letters")
def dead_letters() -> None:
    """Read the records that a worker gave up on, and resend them.

    \b
    Example:
      searchloop dead-letters list --run leser-shop-0 --since 2h
      searchloop dead-letters show --run leser-shop-0 'requests[0]@17'
      searchloop dead-letters resend --run leser-shop-0 --stage environment
    """


def filters(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that select letters."""
    options = (
        click.option("--run", "name", required=True, help="Name of the run."),
        click.option("--topic", default="", help="Topic that the letters came from, such as requests."),
        click.option("--stage", default="", help="Worker that gave up: generator, environment, learner or sink."),
        click.option("--error", default="", help="Part of the reason; case does not matter."),
        click.option("--since", default="", help="Oldest time: 2026-01-31T08:00, 90m, 2h, 3d."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@dead_letters.command(name="list")
@filters
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array on standard output.")
@click.pass_obj
def list_letters(app: App, name: str, topic: str, stage: str, error: str, since: str, as_json: bool) -> None:
    """List dead letters, oldest first.

    \b
    Example:
      searchloop dead-letters list --run leser-shop-0 --topic rewards --error 'not an event'
    """
    letters = _find(app, name, topic=topic, stage=stage, error=error, since=since)
    if as_json:
        click.echo(msgspec.json.encode([_summary(letter) for letter in letters]).decode())
        return
    table = Table("record", "stage", "attempts", "bytes", "reason")
    for letter in letters:
        reason = printable(letter.error)
        table.add_row(
            Text(printable(place_text(letter.source))),
            Text(printable(letter.stage)),
            str(letter.attempts),
            "-" if letter.value is None else f"{len(letter.value):,}",
            Text(reason if len(reason) <= ERROR_SHOWN else f"{reason[:ERROR_SHOWN]}…"),
        )
    console = Console(soft_wrap=True)
    if letters:
        console.print(table)
    console.print(f"{len(letters)} dead letters")


@dead_letters.command()
@click.argument("place")
@click.option("--run", "name", required=True, help="Name of the run.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the original bytes to this file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array, with bytes in base64.")
@click.pass_obj
def show(app: App, place: str, name: str, out: Path | None, as_json: bool) -> None:
    """Show one complete record: the worker that gave up, the reason, the key, the headers and the bytes.

    PLACE is a record's place as `list` prints it.

    \b
    Example:
      searchloop dead-letters show --run leser-shop-0 'requests[0]@17'
    """
    letters = _find(app, name, places=(_position(name, place),))
    if not letters:
        raise StorageError(
            f"{place}: expected a dead letter of run {name}; see: searchloop dead-letters list --run {name}"
        )
    if out is not None:
        try:
            out.write_bytes(letters[0].value or b"")
        except OSError as error:
            raise StorageError(f"{out}: cannot be written ({error.strerror}); choose another place") from error
    if as_json:
        click.echo(msgspec.json.encode([msgspec.to_builtins(letter) for letter in letters]).decode())
        return
    console = Console(soft_wrap=True)
    for letter in letters:
        console.print(Text(place_text(letter.source), style="bold"))
        for label, said in (("stage", letter.stage), ("reason", letter.error), ("attempts", str(letter.attempts))):
            console.print(Text(f"{label:<9} {printable(said)}"))
        console.print(Text(f"{'key':<9} {_shown(letter.key)}"))
        for header, value in letter.headers:
            console.print(Text(f"{'header':<9} {printable(header)} = {_shown(value)}"))
        console.print(Text(f"{'value':<9} {_shown(letter.value)}"))
    if out is not None:
        click.echo(f"wrote {out}")


@dead_letters.command(name="resend")
@filters
@click.option("--place", "places", multiple=True, help="Place of one record, as `list` prints it; may be repeated.")
@click.option("--again", is_flag=True, help="Include letters that were already resent.")
@click.option("--dry-run", is_flag=True, help="Print what would be sent, and send nothing.")
@click.pass_obj
def resend_letters(
    app: App,
    name: str,
    topic: str,
    stage: str,
    error: str,
    since: str,
    places: tuple[str, ...],
    again: bool,
    dry_run: bool,
) -> None:
    """Resend dead letters to their original topic and partition, with their original bytes, key and headers.

    \b
    A group that ended as failed cannot end again: its request is sent instead, and makes a new group. A record that
    two workers gave up on is sent once. A record that was already resent is left out. A letter is refused if it names
    a topic of another run or a partition that does not exist; the exit status is then 1.

    \b
    Example:
      searchloop dead-letters resend --run leser-shop-0 --stage environment --since 2h --dry-run
    """
    if not (topic or stage or error or since or places):
        raise click.UsageError("expected a selection: --topic, --stage, --error, --since or --place")
    wanted = tuple(_position(name, place) for place in places)
    letters = _find(app, name, topic=topic, stage=stage, error=error, since=since, places=wanted)
    # The environment's letter of a record says more than the sink's: the record's request may need to be sent again.
    by_place = {letter.source: letter for letter in sorted(letters, key=lambda letter: letter.stage == "environment")}
    outgoing = [prepare_resending(letter) for letter in by_place.values()]
    kafka = app.at(app.local_services().endpoints()).connections.kafka
    refused = _refused(kafka, name, outgoing)
    outgoing = [each for each in outgoing if place_text(each.letter.source) not in refused]
    done = set() if again or not outgoing else places_resent(kafka, outgoing, client_id=f"{name}-resend")
    fresh = [each for each in outgoing if place_text(each.letter.source) not in done]
    if not dry_run and fresh:
        from streams.clients import connect_producer

        delivery = read_settings_file(app.home.existing_run(name), DeliveryRun).settings.delivery
        producer = connect_producer(kafka, client_id=f"{name}-resend")
        try:
            resend(fresh, Outbox(producer, name, stage="resend", settings=delivery))
        finally:
            producer.close()
    for each in fresh:
        how = "asked again, as a new request" if each.asked_again else f"to {each.topic}[{each.partition}]"
        click.echo(f"{place_text(each.letter.source)}: {how}")
    for place, why in refused.items():
        click.echo(f"{printable(place)}: refused: {printable(why)}", err=True)
    verb = "would be sent" if dry_run else "sent"
    told = f"{len(fresh)} {verb}, {len(outgoing) - len(fresh)} were sent again before"
    click.echo(told + (f", {len(refused)} refused" if refused else ""))
    if refused:
        click.get_current_context().exit(1)


def _refused(kafka: KafkaSettings, run: str, outgoing: Sequence[Resent]) -> dict[str, str]:
    """Return the reasons, by place, for the letters that may not be sent in this run."""
    if not outgoing:
        return {}
    from streams.clients import existing_topics, partitions_of

    partitions = frozenset(partitions_of(kafka, existing_topics(kafka, topics_of(run))))
    reasons = {place_text(each.letter.source): reason_to_refuse(each, run, partitions) for each in outgoing}
    return {place: why for place, why in reasons.items() if why}


def _find(
    app: App,
    name: str,
    *,
    topic: str = "",
    stage: str = "",
    error: str = "",
    since: str = "",
    places: tuple[Position, ...] = (),
) -> list[DeadLetter]:
    since_ms = moment_ms(since, now_ms=now_ms(), option="--since") if since else None
    wanted = LetterFilter(topic=topic, stage=stage, error=error, since_ms=since_ms, places=places)
    with open_log(app.home.existing_run(name)) as log:
        if log.live:
            click.echo("a sink is running: letters of the newest minute may be missing", err=True)
        return find_letters(log, wanted)


def _position(run: str, place: str) -> Position:
    match = PLACE.fullmatch(place)
    if match is None:
        raise click.UsageError(f"expected a place like 'requests[0]@17', got {place!r}")
    try:
        topic = topic_name(run, match["kind"])
    except KeyError as error:
        raise click.UsageError(f"{place!r}: there is no topic {match['kind']!r}") from error
    return Position(topic=topic, partition=int(match["partition"]), offset=int(match["offset"]))


def _summary(letter: DeadLetter) -> dict[str, object]:
    return {
        "topic": letter.source.topic,
        "partition": letter.source.partition,
        "offset": letter.source.offset,
        "stage": letter.stage,
        "error": letter.error,
        "attempts": letter.attempts,
        "bytes": None if letter.value is None else len(letter.value),
        "made_at_ms": letter.made_at_ms,
    }


def _shown(value: bytes | None) -> str:
    """Return bytes for a terminal: as text if they are text, otherwise in base64."""
    if value is None:
        return "(none)"
    try:
        text = printable(value.decode())
    except UnicodeDecodeError:
        text = f"base64 {base64.b64encode(value).decode()}"
    return text if len(text) <= VALUE_SHOWN else f"{text[:VALUE_SHOWN]}… ({len(value):,} bytes; --out writes them)"
