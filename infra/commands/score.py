"""`searchloop score`: the relevance model's scores of ranked documents, for the relevance gain."""

from __future__ import annotations

from pathlib import Path

import click

from infra.app.app import App
from infra.app.progress import progress
from storage.evaluation.tables import EvaluationSettings


@click.command()
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
    """Score the top documents of run files with the relevance model that computes the rewards.

    `searchloop evaluate --relevance` reads the scores.

    \b
    Example:
      searchloop score raw.run policy.run --index shop --queries queries.jsonl --out scores.run
      searchloop evaluate policy.run --qrels qrels.tsv --baseline raw.run --relevance scores.run
    """
    from infra.recipes.leser.relevance import score_rankings
    from search_env.catalogue.corpora import load_queries, read_run, write_run

    asked = load_queries(queries)
    rankings = [read_run(file) for file in run_files]
    with progress() as report:
        scores = score_rankings(app, rankings, index=index, queries=asked, top=top, report=report)
    write_run(out, scores, tag="relevance")
    click.echo(f"{sum(len(each.ids) for each in scores.values())} documents of {len(scores)} queries: {out}")
