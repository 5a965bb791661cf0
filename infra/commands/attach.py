"""`searchloop attach`: an index that somebody else made, beside which searchloop stands."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from infra.app.app import App
from infra.app.attaching import Wanted
from infra.app.progress import progress
from infra.commands.options import as_one, exclude

search_options = as_one(
    "wanted",
    Wanted,
    click.argument("index"),
    click.option(
        "--id", "id_field", default="_id", show_default=True, help="Field that names a document; _id is the engine's."
    ),
    click.option("--title", default="", help="Field of the title. Default: guessed from names and types."),
    click.option("--text", "texts", multiple=True, help="Field of a further text; may be repeated."),
    click.option("--attributes", multiple=True, help="Field of an attribute, or an object of many; may be repeated."),
    click.option(
        "--searched",
        multiple=True,
        help='Field in which expansions are searched, with a boost as "title^2"; may be repeated. Default: title and '
        "texts.",
    ),
    click.option(
        "--template",
        type=click.Path(path_type=Path),
        help="File with your own search body (JSON), with {{query}} where the query stands.",
    ),
    click.option("--template-id", default="", help="Your own search template, as it is stored on the cluster."),
    click.option(
        "--query-variable", default="query", show_default=True, help="Variable of the template that holds the query."
    ),
    click.option(
        "--expansions-variable", default="", help="Variable of the template that takes expansions, if it has one."
    ),
    click.option(
        "--parameters",
        type=click.Path(path_type=Path),
        help="File with the values of the template's other variables (JSON).",
    ),
    click.option(
        "--sample",
        type=click.IntRange(min=100, max=1_000_000),
        default=20_000,
        show_default=True,
        help="Number of documents that are read for statistics and for training queries.",
    ),
    click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the sample."),
)


@click.command()
@search_options
@click.option("--name", help="Name of the attachment in this home. Default: the name of the index.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object on standard output.")
@click.pass_context
def attach(context: click.Context, wanted: Wanted, name: str | None, as_json: bool) -> None:
    """Attach an index that you have already, with your own search.

    \b
    INDEX is an index, an alias or a data stream. Nothing is written to your cluster, and the right to read is enough.
    Give the search that you have, as a file (--template) or by its name (--template-id). {{query}} marks the place of
    the query, as a value. Expansions stand beside the clause that holds it; {{expansions}}, as an element of a list of
    clauses, marks another place. Without a template, the words are searched in title and texts.
    A sample of the documents is read. Further documents are read when a search finds them.

    \b
    Example:
      searchloop attach products --name shop --template search.json --title name --text description --attributes specs
      searchloop train --recipe leser --index shop
    The address and the key of your cluster: SEARCHLOOP_ELASTICSEARCH__URL and SEARCHLOOP_ELASTICSEARCH__API_KEY_FILE.
    """
    from infra.app.attaching import attach_index

    app: App = context.obj
    if wanted.template and wanted.template_id:
        exclude(context, ["template"], "--template-id")
    name = name or wanted.index
    app.home.index(name)
    with progress() as report, app.running_services(report) as running:
        summary = attach_index(running, wanted, name=name, report=report)
    if as_json:
        click.echo(msgspec.json.encode(summary).decode())
        return
    counts = ", ".join(f"{count} {split}" for split, count in summary.queries.items() if count)
    click.echo(
        f"{summary.name}: beside '{summary.index}' with {summary.documents:,} documents, {summary.sample:,} read"
    )
    click.echo(f"  id          {summary.id_field}")
    click.echo(f"  title       {summary.title or 'none'}")
    click.echo(f"  texts       {', '.join(summary.texts) or 'none'}")
    click.echo(f"  attributes  {', '.join(summary.attributes) or 'none'}")
    click.echo(f"  expansions  searched in {', '.join(summary.searched)}")
    click.echo(f"  queries     from {summary.kind}: {counts or 'none'}")
