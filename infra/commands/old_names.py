"""The old names of verbs: hidden for one more release, they do the same as before and say the new command.

Delete this module, and `OLD_NAMES` in `infra/cli.py`, in the release after the next one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from infra.app.app import App
from infra.commands.acls import print_acls
from infra.commands.changes import show_changes
from infra.commands.dense import VectorOptions, check_vectors, search_by_vectors, vector_options
from infra.commands.ledger import print_lineage
from infra.commands.options import Decorator
from infra.commands.score import say_scored, score_run_files
from infra.commands.search import TOP_BY_VECTORS
from infra.commands.train import say_preferred, train_by_preference
from search_env.catalogue.corpora import load_queries
from storage.evaluation.tables import EvaluationSettings


def now_called(new: str) -> Decorator:
    """Return a decorator that makes a function the hidden verb of an old name.

    new: the new command. The verb prints it on standard error before it starts.
    """

    def decorate(function: Callable[..., Any]) -> click.Command:
        @wraps(function)
        def announced(*arguments: Any, **options: Any) -> Any:
            old = function.__name__
            click.echo(f"`{old}` has a new name: searchloop {new} (the old one works for one more release)", err=True)
            return function(*arguments, **options)

        return click.command(hidden=True)(announced)

    return decorate


@now_called("search --by vectors")
@click.option("--index", default="catalogue", show_default=True, help="Index to search.")
@click.option("--run", "run_name", help="Run whose policy writes the summaries; required with --texts policy.")
@click.option("--policy", default="latest", show_default=True, help="Policy version of that run.")
@vector_options
@click.option(
    "--queries",
    "pairs",
    nargs=2,
    multiple=True,
    required=True,
    help="Query file (JSONL) and the run file to write; may be repeated.",
)
@click.option(
    "--top",
    type=click.IntRange(1, 10_000),
    default=TOP_BY_VECTORS,
    show_default=True,
    help="Number of documents per query.",
)
@click.pass_obj
def dense(
    app: App,
    index: str,
    run_name: str | None,
    policy: str,
    vectors: VectorOptions,
    pairs: tuple[tuple[str, str], ...],
    top: int,
) -> None:
    """Search by dense vectors, and write TREC run files: the old name of `search --by vectors`.

    \b
    Example:
      searchloop search --by vectors --index shop --texts lead --adapt 450 --queries test.jsonl --run-file lead.run
    """
    check_vectors(vectors, index=index, run_name=run_name)
    asked = [(load_queries(queries), Path(out)) for queries, out in pairs]
    search_by_vectors(app, asked, vectors, index=index, run_name=run_name, policy=policy, top=top)


@now_called("evaluate --relevance-of INDEX --scores-out FILE")
@click.argument("run_files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--index", default="catalogue", show_default=True, help="Index that was searched.")
@click.option("--queries", required=True, type=click.Path(path_type=Path), help="Queries of the run files (JSONL).")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Run file to write the scores to.")
@click.option(
    "--top",
    type=click.IntRange(1, 1000),
    default=EvaluationSettings().relevance_depth,
    show_default=True,
    help="Number of documents to score per ranking.",
)
@click.pass_obj
def score(app: App, run_files: tuple[Path, ...], index: str, queries: Path, out: Path, top: int) -> None:
    """Score the top documents of run files: the old name of `evaluate --relevance-of`.

    \b
    Example:
      searchloop evaluate raw.run policy.run --relevance-of shop --queries queries.jsonl --scores-out scores.run
    """
    say_scored(score_run_files(app, run_files, index=index, queries=queries, top=top, out=out), out)


@now_called("doctor --acls RUN")
@click.option("--run", "run_name", required=True, help="Name of the run, which need not exist yet.")
@click.option(
    "--user",
    "users",
    multiple=True,
    metavar="ROLE=USER",
    help="User of a role; may be repeated. Default: the role's name.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects with role, resource, name, operation.")
@click.pass_obj
def acls(app: App, run_name: str, users: tuple[str, ...], as_json: bool) -> None:
    """Print the rights that a run's roles need: the old name of `doctor --acls`.

    \b
    Example:
      searchloop doctor --acls leser-shop-0 --user sink=warehouse
    """
    print_acls(app, run_name, users, as_json=as_json)


@now_called("report --run RUN --policy VERSION (or --event EVENT)")
@click.option("--run", "name", required=True, help="Name of the run.")
@click.option("--policy", help="Show the events of this version: latest, a step, or a version's name.")
@click.option(
    "--event",
    help="Show the versions that this event taught. An event is a place, a group, candidate or request id, or a query.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON value on standard output.")
@click.pass_obj
def lineage(app: App, name: str, policy: str | None, event: str | None, as_json: bool) -> None:
    """Show which events made a version, or which versions an event taught: the old name of `report --policy`.

    \b
    Example:
      searchloop report --run leser-shop-0 --policy latest
      searchloop report --run leser-shop-0 --event 'requests[0]@17'
    """
    print_lineage(app, name, policy=policy, event=event, as_json=as_json)


@now_called("train --prefer-from RUN --run NEW")
@click.option("--run", "run_name", required=True, help="Run whose logged groups give the pairs.")
@click.option("--into", required=True, help="Name of the new run, whose policy 0 is trained on the pairs.")
@click.pass_obj
def prefer(app: App, run_name: str, into: str) -> None:
    """Train the first policy of a new run by DPO on logged groups: the old name of `train --prefer-from`.

    \b
    Example:
      searchloop train --prefer-from relsum-shop-0 --run relsum-shop-0-dpo
    """
    say_preferred(train_by_preference(app, prefer_from=run_name, run=into))


@now_called("listen --what-changed")
@click.option("--run", "run_name", default="live", show_default=True, help="Run of the live traffic.")
@click.option("--json", "as_json", is_flag=True, help="Print all changes as one JSON object on standard output.")
@click.pass_obj
def what_changed(app: App, run_name: str, as_json: bool) -> None:
    """Show what late events altered in outcomes: the old name of `listen --what-changed`.

    \b
    Now:
      searchloop listen --what-changed --run live
    """
    show_changes(app, run_name, as_json=as_json)
