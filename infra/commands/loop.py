"""`searchloop loop`: the whole loop in one process, for reading and debugging."""

from __future__ import annotations

from pathlib import Path

import click

from infra.app.app import App
from infra.app.progress import progress


@click.command()
@click.option("--recipe", default="leser", show_default=True, help="Recipe: its name, or the path of a TOML file.")
@click.option("--index", default="catalogue", show_default=True, help="Index to learn on.")
@click.option("--updates", type=click.IntRange(min=1), default=8, show_default=True, help="Number of optimizer steps.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the run.")
@click.option("--run", "run_name", help="Name of the run; an existing run continues. [loop-RECIPE-INDEX-SEED]")
@click.pass_obj
def loop(app: App, recipe: str, index: str, updates: int, seed: int, run_name: str | None) -> None:
    """Run the whole loop in one process, without Kafka and without a log.

    \b
    The loop is one page, `infra/runs/loop.py`: set a breakpoint there. It calls the same functions as the workers, so
    the weights equal those of a streamed run with a staleness limit of 0.

    \b
    Example:
      searchloop loop --recipe leser --index shop --updates 4
    """
    from infra.recipes.files import recipe_path
    from infra.recipes.recipe import NewRun
    from infra.runs.training_runs import loop_run

    app = app.with_recipe(recipe_path(recipe))
    name = Path(recipe).stem
    run = run_name or f"loop-{name}-{index}-{seed}"
    with progress() as report, app.running_services(report) as running:
        new = NewRun(run=run, index=index, seed=seed)
        for update in loop_run(running, new, recipe=name, updates=updates, report=report):
            metrics = update.metrics
            click.echo(
                f"version {update.policy.step}: {len(update.trained)} groups trained, reward "
                f"{metrics['reward_mean']:.3f}, valid {metrics['validity']:.0%}"
            )
    click.echo(f"checkpoints: {app.home.run(run) / 'checkpoints'}")
