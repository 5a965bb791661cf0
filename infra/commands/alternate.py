"""`searchloop alternate`: train a summarizer and the reader of its summaries in turns."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec
from rich.console import Console
from rich.table import Table

from infra.app.app import App
from infra.app.progress import progress

if TYPE_CHECKING:
    from infra.runs.alternation import Alternation


@click.command()
@click.option("--recipe", default="resume", show_default=True, help="Recipe: its name, or the path of a TOML file.")
@click.option("--index", default="catalogue", show_default=True, help="Index to learn on.")
@click.option("--held-out", type=click.Path(path_type=Path), help="Queries (JSONL) to keep out of all training.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of its runs.")
@click.option(
    "--run", "run_name", help="Name of its runs; existing runs continue where they stopped. [RECIPE-INDEX-SEED]"
)
@click.option("--json", "as_json", is_flag=True, help="Print the turns as one JSON object on standard output.")
@click.pass_obj
def alternate(
    app: App, recipe: str, index: str, held_out: Path | None, seed: int, run_name: str | None, as_json: bool
) -> None:
    """Train a summarizer and the reader of its summaries in turns, each on the other's newest version.

    \b
    ReSuMe's reader is a dense retriever. ReLSum's reader is a cross-encoder; the paper keeps it frozen, and names its
    training as future work. Each turn trains the summarizer by GRPO against the reader of the previous turn (in a run
    RUN-t1, RUN-t2 …), writes summaries, and adapts the reader to them. The turns end when dev queries gain no more.

    \b
    Example:
      searchloop alternate --recipe resume --index shop
      searchloop alternate --recipe relsum --index shop
    """
    from infra.recipes.files import recipe_path
    from infra.recipes.recipe import partner_of
    from infra.runs.alternation import alternate as take_turns
    from search_env.catalogue.corpora import load_queries

    app = app.with_recipe(recipe_path(recipe))
    partner = partner_of(app.settings.train.recipe)
    left_out = load_queries(held_out) if held_out else []
    with progress() as report, app.running_services(report) as running:
        done = take_turns(
            running,
            partner,
            recipe=Path(recipe).stem,
            index=index,
            seed=seed,
            name=run_name or f"{Path(recipe).stem}-{index}-{seed}",
            held_out=left_out,
            report=report,
        )
    if as_json:
        click.echo(msgspec.json.encode(done).decode())
        return
    print_turns(done, Console())


def print_turns(done: Alternation, console: Console) -> None:
    """Print one row per turn, and how to use the best turn."""
    told = list(done.turns[0].told)
    table = Table(title=f"{done.name}: {done.ended}")
    for column in ("turn", "run", "policy", "adapted", *told, f"{done.measure} dev, before", "after"):
        table.add_column(column)
    for turn in done.turns:
        numbers = (*(f"{turn.told[name]:g}" for name in told), f"{turn.before:.4f}", f"{turn.after:.4f}")
        table.add_row(str(turn.turn), turn.run, turn.policy, turn.adapted, *numbers)
    console.print(table)
    console.print(f"best on dev: turn {done.best.turn}, run {done.best.run}, {done.setting} = {done.best.adapted}")
