"""`searchloop evaluate --relevance-of`: the relevance model's scores of ranked documents: for the relevance gain, and
for the order behind a ranker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import click
import msgspec

from infra.app.app import App
from infra.app.progress import progress
from infra.commands.options import as_one
from search_env.catalogue.corpora import Ranking, load_queries, rank_by_score, read_run, write_run
from search_env.engine.reranking import reordered
from storage.evaluation.tables import EvaluationSettings

Scores = dict[str, dict[str, float]]


class ScoringOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options that give the relevance model's scores: read from a file, or computed now."""

    relevance_file: Path | None
    relevance_of: str | None
    queries: Path | None
    top: int
    ranker: int
    scores_out: Path | None


scoring_options = as_one(
    "scoring",
    ScoringOptions,
    click.option(
        "--relevance",
        "relevance_file",
        type=click.Path(path_type=Path),
        help="Run file with the relevance model's scores of every top 10 (see --scores-out); adds the relevance gain.",
    ),
    click.option(
        "--relevance-of",
        metavar="INDEX",
        help="Index whose relevance model scores every top 10 now; adds the relevance gain. Requires --queries.",
    ),
    click.option(
        "--queries",
        type=click.Path(path_type=Path),
        help="Queries of the run files (JSONL); required with --relevance-of.",
    ),
    click.option(
        "--top",
        type=click.IntRange(1, 1000),
        default=EvaluationSettings().relevance_depth,
        show_default=True,
        help="With --relevance-of: number of documents to score per ranking.",
    ),
    click.option(
        "--ranker",
        type=click.IntRange(0, 1000),
        default=0,
        show_default=True,
        help="With --relevance-of: number of first documents that the model orders, as a ranker behind the search, in "
        "tables of their own. 0: no ranker.",
    ),
    click.option(
        "--scores-out",
        type=click.Path(path_type=Path),
        help="With --relevance-of: run file to write the scores to, for --relevance. Without --qrels, nothing else is "
        "done.",
    ),
)


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


def relevance_scores(app: App, files: Sequence[Path], scoring: ScoringOptions) -> Scores | None:
    """Return the relevance model's scores, by query and document, or None if none are wanted."""
    if scoring.relevance_file is not None:
        return by_document(read_run(scoring.relevance_file))
    return by_document(score_files(app, files, scoring)) if scoring.relevance_of is not None else None


def score_files(app: App, files: Sequence[Path], scoring: ScoringOptions) -> dict[str, Ranking]:
    """Return the ranking of run files' documents by the model, by query, and write it if the options name a file."""
    assert scoring.relevance_of is not None and scoring.queries is not None  # `_check_options` has refused the others.
    return score_run_files(
        app,
        files,
        index=scoring.relevance_of,
        queries=scoring.queries,
        top=max(scoring.top, scoring.ranker),
        out=scoring.scores_out,
    )


def ordered_by_ranker(run: Scores, relevance: Scores, depth: int) -> Scores:
    """Return a run with the first documents of each query in the order of their relevance."""
    found = {}
    for query, scores in run.items():
        ranking = rank_by_score(list(scores), list(scores.values()))
        first = [1.0 + relevance[query][document] for document in ranking.ids[:depth]]
        found[query] = reordered(ranking, first)
    return by_document(found)


def by_document(rankings: Mapping[str, Ranking]) -> Scores:
    """Return rankings as scores, {query: {document: score}}."""
    return {query: dict(zip(ranking.ids, ranking.scores, strict=True)) for query, ranking in rankings.items()}
