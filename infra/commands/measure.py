"""`searchloop measure`, `summarize`, `premise` and `prefer`: what a task's policies reach, write, and stand on."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

from infra.context import App
from infra.progress import progress


@click.command()
@click.argument("rankings", nargs=-1, required=True, metavar="RUN:POLICY…")
@click.option("--baseline", help="One of them, which the others are compared with.")
@click.option("--queries", type=click.Path(path_type=Path), help="Judged queries (JSONL) of one's own, measured too.")
@click.option("--qrels", type=click.Path(path_type=Path), help="Their judgments.")
@click.option("--measures", default="nDCG@5,R@90P", show_default=True, help="Names, separated by commas.")
@click.option("--samples", default=10_000, show_default=True, type=click.IntRange(100, 1_000_000))
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
@click.pass_obj
def measure(
    app: App,
    rankings: tuple[str, ...],
    baseline: str | None,
    queries: Path | None,
    qrels: Path | None,
    measures: str,
    samples: int,
    as_json: bool,
) -> None:
    """Measure policy versions on their task's held-out sets, paired by query, with 95 % intervals.

    \b
    POLICY is latest, a step, a version, or a method that learns nothing: title, first-tokens, random, idf, log-counts,
    log-counts-per-word, log-rates, doc2query, oracle, description for summaries; none, rm3, bo1, knn for expansions.

    \b
    Example:
      searchloop measure relsum-shop-0:log-counts relsum-shop-0:latest --baseline relsum-shop-0:log-counts
    """
    from infra.commands.evaluate import print_evaluation
    from infra.measuring import measure_runs
    from search_env.corpora import load_qrels, load_queries
    from storage.evaluation.tables import EvaluationSettings

    if (queries is None) != (qrels is None):
        raise click.UsageError("--queries and --qrels belong together: give both, or neither")
    pairs = []
    for each in rankings:
        run, colon, policy = each.partition(":")
        if not colon:
            raise click.UsageError(f"expected RUN:POLICY, such as relsum-shop-0:latest, got {each!r}")
        pairs.append((run, policy))
    if baseline is not None and baseline not in rankings:
        raise click.UsageError(f"--baseline: expected one of the rankings, got {baseline!r}")
    given = (load_queries(queries), load_qrels(qrels)) if queries is not None and qrels is not None else None
    settings = EvaluationSettings(measures=tuple(measures.split(",")), samples=samples)
    with progress() as report:
        found = measure_runs(app, pairs, baseline=baseline, given=given, settings=settings, report=report)
    if as_json:
        value = [msgspec.to_builtins(item) for item in found]
        for item in value:
            for run in item["evaluation"]["runs"]:
                del run["per_query"]
        click.echo(msgspec.json.encode(value, order="sorted").decode())
        return
    console = Console()
    for item in found:
        console.print(f"[bold]{item.name}[/bold]")
        print_evaluation(item.evaluation, console)
        table = Table("run", "R@90P, one threshold", box=box.SIMPLE_HEAD)
        for name, recall in item.pooled_recall.items():
            table.add_row(name, f"{recall:.4f}")
        console.print(table)


@click.command()
@click.option("--run", "run_name", required=True, help="The run whose policy writes.")
@click.option("--policy", default="latest", show_default=True, help="latest, a step, or a version.")
@click.option(
    "--output", type=click.Path(path_type=Path), help="A copy as JSON lines, beside what the run's folder keeps."
)
@click.pass_obj
def summarize(app: App, run_name: str, policy: str, output: Path | None) -> None:
    """Write the summary of every product of the catalogue, and store them with their policy version.

    \b
    Example:
      searchloop summarize --run relsum-shop-0 --output summaries.jsonl
    """
    import shutil

    from infra.run_settings import read_run_settings
    from infra.summary_arms import summaries_of, summaries_path
    from infra.summary_world import SummaryWorld
    from learner.versions import find_version
    from streams.topics import version_name

    kept = read_run_settings(app.home.existing_run(run_name))
    with progress() as report:
        world = SummaryWorld(app.with_settings(kept.settings), kept.index, report)
        written = summaries_of(
            app, world, kept, [document.id for document in world.documents], policy=policy, report=report
        )
    _, manifest = find_version(app.home.run(run_name) / "checkpoints", policy)
    path = summaries_path(app, kept, version_name(manifest.policy))
    if output is not None:
        shutil.copyfile(path, output)
    click.echo(f"{len(written)} summaries by {version_name(manifest.policy)}: {output or path}")


@click.command()
@click.option("--recipe", default="relsum", show_default=True, help="A recipe's name, or a TOML file of one's own.")
@click.option("--index", default="catalogue", show_default=True, help="The index whose products are summarized.")
@click.option("--queries", "queries_max", default=200, show_default=True, help="Dev queries to look at, at most.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
@click.pass_obj
def premise(app: App, recipe: str, index: str, queries_max: int, as_json: bool) -> None:
    """Check what summaries stand on before any training: calibration, which reward agrees with nDCG, and time.

    \b
    Example:
      searchloop premise --recipe relsum --index shop
    """
    from infra.premise import check_premise
    from infra.recipes import recipe_path
    from infra.summary_world import SummaryWorld

    with progress() as report:
        world = SummaryWorld(app.with_recipe(recipe_path(recipe)), index, report)
        found = check_premise(world, queries_max=queries_max)
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
        return
    console = Console()
    if found.calibration is not None:
        console.print(
            f"cross-encoder {found.calibration.version}: AUC {found.calibration.auc:.3f}, calibration error "
            f"{found.calibration.ece_before:.3f} before, {found.calibration.ece_after:.3f} after"
        )
    names = list(next(iter(found.arms.values())))
    table = Table("arm", *names, box=box.SIMPLE_HEAD)
    for arm, row in found.arms.items():
        table.add_row(arm, *(f"{row[name]:.3f}" for name in names))
    table.add_row(
        "agreement with nDCG@5", *(f"{found.agreement[n]:.3f}" if n in found.agreement else "" for n in names)
    )
    console.print(table)
    console.print(", ".join(f"{name} {value:.2f} ms" for name, value in found.milliseconds.items()))


@click.command()
@click.option("--run", "run_name", required=True, help="The run whose logged groups give the pairs.")
@click.option("--into", required=True, help="Name of the new run, whose policy 0 has learned from them.")
@click.pass_obj
def prefer(app: App, run_name: str, into: str) -> None:
    """Teach a run's first policy by DPO, on the best and the worst text of each group that the run has logged.

    \b
    Example:
      searchloop prefer --run relsum-shop-0 --into relsum-shop-0-dpo
    """
    from infra.preferring import prefer_run

    with progress() as report:
        pairs = prefer_run(app, run=run_name, into=into, report=report)
    click.echo(f"{into}: policy 0 has learned from {pairs} pairs of {run_name}")
