"""`searchloop measure`, `summarize` and `premise`: the verbs that measure and use a recipe's policies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

from infra.app.app import App
from infra.app.progress import Report, progress
from infra.app.renamed import arm_name
from infra.commands.judged import judged_options, read_judged
from infra.commands.options import as_one

if TYPE_CHECKING:
    from infra.experiments.measuring import MeasuredSet
    from infra.recipes.recipe import Judged, Ranked


class BaselineOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options for baselines that need no run."""

    recipe: str
    index: str
    seed: int


baseline_options = as_one(
    "without",
    BaselineOptions,
    click.option("--recipe", default="leser", show_default=True, help="Recipe for baselines that need no run."),
    click.option("--index", default="catalogue", show_default=True, help="Index for baselines that need no run."),
    click.option(
        "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed for baselines that need no run."
    ),
)


class RankingOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options that say how a policy's rankings are made, and where they are kept."""

    assignments: tuple[str, ...]
    temperature: float
    top: int
    into: Path | None
    row: str | None


ranking_options = as_one(
    "ranking",
    RankingOptions,
    click.option(
        "--set",
        "assignments",
        multiple=True,
        metavar="TABLE.KEY=VALUE",
        help="Setting to change for this measurement; may be repeated.",
    ),
    click.option(
        "--temperature",
        type=click.FloatRange(0, 2),
        default=0.0,
        show_default=True,
        help="Sampling temperature; 0 decodes greedily, as in serving.",
    ),
    click.option(
        "--top", type=click.IntRange(1, 10_000), default=100, show_default=True, help="Number of documents per query."
    ),
    click.option(
        "--into", type=click.Path(path_type=Path), help="Folder for the rankings and judgments, as TREC files."
    ),
    click.option("--row", help="Name of the run file in --into, for a single ranking. [RUN.POLICY]"),
)


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="RUN:POLICY…")
@click.option("--baseline", help="Ranking to compare the others with; one of RUN:POLICY.")
@judged_options
@baseline_options
@ranking_options
@click.option("--measures", default="nDCG@5,R@90P", show_default=True, help="Measures, separated by commas.")
@click.option(
    "--samples",
    default=10_000,
    show_default=True,
    type=click.IntRange(100, 1_000_000),
    help="Number of bootstrap draws.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
@click.pass_obj
def measure(
    app: App,
    names: tuple[str, ...],
    baseline: str | None,
    queries: Path | None,
    qrels: Path | None,
    without: BaselineOptions,
    ranking: RankingOptions,
    measures: str,
    samples: int,
    as_json: bool,
) -> None:
    """Measure policy versions on their recipe's held-out sets, paired by query, with 95% intervals.

    \b
    POLICY is latest, best, a step, a version's name, or a baseline. The baselines are:
    none, rm3, bo1, minilm, knn, shown for expansions;
    title, lead, random, idf, key-counts, key-counts-per-word, key-rates, doc2query, oracle, description for ReLSum;
    description, title, lead, random, key-counts for ReSuMe.
    The prefix adapted- first adapts the reader to these texts. A baseline needs no run: `:title`.
    If rankings have unjudged documents, measures without them are added: see `searchloop evaluate --help`.

    \b
    Example:
      searchloop measure relsum-shop-0:key-counts relsum-shop-0:latest --baseline relsum-shop-0:key-counts
      searchloop measure :description --recipe relsum --index shop --into rankings
    """
    from infra.app.layers import assignments_layer
    from infra.experiments.measuring import measure_rankings
    from storage.evaluation.tables import EvaluationSettings

    pairs = {name: _run_and_policy(name) for name in names}
    if baseline is not None and baseline not in pairs:
        raise click.UsageError(f"--baseline: expected one of the rankings, got {baseline!r}")
    if ranking.row is not None and (ranking.into is None or len(names) > 1):
        raise click.UsageError("--row: expected --into, and one ranking")
    given, changes = read_judged(queries, qrels), assignments_layer(ranking.assignments)
    settings = EvaluationSettings(measures=tuple(measures.split(",")), samples=samples)
    with progress() as report, app.running_services(report) as running:
        found = _rank(running, pairs, without, ranking, given=given, changes=changes, report=report)
        measured = measure_rankings(found, baseline=baseline, settings=settings, report=report)
    if as_json:
        click.echo(_to_json(measured))
    else:
        _print_measured(measured, Console())


def _run_and_policy(text: str) -> tuple[str, str]:
    run, colon, policy = text.partition(":")
    if not colon or not policy:
        raise click.UsageError(f"expected RUN:POLICY, such as relsum-shop-0:latest, got {text!r}")
    return run, arm_name(policy)


def _rank(
    app: App,
    pairs: Mapping[str, tuple[str, str]],
    without: BaselineOptions,
    options: RankingOptions,
    *,
    given: Judged | None,
    changes: Mapping[str, Any],
    report: Report,
) -> dict[str, list[Ranked]]:
    """Return the rankings of every RUN:POLICY by its name, and keep them in `--into` if that is given."""
    from infra.app.run_settings import read_run_settings
    from infra.experiments.measuring import rank_run, without_run
    from infra.experiments.rankings import keep_rankings
    from infra.recipes.files import recipe_path
    from infra.recipes.recipe import Recipe, load_recipe

    found, opened = {}, dict[str, Recipe]()
    for name, (run, policy) in pairs.items():
        if run:
            kept = read_run_settings(app.home.existing_run(run))
        else:
            recipe_app = app.with_recipe(recipe_path(without.recipe))
            kept = without_run(recipe_app, recipe=Path(without.recipe).stem, index=without.index, seed=without.seed)
        of = kept.settings.train.recipe
        opened[of] = opened.get(of) or load_recipe(of)
        found[name] = rank_run(
            app,
            kept,
            policy=policy,
            given=given,
            changes=changes,
            temperature=options.temperature,
            top=options.top,
            report=report,
            recipe=opened[of],
        )
        if options.into is not None:
            keep_rankings(options.into, options.row or f"{run or Path(kept.recipe).stem}.{policy}", found[name])
    return found


def _to_json(measured: Sequence[MeasuredSet]) -> str:
    value = [msgspec.to_builtins(item) for item in measured]
    for item in value:
        for run in item["evaluation"]["runs"]:
            del run["per_query"]
    return msgspec.json.encode(value, order="sorted").decode()


def _print_measured(measured: Sequence[MeasuredSet], console: Console) -> None:
    from infra.commands.evaluate import print_evaluation

    for item in measured:
        console.print(f"[bold]{item.name}[/bold]")
        print_evaluation(item.evaluation, console)
        table = Table("run", "R@90P, one threshold", box=box.SIMPLE_HEAD)
        for name, recall in item.pooled_recall.items():
            table.add_row(name, f"{recall:.4f}")
        console.print(table)


@click.command()
@click.option("--run", "run_name", required=True, help="Run whose policy writes the summaries.")
@click.option(
    "--policy", default="latest", show_default=True, help="Policy version: latest, best, a step, or a version's name."
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="File for a copy as JSON lines; the run's folder keeps the original.",
)
@click.option("--publish", is_flag=True, help="Index the summaries beside the titles, as a new version of the index.")
@click.pass_obj
def summarize(app: App, run_name: str, policy: str, output: Path | None, publish: bool) -> None:
    """Write a summary of every product of the catalogue, and store it with its policy version.

    \b
    After --publish, `searchloop search --rerank` reads the summaries with the titles. The index versions that runs were
    started on are kept.

    \b
    Example:
      searchloop summarize --run relsum-shop-0 --output summaries.jsonl
      searchloop summarize --run relsum-shop-0 --publish
    """
    import shutil

    from infra.app.run_settings import read_run_settings
    from infra.recipes.recipe import writer_of

    kept = read_run_settings(app.home.existing_run(run_name))
    writer = writer_of(kept.settings.train.recipe)
    with progress() as report:
        texts = writer.write_catalogue(app.with_settings(kept.settings), kept, policy=policy, report=report)
    if output is not None:
        shutil.copyfile(texts.path, output)
    click.echo(f"{len(texts.by_document)} summaries by {texts.policy}: {output or texts.path}")
    if publish:
        from contextlib import closing

        from infra.recipes.publishing import publish_summaries

        with progress() as report, app.running_services(report) as running, closing(running.engine()) as client:
            version = publish_summaries(
                client,
                running.home.index(kept.index),
                texts,
                installation=running.installation,
                runs=running.home.runs,
                report=report,
                layout=app.settings.index_layout,
            )
        click.echo(f"{version.name}: {version.documents} documents with summaries by {version.summaries}")


@click.command()
@click.option("--recipe", default="relsum", show_default=True, help="Recipe: its name, or the path of a TOML file.")
@click.option("--index", default="catalogue", show_default=True, help="Index whose products are summarized.")
@click.option("--queries", "queries_max", default=200, show_default=True, help="ReLSum: maximum number of dev queries.")
@click.option(
    "--candidates",
    default=32,
    show_default=True,
    type=click.IntRange(2, 1000),
    help="ReSuMe: number of candidates per product.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="ReSuMe: seed of the random selections."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
@click.pass_obj
def premise(app: App, recipe: str, index: str, queries_max: int, candidates: int, seed: int, as_json: bool) -> None:
    """Check the premise of a recipe for summaries before any training.

    \b
    ReLSum: measure the calibration, the agreement of each reward with nDCG, and the time. ReSuMe: test whether random
    summaries with the highest reward are found better than other random summaries, after the retriever is adapted.

    \b
    Example:
      searchloop premise --recipe relsum --index shop
      searchloop premise --recipe resume --index shop
    """
    from infra.recipes.files import recipe_path
    from infra.recipes.recipe import PremiseOptions, premise_of

    app = app.with_recipe(recipe_path(recipe))
    checked = premise_of(app.settings.train.recipe)
    options = PremiseOptions(queries_max=queries_max, candidates=candidates, seed=seed)
    with progress() as report:
        found = checked.check_premise(app, index, options, report)
    if as_json:
        click.echo(msgspec.json.encode(found.value).decode())
        return
    console = Console()
    table = Table(*found.columns, box=box.SIMPLE_HEAD)
    for row in found.rows:
        table.add_row(*row)
    if found.above:
        console.print(found.above)
    console.print(table)
    if found.below:
        console.print(found.below)
