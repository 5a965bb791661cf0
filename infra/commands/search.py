"""`searchloop index`, `expand` and `search`: documents in, expansions and rankings out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.table import Table

from infra.app.app import App
from infra.app.progress import progress
from infra.commands.dense import VectorOptions, check_vectors, search_by_vectors, vector_options
from infra.commands.options import as_one, fields, need
from infra.commands.results import warn
from search_env.catalogue.corpora import Query, Ranking, load_corpus, load_queries, write_run
from streams.inputs.files import names_a_file
from streams.inputs.text import QUERY_CHARACTERS_MAX, Cuts

QUERY_SUFFIXES = (".jsonl", ".gz", ".zst", ".json", ".ndjson", ".tsv", ".csv", ".txt")
TOP_BY_WORDS, TOP_BY_VECTORS = 1000, 100


class WordsOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options that apply to a search by words alone."""

    temperature: float
    reranked: int
    routes: Path | None


words_options = as_one(
    "words",
    WordsOptions,
    click.option(
        "--temperature",
        type=click.FloatRange(0, 2),
        default=0.0,
        show_default=True,
        help="By words: sampling temperature; 0 decodes greedily, as in serving.",
    ),
    click.option(
        "--rerank",
        "reranked",
        type=click.IntRange(0, 10_000),
        default=0,
        show_default=True,
        help="By words: number of documents per query to rerank by title and summary, with the index's cross-encoder.",
    ),
    click.option(
        "--routes",
        type=click.Path(path_type=Path),
        help="By words: routes that `promote` made (runs/LIVE/routes/VERSION.json). Each query gets what its part may "
        "be served, by the routes' version.",
    ),
)


@click.command()
@click.argument("corpus", type=click.Path(path_type=Path))
@click.option("--name", default="catalogue", show_default=True, help="Name of the index (its alias in Elasticsearch).")
@click.option(
    "--adopt",
    is_flag=True,
    help="Take over and replace versions NAME-<number> that an older searchloop made without a mark.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object on standard output.")
@click.pass_obj
def index(app: App, corpus: Path, name: str, adopt: bool, as_json: bool) -> None:
    """Load a corpus into Elasticsearch and generate training queries from it.

    \b
    CORPUS is a file of JSON lines, gzipped or not. Each line has _id, title, text and, optionally, metadata.attributes:
    an object whose values are texts, numbers, true or false, or lists of those.
    A new version is built beside the old one; the alias moves when the new version is complete.
    searchloop replaces only indexes that this home made. If another index has the name, the verb stops and changes
    nothing.

    \b
    Example:
      searchloop index catalogue.jsonl.gz --name shop
    """
    from infra.app.indexing import index_corpus
    from search_env.engine.index import check_name

    app.home.index(name)
    check_name(name)
    # Read before any service starts, because the file may be invalid; and again, because it may not fit into memory.
    for _ in load_corpus(corpus, tell=warn):
        pass
    documents = load_corpus(corpus, tell=lambda _: None)
    with progress() as report, app.running_services(report) as running:
        summary = index_corpus(running, name=name, documents=documents, report=report, adopt=adopt)
    if as_json:
        click.echo(msgspec.json.encode(summary).decode())
        return
    counts = ", ".join(f"{count} {split}" for split, count in summary.queries.items() if count)
    click.echo(f"{summary.name}: {summary.documents} documents; queries from {summary.kind}: {counts}")
    if summary.adopted:
        click.echo(f"taken over: {', '.join(summary.adopted)}")
    if summary.unread:
        click.echo(f"warning: {summary.unread}", err=True)


@click.command()
@click.option("--index", default="catalogue", show_default=True, help="Index that the queries are for.")
@click.option("--queries", required=True, help="File of queries (JSONL), or the text of one query.")
@click.option(
    "--policy", default="latest", show_default=True, help="Policy version: latest, best, a step, or a version's name."
)
@click.option("--run", "run_name", help="Run of the policy. Default: the newest run on the index.")
@click.option(
    "--head", type=click.IntRange(min=1), help="Expand only this many texts: the most frequent ones of the file."
)
@click.option("--keep", is_flag=True, help="Store the expansions, so that search and expand can look them up.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per query, one per line.")
@click.pass_obj
def expand(
    app: App,
    index: str,
    queries: str,
    policy: str,
    run_name: str | None,
    head: int | None,
    keep: bool,
    as_json: bool,
) -> None:
    """Show the expansions that a policy version writes for queries, decoded as in serving.

    \b
    --keep stores the expansions for this policy version and this version of the index. `search` and `expand` then look
    them up, and run the model only for queries that are not stored. Head queries therefore need no model.

    \b
    Example:
      searchloop expand --index shop --queries "waterproof hiking shoes"
      searchloop expand --index shop --queries queries.jsonl --policy 120 --json
      searchloop expand --index shop --queries traffic.jsonl --head 1000 --keep
    """
    from infra.recipes.leser.expanding import expand_queries
    from search_env.leser.expansion_cache import head_queries

    asked = queries_or_text(queries)
    if head is not None:
        asked = head_queries(asked, head)
    with progress() as report, app.running_services(report) as running:
        found = expand_queries(running, asked, index=index, policy=policy, run=run_name, report=report, keep=keep)
    valid = sum(item.valid for item in found)
    click.echo(f"{valid} of {len(found)} answers are valid ({valid / len(found):.0%})", err=True)
    if as_json:
        for item in found:
            click.echo(msgspec.json.encode(item).decode())
        return
    table = Table("query", "expansions", title=f"policy {found[0].policy}")
    for item in found:
        table.add_row(item.query, ", ".join(item.expansions) if item.valid else "(no valid answer: searched as it is)")
    Console(markup=False).print(table)


@click.command()
@click.option(
    "--by",
    type=click.Choice(["words", "vectors"]),
    default="words",
    show_default=True,
    help="Way to search: by words, or by dense vectors of the documents or of texts that represent them.",
)
@click.option("--index", default="catalogue", show_default=True, help="Index to search.")
@click.option(
    "--queries", "asked", multiple=True, required=True, help="File of queries (JSONL), or a query's text; repeatable."
)
@click.option(
    "--policy",
    default="latest",
    show_default=True,
    help="Policy version or baseline: none, rm3, bo1, minilm (the nearest words), knn, shown (the prompt's words), "
    "latest, best, a step, or a version's name. By vectors: version that writes the texts of --texts policy.",
)
@click.option(
    "--run",
    "run_name",
    help="Run of the policy. Default: the newest run on the index. By vectors: required with --texts policy.",
)
@click.option(
    "--run-file",
    "run_files",
    multiple=True,
    type=click.Path(path_type=Path),
    required=True,
    help="TREC run file to write; one for each --queries, in the same order.",
)
@click.option(
    "--top",
    type=click.IntRange(1, 10_000),
    show_default="1000 by words, 100 by vectors",
    help="Number of documents per query.",
)
@words_options
@vector_options
@click.pass_context
def search(
    context: click.Context,
    by: str,
    index: str,
    asked: tuple[str, ...],
    policy: str,
    run_name: str | None,
    run_files: tuple[Path, ...],
    top: int | None,
    words: WordsOptions,
    vectors: VectorOptions,
) -> None:
    """Search queries, raw or expanded, by words or by vectors, and write TREC run files.

    \b
    Example:
      searchloop search --index shop --queries q.jsonl --policy none --run-file raw.run
      searchloop search --index shop --queries q.jsonl --policy latest --run-file policy.run
      searchloop search --index shop --queries q.jsonl --policy none --rerank 50 --run-file reranked.run
      searchloop search --index shop --queries q.jsonl --routes .searchloop/runs/live/routes/V.json --run-file s.run
      searchloop search --by vectors --index shop --texts lead --adapt 450 --queries q.jsonl --run-file lead.run
      searchloop search --by vectors --index shop --texts policy --run resume-0-t3 --queries q.jsonl --run-file p.run
    """
    app: App = context.obj
    if by == "words":
        need(context, fields(VectorOptions), "--by vectors", got="--by words")
    else:
        need(context, fields(WordsOptions), "--by words", got="--by vectors")
        if vectors.texts != "policy":
            need(context, ["policy"], "--texts policy", got=f"--texts {vectors.texts}")
        check_vectors(vectors, index=index, run_name=run_name)
    if len(asked) != len(run_files) or len(set(run_files)) < len(run_files):
        raise click.UsageError(
            f"--run-file: expected a file of its own for each of the {len(asked)} --queries, got "
            f"{', '.join(map(str, run_files))}. Give each --queries its own --run-file"
        )
    pairs = [(queries_or_text(queries), out) for queries, out in zip(asked, run_files, strict=True)]
    if by == "words":
        _search_by_words(app, pairs, words, index=index, policy=policy, run_name=run_name, top=top or TOP_BY_WORDS)
    else:
        search_by_vectors(app, pairs, vectors, index=index, run_name=run_name, policy=policy, top=top or TOP_BY_VECTORS)


def _search_by_words(
    app: App,
    asked: Sequence[tuple[Sequence[Query], Path]],
    words: WordsOptions,
    *,
    index: str,
    policy: str,
    run_name: str | None,
    top: int,
) -> None:
    from infra.promotion.served import served_rankings
    from infra.promotion.state import read_routes_file
    from infra.recipes.leser.searching import search_added, search_queries

    routes = read_routes_file(words.routes) if words.routes else None
    with progress() as report, app.running_services(report) as running:

        def ranked(queries: Sequence[Query], version: str) -> dict[str, Ranking]:
            return search_queries(
                running,
                queries,
                index=index,
                policy=version,
                run=run_name,
                top=top,
                report=report,
                temperature=words.temperature,
                reranked=words.reranked,
            )

        for queries, out in asked:
            if routes is None:
                found = ranked(queries, policy)
            else:
                raw, helped = ranked(queries, "none"), ranked(queries, routes.version)
                added = search_added(
                    running,
                    queries,
                    helped,
                    index=index,
                    policy=routes.version,
                    run=run_name,
                    top=top,
                    report=report,
                    terms_min=routes.terms_min,
                    reranked=words.reranked,
                )
                found = served_rankings(queries, raw, helped, added, routes)
            write_run(out, found, tag=policy)
            click.echo(f"{out}: {len(found)} queries, {sum(len(ranking.ids) for ranking in found.values())} documents")


def queries_or_text(value: str) -> list[Query]:
    """Return the queries of a file if `value` is or looks like a file's name, otherwise the text as one query.

    A text is cleaned and cut like the queries of a file. Raises BadParameter if the result is empty.
    """
    if names_a_file(value, QUERY_SUFFIXES):
        return load_queries(value, tell=warn)
    cuts = Cuts()
    text = cuts.clean(value, characters_max=QUERY_CHARACTERS_MAX, what="query", where="--queries")
    if not text:
        raise click.BadParameter(
            "expected a file of queries or the text of one query, got nothing", param_hint="--queries"
        )
    for line in cuts.told():
        warn(line)
    return [Query(id="query", text=text)]
