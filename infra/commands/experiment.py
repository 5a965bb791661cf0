"""`searchloop experiment`: all arms and seeds of a paper's table, from one plan."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from infra.app.app import App
from infra.app.progress import progress
from infra.commands.judged import judged_options, read_judged

if TYPE_CHECKING:
    from infra.experiments.tables import ArmRow, Results


@click.command()
@click.argument("plan_name", metavar="PLAN")
@click.option("--index", default="catalogue", show_default=True, help="Index to learn and to measure on.")
@judged_options
@click.option("--seeds", help="Seeds, separated by commas. Default: the plan's seeds.")
@click.option("--arm", "arms", multiple=True, help="Run only this arm and the arms that it needs; may be repeated.")
@click.option("--baseline", help="Arm to compare the others with. Default: the plan's baseline.")
@click.option("--updates", type=click.IntRange(min=1), help="Number of optimizer steps of every trained arm.")
@click.option("--into", help="Name of the experiment; an existing one continues where it stopped. [PLAN-INDEX]")
@click.option("--json", "as_json", is_flag=True, help="Print the results as one JSON object on standard output.")
@click.pass_obj
def experiment(
    app: App,
    plan_name: str,
    index: str,
    queries: Path | None,
    qrels: Path | None,
    seeds: str | None,
    arms: tuple[str, ...],
    baseline: str | None,
    updates: int | None,
    into: str | None,
    as_json: bool,
) -> None:
    """Run a paper's whole table: train every arm with every seed, rank, compare, and write the results.

    \b
    PLAN is a built-in plan (leser, relsum, resume, leser-smollm2; leser-ablations, leser-behind-ranker, leser-clicks,
    relsum-ablations, relsum-turns) or the path of a file. The arms are measured on the recipe's held-out sets, and on
    judged queries if you give some. A plan with a ranker shows each set once more behind the ranker.
    If rankings have unjudged documents, measures without them are added: see `searchloop evaluate --help`.
    Finished parts are kept: if the experiment is stopped, the same command continues it. The results are written to
    results.html, results.md and results.json in HOME/experiments/NAME, with the commands to repeat each step by hand.

    \b
    Example:
      searchloop experiment leser --index shop --queries judged.jsonl --qrels qrels.tsv
      searchloop experiment relsum --index shop --seeds 0 --arm "key counts" --arm GRPO
      searchloop experiment relsum --index shop --arm "shuffled rewards" --baseline "before RL"
    """
    from infra.experiments.arms import begin, run_arms
    from infra.experiments.markdown import markdown_table
    from infra.experiments.page import render_experiment
    from infra.experiments.plan import check_methods, read_plan
    from infra.experiments.tables import read_results
    from infra.recipes.files import plan_path, recipe_path
    from infra.recipes.recipe import load_recipe
    from search_env.catalogue.corpora import write_whole

    path = plan_path(plan_name)
    plan = read_plan(path, seeds=_seeds(seeds), arms=arms, baseline=baseline)
    if updates:
        plan = msgspec.structs.replace(plan, updates=updates)
    name = into or f"{path.stem}-{index}"
    app = app.with_recipe(recipe_path(plan.recipe))
    recipe = load_recipe(app.settings.train.recipe)
    check_methods(plan, recipe.methods)
    if plan.ranker and not getattr(recipe, "ranker", False):
        raise click.UsageError(f"{path}: ranker: expected 0, since {plan.recipe} has none, got {plan.ranker}")
    given = read_judged(queries, qrels, index_folder=app.home.index(index))
    folder = app.home.experiment(name)
    begin(folder, plan, index=index, given=given, files=tuple(map(str, (queries, qrels))) if given else ())
    with progress() as report, app.running_services(report) as running:
        run_arms(running, plan, name=name, index=index, given=given, report=report)
        report("drawing queries", 0, 0)
        results = read_results(app.home, plan, name=name, index=index)
    write_whole(folder / "results.json", msgspec.json.format(msgspec.json.encode(results)))
    write_whole(folder / "results.html", render_experiment(results))
    write_whole(folder / "results.md", markdown_table(results))
    if as_json:
        click.echo(msgspec.json.encode(results).decode())
        return
    print_results(results, Console())
    click.echo(f"wrote results.html, results.json and results.md in {folder}")


def print_results(results: Results, console: Console) -> None:
    """Print one table per query set, with each arm's measures and its differences to the baseline."""
    for each in results.sets:
        console.print(Text(f"\n{each.name}: {each.queries} queries", style="bold"))
        for measures in filter(None, (results.measures, each.beside)):
            table = Table("arm", "seeds", *measures, box=box.SIMPLE_HEAD)
            for arm in each.arms:
                cells = [_cell(arm, measure) for measure in measures]
                table.add_row(Text(arm.name), ",".join(map(str, arm.seeds)), *cells)
            console.print(table)
        if each.believed and each.believed.line:
            console.print(each.believed.line)


def _cell(arm: ArmRow, measure: str) -> str:
    """Return an arm's value, if the measure has one, and its difference to the baseline, if the arm has one."""
    reached = f"{arm.measures[measure].value:.4f}" if measure in arm.measures else ""
    found = arm.differences[measure].interval if arm.differences else None
    if found is None or found.value is None or found.low is None or found.high is None:
        return reached
    if reached:
        return f"{reached}\n{found.value:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"
    return f"{found.value:+.1%} [{found.low:+.1%}, {found.high:+.1%}]"


def _seeds(text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() for part in parts):
        raise click.BadParameter(f"expected numbers separated by commas, such as 0,1,2, got {text!r}")
    return tuple(dict.fromkeys(map(int, parts)))
