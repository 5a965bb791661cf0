"""`searchloop train` and `run`: the verbs that make a policy."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import msgspec

from infra.app.app import App, WorkerTables
from infra.app.interrupts import interrupts
from infra.app.progress import progress
from infra.commands.judged import read_judged
from infra.commands.options import as_one, exclude, fields
from infra.commands.results import show_result
from infra.runs.living import registered
from infra.runs.supervisor import stop_with_parent
from streams.acls import WORKERS
from streams.beats import show_life_in
from streams.failpoints import arm
from streams.stopping import Stop


class DataOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options that say what a run learns on, and what it begins with."""

    recipe: str
    index: str
    queries: Path | None
    traffic: str | None
    held_out: Path | None
    dev_queries: Path | None
    dev_qrels: Path | None
    updates: int | None
    seed: int
    from_run: str | None

    @property
    def recipe_name(self) -> str:
        """The recipe's name, also where the user gave a path."""
        return Path(self.recipe).stem


data_options = as_one(
    "data",
    DataOptions,
    click.option("--recipe", default="leser", show_default=True, help="Recipe: its name, or the path of a TOML file."),
    click.option("--index", default="catalogue", show_default=True, help="Index to learn on."),
    click.option(
        "--queries",
        type=click.Path(path_type=Path),
        help="Training queries (JSONL). Default: queries generated from the index.",
    ),
    click.option(
        "--traffic", metavar="RUN", help="Train on the queries that people asked in this run of live traffic."
    ),
    click.option("--held-out", type=click.Path(path_type=Path), help="Queries (JSONL) to keep out of all training."),
    click.option(
        "--dev-queries",
        type=click.Path(path_type=Path),
        help="Judged queries (JSONL) on which versions are measured while the run learns; they train nothing.",
    ),
    click.option("--dev-qrels", type=click.Path(path_type=Path), help="Judgments of --dev-queries."),
    click.option(
        "--updates", type=click.IntRange(min=1), help="Number of optimizer steps. Default: the recipe's number."
    ),
    click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the run."),
    click.option("--from", "from_run", help="Start from the warmed-up policy of this run instead of making one."),
)


class Preferred(msgspec.Struct, frozen=True, kw_only=True):
    """A new run whose policy 0 has learned by DPO from the pairs of another run."""

    run: str
    prefer_from: str
    pairs: int


@click.command()
@data_options
@click.option(
    "--run", "run_name", help="Name of the run; an existing run continues where it stopped. [RECIPE-INDEX-SEED]"
)
@click.option(
    "--prefer-from",
    metavar="RUN",
    help="Make instead the first policy of the new run --run by DPO, on the best and the worst text of each logged "
    "group of RUN.",
)
@click.option(
    "--elsewhere",
    multiple=True,
    type=click.Choice(("environment", "generator")),
    help="Start no worker of this role; `searchloop run ROLE` starts its workers, on other machines if you like. "
    "Repeatable.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object on standard output.")
@click.pass_context
def train(
    context: click.Context,
    data: DataOptions,
    run_name: str | None,
    prefer_from: str | None,
    elsewhere: tuple[str, ...],
    as_json: bool,
) -> None:
    """Train a policy on the search engine's answers.

    \b
    `train` makes the missing parts (training queries, relevance model, teacher, warm-up), starts every worker, restarts
    workers that die, and ends with a summary. Ctrl-C stops the run in order; the same command continues it.
    With --prefer-from, `train` needs no service: a new run gets the settings of the other run, and as its policy 0 the
    policy that the other run began with, after DPO on that run's log.

    \b
    Example:
      searchloop train --recipe leser --index shop --updates 400
      searchloop train --recipe leser --index shop --traffic live --run leser-live
      searchloop train --prefer-from relsum-shop-0 --run relsum-shop-0-dpo
    """
    app: App = context.obj
    if prefer_from is None:
        run_name = run_name or f"{data.recipe_name}-{data.index}-{data.seed}"
        _train_by_grpo(app, data, run_name, elsewhere=elsewhere, as_json=as_json)
        return
    exclude(context, [*fields(DataOptions), "elsewhere"], "--prefer-from")
    if run_name is None:
        raise click.UsageError("--prefer-from: expected --run with it, got none. Add --run and the name of a new run")
    made = train_by_preference(app, prefer_from=prefer_from, run=run_name)
    if as_json:
        click.echo(msgspec.json.encode(made).decode())
    else:
        say_preferred(made)


def _train_by_grpo(app: App, data: DataOptions, run: str, *, elsewhere: tuple[str, ...], as_json: bool) -> None:
    from infra.recipes.files import recipe_path
    from infra.recipes.recipe import NewRun
    from infra.runs.asked import asked_queries
    from infra.runs.dev import DevFiles
    from infra.runs.training_runs import train_run
    from search_env.catalogue.corpora import load_queries

    app = app.with_recipe(recipe_path(data.recipe))
    # Check the input files before any service starts.
    left_out = load_queries(data.held_out) if data.held_out else []
    queries = data.queries
    if data.traffic is not None:
        if queries is not None:
            raise click.UsageError(
                "--traffic: expected a command without --queries, got both. Leave one of the two out"
            )
        queries = asked_queries(app.home, data.traffic, run=run)
    if queries is not None:
        load_queries(queries)
    known = app.home.index(data.index)
    read_judged(
        data.dev_queries,
        data.dev_qrels,
        index_folder=known if known.is_dir() else None,  # Without the index, the next step says so.
        options=("--dev-queries", "--dev-qrels"),
    )
    dev_files = None
    if data.dev_queries and data.dev_qrels:
        dev_files = DevFiles(queries=data.dev_queries, qrels=data.dev_qrels)
    with progress() as report, app.running_services(report) as running:
        summary = train_run(
            running,
            NewRun(run=run, index=data.index, seed=data.seed, queries_file=queries, held_out=left_out),
            recipe=data.recipe_name,
            updates=data.updates or app.settings.train.updates,
            report=report,
            from_run=data.from_run,
            dev_files=dev_files,
            elsewhere=elsewhere,
        )
    show_result(summary, f"run {summary.run}", as_json=as_json)


def train_by_preference(app: App, *, prefer_from: str, run: str) -> Preferred:
    """Make policy 0 of a new run by DPO on the logged groups of the run `prefer_from`."""
    from infra.runs.preferring import prefer_run

    with progress() as report:
        pairs = prefer_run(app, run=prefer_from, into=run, report=report)
    return Preferred(run=run, prefer_from=prefer_from, pairs=pairs)


def say_preferred(made: Preferred) -> None:
    """Print which run there is now, and how many pairs it has learned from."""
    click.echo(f"{made.run}: policy 0 has learned from {made.pairs} pairs of {made.prefer_from}")


@click.command()
@click.argument("role", type=click.Choice(WORKERS))
@click.option("--run", "run_name", required=True, help="Run to work for.")
@click.option(
    "--worker",
    default=1,
    show_default=True,
    type=click.IntRange(min=1),
    help="Number of this worker among the workers of its role.",
)
@click.option("--supervised", is_flag=True, hidden=True, help="Stop when standard input closes.")
@click.pass_obj
def run(app: App, role: str, run_name: str, worker: int, supervised: bool) -> None:
    """Run one more worker of a run, to scale out; `train` starts the first worker of each role.

    \b
    With `train --elsewhere environment`, the workers of that role are all started here. Each worker of a role has a
    number of its own. On a machine without the run, its files come from the store (`store.url`): Kafka, Elasticsearch
    and the store are all that it must reach. A monitor is not part of the loop; `watch` starts one if none is running.

    \b
    Example:
      searchloop run generator --run leser-shop-0 --worker 2
      searchloop run monitor --run leser-shop-0
    """
    app = app.as_role(role)
    tables = app.tables(WorkerTables)
    arm(tables.failpoints)
    show_life_in(tables.beat)
    stop = Stop()
    if supervised:
        stop_with_parent(stop.on_signals(), sys.stdin.fileno())
        _work(app, role, run_name, worker, stop)
        return
    with interrupts(stop), registered(app.home.run(run_name), role, worker):
        _work(app, role, run_name, worker, stop)
    if stop():
        raise KeyboardInterrupt


def fetch_for(app: App, role: str, run: str) -> None:
    """Fetch from the store what a worker of this role needs and this machine lacks."""
    from infra.runs.sharing import fetch_ledger, fetch_policy, fetch_run

    with progress() as report:
        fetch_run(app, run, report)
        if role == "learner":
            fetch_policy(app, run)
        if role == "sink":
            fetch_ledger(app, run, report)


def _work(app: App, role: str, run_name: str, worker: int, stop: Stop) -> None:
    app = app.at(app.local_services().endpoints())
    if app.store is not None and role not in ("joiner", "monitor"):
        fetch_for(app, role, run_name)
    if role == "sink":
        from infra.runs.sinks import run_sink_worker

        run_sink_worker(app, run=run_name, worker=worker, stop=stop)
    elif role == "joiner":
        from infra.runs.listening import join

        join(app, run_name, worker=worker, stop=stop)
    elif role == "monitor":
        from infra.monitoring.agents import run_monitor_worker

        run_monitor_worker(app, run=run_name, stop=stop)
    else:
        from infra.runs.workers import run_worker

        run_worker(app, role=role, run=run_name, worker=worker, stop=stop)
