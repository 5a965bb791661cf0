"""`searchloop evaluate --relevance-of`: the relevance model's scores of ranked documents, for the relevance gain."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from infra.app.app import App
from infra.app.progress import progress
from search_env.catalogue.corpora import Ranking, load_queries, read_run, write_run


def score_run_files(
    app: App, run_files: Sequence[Path], *, index: str, queries: Path, top: int, out: Path | None
) -> dict[str, Ranking]:
    """Return the model's ranking of the top documents of the run files, by query, and write it to `out` if given."""
    from infra.recipes.leser.relevance import score_rankings

    asked = load_queries(queries)
    rankings = [read_run(file) for file in run_files]
    with progress() as report:
        scores = score_rankings(app.home.index(index), app.settings, rankings, queries=asked, top=top, report=report)
    if out is not None:
        write_run(out, scores, tag="relevance")
    return scores


def say_scored(scores: dict[str, Ranking], out: Path | None) -> None:
    """Print how many documents were scored, and where the scores are."""
    click.echo(f"{sum(len(each.ids) for each in scores.values())} documents of {len(scores)} queries: {out}")
