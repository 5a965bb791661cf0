"""`searchloop evaluate`: the measures of run files, with intervals, and their differences to a baseline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec
from rich import box
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from infra.app.progress import progress
from infra.commands.options import as_one, exclude, fields, need
from infra.commands.score import (
    Scores,
    ScoringOptions,
    by_document,
    ordered_by_ranker,
    relevance_scores,
    say_scored,
    score_files,
    scoring_options,
)
from search_env.catalogue.corpora import load_qrels, read_run
from storage.errors import EvaluationError
from storage.evaluation.comparison import Interval
from storage.evaluation.measures import KNOWN, MEASURES
from storage.evaluation.tables import Difference, Evaluation, EvaluationSettings, evaluate_runs


class StatisticsOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options that say what is measured, and how the intervals are drawn."""

    measures: str
    relevant_grade: int
    samples: int
    seed: int

    def settings(self) -> EvaluationSettings:
        """Return the settings of the evaluation. Raises EvaluationError for values that it does not take."""
        names = tuple(dict.fromkeys(name.strip() for name in self.measures.split(",") if name.strip()))
        if not names:
            raise EvaluationError("--measures: expected at least one name, got none; for example nDCG@10,R@100")
        try:
            return msgspec.convert(msgspec.structs.asdict(self) | {"measures": names}, EvaluationSettings)
        except msgspec.ValidationError as error:
            raise EvaluationError(f"options: {error}") from error


statistics_options = as_one(
    "statistics",
    StatisticsOptions,
    click.option(
        "--measures", default=",".join(MEASURES), show_default=True, help=f"Comma-separated measures: {KNOWN}."
    ),
    click.option(
        "--relevant-grade",
        default=1,
        show_default=True,
        type=click.IntRange(min=1),
        help="Lowest grade that counts as relevant.",
    ),
    click.option(
        "--samples",
        default=10_000,
        show_default=True,
        type=click.IntRange(100, 1_000_000),
        help="Number of bootstrap draws.",
    ),
    click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Seed of the draws."),
)


@click.command()
@click.argument("run_files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--qrels",
    "qrels_file",
    type=click.Path(path_type=Path),
    help="Judgments, in TREC or BEIR format. Required, except with --scores-out.",
)
@click.option(
    "--baseline", "baseline_file", type=click.Path(path_type=Path), help="Run file to compare the others with."
)
@scoring_options
@statistics_options
@click.option("--judged-queries-only", is_flag=True, help="Leave out queries that the qrels do not judge.")
@click.option("--per-query", is_flag=True, help="Add every query's values; requires --json.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
@click.pass_context
def evaluate(
    context: click.Context,
    run_files: tuple[Path, ...],
    qrels_file: Path | None,
    baseline_file: Path | None,
    scoring: ScoringOptions,
    statistics: StatisticsOptions,
    judged_queries_only: bool,
    per_query: bool,
    as_json: bool,
) -> None:
    """Evaluate run files against judgments, offline.

    \b
    Every number has a 95% interval (bootstrap over queries). With --baseline, each run is compared with the baseline,
    paired by query, and p is corrected for the number of measures (Holm).

    \b
    If a run has unjudged documents in the first ten of any query, a table shows nDCG@10, Judged@10, judged-nDCG@10 (of
    the ranking without its unjudged documents) and Bpref; otherwise judged-nDCG@10 equals nDCG@10. A line below says
    which to believe: nDCG@10 if Judged@10 is at least .90 in each run and differs by at most .02, else judged-nDCG@10.
    The 10 is that of the first nDCG@k in --measures. Qrels without any grade of 0 count as complete.

    \b
    Example:
      searchloop evaluate raw.run policy.run --qrels qrels.tsv --baseline raw.run
      searchloop evaluate policy.run --qrels qrels.tsv --baseline raw.run --relevance-of shop --queries q.jsonl
      searchloop evaluate policy.run --qrels qrels.tsv --relevance-of shop --queries q.jsonl --ranker 100
      searchloop evaluate raw.run policy.run --relevance-of shop --queries q.jsonl --scores-out scores.run
    """
    _check_options(context, qrels_file, scoring)
    files = list(dict.fromkeys([*([baseline_file] if baseline_file else []), *run_files]))
    if qrels_file is None:
        say_scored(score_files(context.obj, files, scoring), scoring.scores_out)
        return
    settings = statistics.settings()
    qrels = load_qrels(qrels_file)
    runs = {str(file): _load_run(file) for file in files}
    if judged_queries_only:
        runs = {name: {query: of for query, of in run.items() if query in qrels} for name, run in runs.items()}
    for name, run in runs.items():
        _check(name, run, qrels, qrels_file)
    relevance = relevance_scores(context.obj, files, scoring)
    baseline = str(baseline_file) if baseline_file else None
    with progress() as report:
        evaluation = evaluate_runs(
            runs, qrels, baseline=baseline, relevance=relevance, settings=settings, progress=report
        )
        behind = None
        if scoring.ranker and relevance is not None:
            ordered = {name: ordered_by_ranker(run, relevance, scoring.ranker) for name, run in runs.items()}
            behind = evaluate_runs(
                ordered, qrels, baseline=baseline, relevance=relevance, settings=settings, progress=report
            )
    if as_json:
        click.echo(to_json(evaluation, per_query=per_query, behind=behind))
        return
    print_evaluation(evaluation, Console())
    if behind is not None:
        click.echo(f"\nbehind the ranker, which orders the first {scoring.ranker} documents")
        print_evaluation(behind, Console())


def _check_options(context: click.Context, qrels_file: Path | None, scoring: ScoringOptions) -> None:
    """Raise UsageError for options that do not apply together."""
    if scoring.relevance_of is None:
        need(context, fields(ScoringOptions, without=["relevance_file"]), "--relevance-of")
    else:
        exclude(context, ["relevance_file"], "--relevance-of")
        if scoring.queries is None:
            raise click.UsageError("--relevance-of: expected --queries with it, got none. Add the queries of the runs")
    if qrels_file is None:
        if scoring.scores_out is None:
            raise click.UsageError("Missing option '--qrels'.", context)
        need(context, [*fields(StatisticsOptions), "judged_queries_only", "per_query", "as_json"], "--qrels")


def to_json(evaluation: Evaluation, *, per_query: bool = False, behind: Evaluation | None = None) -> str:
    """Return the evaluation as JSON with sorted keys: the same evaluation always gives the same bytes.

    behind: the evaluation behind a ranker, under the key `behind_ranker`.
    """
    value = _value(evaluation, per_query=per_query)
    if behind is not None:
        value["behind_ranker"] = _value(behind, per_query=per_query)
    return msgspec.json.format(msgspec.json.encode(value, order="sorted")).decode()


def _value(evaluation: Evaluation, *, per_query: bool) -> dict[str, Any]:
    value: dict[str, Any] = msgspec.to_builtins(evaluation)
    if not per_query:
        for run in value["runs"]:
            del run["per_query"]
    return value


def print_evaluation(evaluation: Evaluation, console: Console) -> None:
    """Print one table with each run's measures and, if there is a baseline, one table per run with the differences."""
    console.print(
        f"{evaluation.queries} queries, {evaluation.judgments} judgments; "
        f"{evaluation.settings.confidence:.0%} intervals from {evaluation.settings.samples:,} draws by query"
    )
    if evaluation.without_relevant:
        console.print(f"{evaluation.without_relevant} queries have no relevant document and score 0 in every run")
    # Two tables: with more than five measures, numbers would be cut off in a terminal of 80 columns.
    for measures in filter(None, (evaluation.settings.measures, evaluation.beside)):
        table = Table(Column("run", overflow="fold"), *measures, box=box.SIMPLE_HEAD)
        for run in evaluation.runs:
            name = run.name + (f"\n{run.unanswered} of {run.queries} queries unanswered" if run.unanswered else "")
            table.add_row(Text(name), *(_cell(run.measures[measure]) for measure in measures))
        console.print(table)
    if evaluation.believed and evaluation.believed.line:
        console.print(evaluation.believed.line)
    for run in evaluation.runs:
        if not run.differences:
            continue
        console.print(Text(f"\n{run.name} against {evaluation.baseline}", style="bold"))
        table = Table("measure", "difference", "p", "p (Holm)", box=box.SIMPLE_HEAD)
        for name, difference in run.differences.items():
            table.add_row(*_row(name, difference))
        console.print(table)


def _row(name: str, difference: Difference) -> tuple[str, str, str, str]:
    interval = difference.interval
    if interval.value is None or interval.low is None or interval.high is None:
        return name, "not defined: the baseline finds nothing", "", ""
    shown = (
        f"{interval.value:+.1%} [{interval.low:+.1%}, {interval.high:+.1%}]"
        if name.endswith("gain")
        else f"{interval.value:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"
    )
    if difference.p_holm is None:
        return name, shown, "", ""
    colour = "" if difference.p_holm >= 0.05 else ("[green]" if interval.value > 0 else "[red]")
    return name, f"{colour}{shown}", f"{interval.p:.4f}", f"{difference.p_holm:.4f}"


def _cell(interval: Interval) -> str:
    return f"{interval.value:.4f}\n[dim]{_short(interval.low)}–{_short(interval.high)}[/dim]"


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}".removeprefix("0")


def _load_run(file: Path) -> Scores:
    return by_document(read_run(file))


def _check(name: str, run: Scores, qrels: dict[str, dict[str, int]], qrels_file: Path) -> None:
    if not run:
        raise EvaluationError(f"{name}: expected at least one judged ranking, got none; check the file")
    strangers = sorted(set(run) - set(qrels))
    if len(strangers) == len(run):
        raise EvaluationError(
            f"{name}: none of its {len(run)} queries is judged in {qrels_file} (the run has '{strangers[0]}', "
            f"the qrels have '{min(qrels)}'); give the qrels that belong to the run"
        )
    if strangers:
        raise EvaluationError(
            f"{name}: {len(strangers)} of its {len(run)} queries are not judged in {qrels_file} ('{strangers[0]}' …); "
            "give the qrels that belong to the run, or add --judged-queries-only to leave these out"
        )
