"""`searchloop demo`: index, learn, search held-out queries raw and expanded, and show the difference."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import click
import msgspec
from rich.console import Console

from infra.app.app import App
from infra.app.command_line import pasteable
from infra.app.home import Home
from infra.app.indexing import index_corpus
from infra.app.progress import Report, progress
from infra.commands.evaluate import print_evaluation
from infra.commands.ledger import verdict
from infra.recipes.files import recipe_path
from infra.recipes.leser.searching import search_queries
from infra.recipes.recipe import NewRun
from infra.runs.reporting import opening, page_of, report_of
from infra.runs.training_runs import train_run
from infra.runs.verification import verify_run
from search_env.catalogue.corpora import (
    Document,
    Qrels,
    Query,
    check_qrels,
    load_corpus,
    load_qrels,
    load_queries,
    write_run,
    write_whole,
)
from search_env.catalogue.generated import demo_catalogue
from search_env.queries.intents import load_intents
from storage.errors import StorageError
from storage.evaluation.tables import Evaluation, EvaluationSettings, evaluate_runs
from storage.reports.result import result_lines

NAME = "demo"
# One row for each baseline that a skeptic asks for, and one for the policy: no expansion, feedback without learning,
# a look-up of the words that helped similar training queries, and the words that the prompt shows.
METHODS = {"none": "raw", "rm3": "RM3", "knn": "look-up", "shown": "prompt's words", "latest": "policy"}
MEASURES = ("nDCG@10", "RR@10", "R@100")
TOP = 100


@click.command()
@click.option("--corpus", type=click.Path(path_type=Path), help="Catalogue to use. Default: a generated catalogue.")
@click.option("--queries", type=click.Path(path_type=Path), help="Held-out queries for the catalogue.")
@click.option("--qrels", type=click.Path(path_type=Path), help="Judgments of the held-out queries.")
@click.option("--updates", type=click.IntRange(min=1), help="Number of optimizer steps. Default: the recipe's number.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the run.")
@click.option("--keep-services", is_flag=True, help="Leave Kafka and Elasticsearch running at the end.")
@click.pass_obj
def demo(
    app: App,
    corpus: Path | None,
    queries: Path | None,
    qrels: Path | None,
    updates: int | None,
    seed: int,
    keep_services: bool,
) -> None:
    """Run the whole loop, from nothing to a report on held-out queries.

    \b
    Example:
      searchloop demo
      searchloop demo --corpus corpus.jsonl.gz --queries queries.jsonl --qrels qrels.tsv
    """
    given = [corpus is not None, queries is not None, qrels is not None]
    if any(given) and not all(given):
        raise click.UsageError("--corpus, --queries and --qrels belong together: give all three, or none")
    run_demo(app, corpus=corpus, queries_file=queries, qrels_file=qrels, updates=updates, seed=seed, keep=keep_services)


def run_demo(
    app: App,
    *,
    corpus: Path | None,
    queries_file: Path | None,
    qrels_file: Path | None,
    updates: int | None,
    seed: int,
    keep: bool,
) -> None:
    """Run the whole loop from nothing to a report, on the generated catalogue or on the user's files.

    keep: True leaves the services running. Everything that an earlier demo made is made again. Raises StorageError if
    `verify` finds that the log and the ledger disagree.
    """
    began = time.monotonic()
    app = app.with_recipe(recipe_path(NAME))
    console = Console(soft_wrap=True)
    # Read the files before any service starts, because they may be invalid.
    documents = list(load_corpus(corpus)) if corpus else None
    judged = _judged(documents, queries_file, qrels_file) if documents and queries_file and qrels_file else None
    with progress() as report:
        if keep:
            app.local_services().up(report)
        with app.running_services(report) as running:
            documents = documents or list(demo_catalogue(app.settings.demo))
            summary = index_corpus(running, name=NAME, documents=documents, report=report)
            held_out, qrels = judged or load_intents(app.home.index(NAME).intents, "test_pair")
            run = _new_run(app.home)
            trained = train_run(
                running,
                NewRun(run=run, index=NAME, seed=seed, held_out=held_out),
                recipe=NAME,
                updates=updates or app.settings.train.updates,
                report=report,
            )
            evaluation = _evaluate(running, held_out, qrels, run, report)
            account = verify_run(running, run, rebuild=False, offline=False)
    folder = app.home.run(run)
    page = folder / "report.html"
    found = report_of(folder)
    write_whole(page, page_of(app.home, folder, found))
    print_evaluation(evaluation, console)
    console.print(
        f"\n{summary.documents} documents, {trained.updates} updates, {trained.groups_trained} groups trained: sampled "
        f"reward {trained.reward_first:.3f} → {trained.reward_last:.3f}, format kept {trained.valid_first:.0%} → "
        f"{trained.valid_last:.0%}"
    )
    console.print(
        f"held-out queries: {evaluation.queries}, none of which trained anything; wall {time.monotonic() - began:.0f} s"
    )
    console.print(verdict(account))
    result = result_lines(found)
    console.print(f"\n{result.headline}", style="bold", markup=False)
    for line in result.lines:
        console.print(line, markup=False)
    console.print(f"report: {page}")
    if summary.unread:
        click.echo(f"warning: {summary.unread}", err=True)
    if not account.sound:
        raise StorageError(f"the log and the ledger do not agree. Run: searchloop verify --run {run}")
    click.echo(f"look: {opening(page)}")
    click.echo(f"next: {pasteable(app.home, 'expand', '--index', NAME, '--queries', held_out[0].text)}")


def _judged(documents: Sequence[Document], queries_file: Path, qrels_file: Path) -> tuple[list[Query], Qrels]:
    """Return the judged queries and their judgments. Raises CorpusError if there are none."""
    queries, qrels = load_queries(queries_file), load_qrels(qrels_file)
    check_qrels(
        qrels,
        query_ids=(query.id for query in queries),
        document_ids=(document.id for document in documents),
        source=str(qrels_file),
    )
    return [query for query in queries if query.id in qrels], qrels


def _new_run(home: Home) -> str:
    taken = {path.name for path in home.runs.glob(f"{NAME}-*")}
    return next(name for number in range(1, len(taken) + 2) if (name := f"{NAME}-{number}") not in taken)


def _evaluate(app: App, queries: Sequence[Query], qrels: Qrels, run: str, report: Report) -> Evaluation:
    folder = app.home.run(run)
    runs: dict[str, dict[str, dict[str, float]]] = {}
    for method, name in METHODS.items():
        rankings = search_queries(app, queries, index=NAME, policy=method, run=run, top=TOP, report=report)
        file = name.replace("'", "").replace(" ", "-")
        write_run(folder / f"{file}.run", rankings, tag=file)
        runs[name] = {query: dict(zip(ranking.ids, ranking.scores, strict=True)) for query, ranking in rankings.items()}
    asked = {query.id for query in queries}
    judged = {query: grades for query, grades in qrels.items() if query in asked}
    evaluation = evaluate_runs(runs, judged, baseline="raw", settings=EvaluationSettings(measures=MEASURES))
    write_whole(folder / "evaluation.json", msgspec.json.format(msgspec.json.encode(evaluation)).decode())
    return evaluation
