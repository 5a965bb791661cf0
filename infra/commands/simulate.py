"""`searchloop simulate`: simulated people who search on a server and click by a click model."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click
import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

from infra.app.app import App
from infra.app.doors import LOOPBACK
from infra.app.progress import progress
from infra.commands.judged import judged_options
from infra.commands.options import NumberRange, as_one
from storage.reports.text import printable

if TYPE_CHECKING:
    from infra.recipes.recipe import Judged
    from search_env.clicks.published import PublishedModel


class CrowdOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options that say who searches, how often, and how they click."""

    clicks: Path | None
    impressions: int
    rate: float
    clients: int
    bots: float
    size: int
    seed: int


crowd_options = as_one(
    "crowd",
    CrowdOptions,
    click.option(
        "--clicks",
        type=click.Path(path_type=Path),
        help="File with a click model (JSON, as in the ULTRA toolbox). Default: a position-based model whose "
        "examination comes from an eye-tracking study.",
    ),
    click.option(
        "--impressions", type=click.IntRange(1, 10_000_000), default=1_000, show_default=True, help="Searches."
    ),
    click.option("--rate", type=NumberRange(0.1, 10_000), default=20, show_default=True, help="Searches a second."),
    click.option("--clients", type=click.IntRange(1, 10_000_000), default=200, show_default=True, help="People."),
    click.option("--bots", type=NumberRange(0, 1), default=0.0, show_default=True, help="Share of searches by bots."),
    click.option("--size", type=click.IntRange(1, 100), default=10, show_default=True, help="Results of a search."),
    click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of people and clicks."),
)


@click.command()
@click.argument("server", required=False)
@click.option("--index", default="catalogue", show_default=True, help="Index whose queries are asked.")
@judged_options
@crowd_options
@click.option("--into", metavar="RUN", help="Write the searches into this new run, without a server.")
@click.option(
    "--explore",
    type=NumberRange(0, 1),
    default=0.2,
    show_default=True,
    help="With --into: share of searches that show other lists than the raw one.",
)
@click.option(
    "--fraud",
    type=NumberRange(0, 1),
    default=0.0,
    show_default=True,
    help="With --into: share of searches by a client that clicks one seller's products everywhere.",
)
@click.option(
    "--world",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Write days of a changing world into this folder, to be indexed and asked one after the other.",
)
@click.option("--days", type=click.IntRange(1, 1_000), default=5, show_default=True, help="With --world: days.")
@click.option(
    "--changed",
    type=NumberRange(0, 1),
    default=0.05,
    show_default=True,
    help="With --world: share of products, sellers' words and demand that changes in a day.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the counts as one JSON object on standard output.")
@click.pass_obj
def simulate(
    app: App,
    server: str | None,
    index: str,
    queries: Path | None,
    qrels: Path | None,
    crowd: CrowdOptions,
    into: str | None,
    explore: float,
    fraud: float,
    world: Path | None,
    days: int,
    changed: float,
    as_json: bool,
) -> None:
    """Let simulated people search on a server and click, to try a loop before real people do.

    \b
    They ask the index's dev queries, or those of --queries, the first ones most often. They know which documents are
    relevant (the catalogue's attributes, or --qrels), and nothing else in the loop knows it. They click by a click
    model. Bots click everything at once. Every figure is simulated: it says how the loop works, not what people want.
    SERVER is the address that `searchloop serve` printed. --into needs none: it draws the lists that the index would
    show, for its training queries, and writes impressions, clicks and final outcomes into a new run, as `searchloop
    listen` would. --rate and --bots are for servers alone.

    --world needs no server either: it writes a catalogue, its queries and their hidden judgments for each day. Index a
    day's corpus.jsonl under one name, let people ask its queries, and go on with the next day.

    \b
    Example:
      searchloop simulate --into clicks --index shop --impressions 200000 --clients 10000
      searchloop simulate http://127.0.0.1:8600 --index shop --impressions 5000 --rate 50
      searchloop simulate http://127.0.0.1:8600 --queries judged.jsonl --qrels qrels.tsv --clicks trust_bias.json
      searchloop simulate --world days --days 3 --changed .1
    """
    from infra.commands.judged import read_judged
    from infra.simulating.driving import Crowd, drive
    from search_env.clicks.published import EYE_TRACKED, read_click_model
    from search_env.clicks.users import SimulatedUsers
    from search_env.queries.intents import load_intents
    from streams.errors import SettingsError
    from streams.secrets import reveal

    if sum(each is not None for each in (server, into, world)) != 1:
        given = [name for name, each in (("SERVER", server), ("--into", into), ("--world", world)) if each is not None]
        raise click.UsageError(
            f"expected one of SERVER, --into RUN and --world FOLDER, got {' and '.join(given) or 'none'}"
        )
    if world is not None:
        _write_world(world, days, changed, crowd.seed)
        return
    judged = read_judged(queries, qrels)
    published = read_click_model(crowd.clicks) if crowd.clicks else EYE_TRACKED
    if into is not None or server is None:
        _into_run(app, index, judged, published, crowd, into=into or "", explore=explore, fraud=fraud, as_json=as_json)
        return
    if not _is_here(server):
        raise SettingsError(
            f"SERVER: expected an address of this machine, such as http://127.0.0.1:8600, got {server[:100]!r}. "
            "Simulated people are no load for a server that real people use"
        )
    asked, grades = judged if judged is not None else load_intents(app.home.index(index).intents, "dev")
    wanted = msgspec.convert({k: v for k, v in msgspec.structs.asdict(crowd).items() if k != "clicks"}, Crowd)
    with progress() as report:
        found = asyncio.run(
            drive(
                server.rstrip("/"),
                asked,
                grades,
                SimulatedUsers(published, grades, crowd.seed),
                wanted,
                token=reveal(app.settings.serve.token),
                report=report,
            )
        )
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
        return
    click.echo(
        f"simulated: {found.searches:,} searches, {found.failed:,} failed requests, {found.bots:,} searches by bots"
    )
    table = Table("answered by", "impressions", "with a click", "clicks", "hidden nDCG@10", box=box.SIMPLE)
    for policy, counts in sorted(found.by_policy.items()):
        table.add_row(
            printable(policy) or "raw results",
            f"{counts.impressions:,}",
            f"{counts.clicked / counts.impressions:.1%}",
            f"{counts.clicks:,}",
            f"{counts.quality:.3f}",
        )
    Console(markup=False).print(table)


def _is_here(server: str) -> bool:
    """Return whether an address is of this machine; http://localhost.shop.example is not."""
    try:
        found = urlsplit(server)
        return found.scheme == "http" and found.hostname in LOOPBACK
    except ValueError:
        return False


def _write_world(folder: Path, count: int, changed: float, seed: int) -> None:
    from infra.simulating.world import WorldSettings
    from infra.simulating.world_files import write_days

    settings = WorldSettings(replaced=changed, renamed=changed, moved=changed, seed=seed)
    with progress() as report:
        places = write_days(folder, settings, count, report)
    click.echo(f"simulated: {count} days in {places[0].parent}, {settings.products:,} products each")
    click.echo(f"next: searchloop index {places[0] / 'corpus.jsonl'} --name world")


def _into_run(
    app: App,
    index: str,
    judged: Judged | None,
    published: PublishedModel,
    crowd: CrowdOptions,
    *,
    into: str,
    explore: float,
    fraud: float,
    as_json: bool,
) -> None:
    """Simulate people in this process, and print the number of their searches."""
    from infra.simulating.people import Population
    from infra.simulating.writing import simulate_into
    from search_env.queries.intents import load_intents
    from streams.errors import SettingsError

    if crowd.bots:
        raise click.UsageError("--bots: expected 0 with --into, got a share. --fraud gives a client that is no person")
    asked = judged if judged is not None else load_intents(app.home.index(index).intents, "train")
    if not asked[1]:
        raise SettingsError(f"index {index!r} has no judged training queries; give some: --queries FILE --qrels FILE")
    people = Population(
        impressions=crowd.impressions,
        clients=crowd.clients,
        size=crowd.size,
        explore=explore,
        fraud=fraud,
        seed=crowd.seed,
    )
    with progress() as report, app.running_services(report) as running:
        count = simulate_into(
            running, into=into, index=index, judged=asked, published=published, people=people, report=report
        )
    if as_json:
        click.echo(msgspec.json.encode({"run": into, "searches": count}).decode())
        return
    click.echo(
        f"simulated: {count:,} searches in run {into}. Next: searchloop relevance --index {index} --traffic {into}"
    )
