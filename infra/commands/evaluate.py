"""`searchloop evaluate`: the measures of run files, with intervals, and their differences to a baseline."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec
from rich import box
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from infra.app.progress import progress
from search_env.catalogue.corpora import load_qrels, read_run
from storage.errors import EvaluationError
from storage.evaluation.comparison import Interval
from storage.evaluation.measures import MEASURES
from storage.evaluation.tables import Difference, Evaluation, EvaluationSettings, evaluate_runs

Scores = dict[str, dict[str, float]]


@click.command()
@click.argument("run_files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--qrels", "qrels_file", required=True, type=click.Path(path_type=Path), help="Judgments, in TREC or BEIR format."
)
@click.option(
    "--baseline", "baseline_file", type=click.Path(path_type=Path), help="Run file to compare the others with."
)
@click.option(
    "--relevance",
    "relevance_file",
    type=click.Path(path_type=Path),
    help="Run file with the relevance model's scores of every top 10 (see `score`); adds the relevance gain.",
)
@click.option("--measures", default=",".join(MEASURES), show_default=True, help="Measures, separated by commas.")
@click.option(
    "--relevant-grade",
    default=1,
    show_default=True,
    type=click.IntRange(min=1),
    help="Lowest grade that counts as relevant.",
)
@click.option(
    "--samples",
    default=10_000,
    show_default=True,
    type=click.IntRange(100, 1_000_000),
    help="Number of bootstrap draws.",
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Seed of the draws.")
@click.option("--judged-queries-only", is_flag=True, help="Leave out queries that the qrels do not judge.")
@click.option("--per-query", is_flag=True, help="Add every query's values; requires --json.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
def evaluate(
    run_files: tuple[Path, ...],
    qrels_file: Path,
    baseline_file: Path | None,
    relevance_file: Path | None,
    measures: str,
    relevant_grade: int,
    samples: int,
    seed: int,
    judged_queries_only: bool,
    per_query: bool,
    as_json: bool,
) -> None:
    """Evaluate run files against judgments, offline.

    \b
    Every number has a 95% interval (bootstrap over queries). With --baseline, each run is compared with the baseline,
    paired by query, and p is corrected for the number of measures (Holm).

    \b
    Example:
      searchloop evaluate raw.run policy.run --qrels qrels.tsv --baseline raw.run
    """
    settings = _settings(measures, relevant_grade, samples, seed)
    qrels = load_qrels(qrels_file)
    files = list(dict.fromkeys([*([baseline_file] if baseline_file else []), *run_files]))
    runs = {str(file): _load_run(file) for file in files}
    if judged_queries_only:
        runs = {name: {query: of for query, of in run.items() if query in qrels} for name, run in runs.items()}
    for name, run in runs.items():
        _check(name, run, qrels, qrels_file)
    with progress() as report:
        evaluation = evaluate_runs(
            runs,
            qrels,
            baseline=str(baseline_file) if baseline_file else None,
            relevance=_load_run(relevance_file) if relevance_file else None,
            settings=settings,
            progress=report,
        )
    if as_json:
        click.echo(to_json(evaluation, per_query=per_query))
    else:
        print_evaluation(evaluation, Console())


def to_json(evaluation: Evaluation, *, per_query: bool = False) -> str:
    """Return the evaluation as JSON with sorted keys: the same evaluation always gives the same bytes."""
    value = msgspec.to_builtins(evaluation)
    if not per_query:
        for run in value["runs"]:
            del run["per_query"]
    return msgspec.json.format(msgspec.json.encode(value, order="sorted")).decode()


def print_evaluation(evaluation: Evaluation, console: Console) -> None:
    """Print one table with each run's measures and, if there is a baseline, one table per run with the differences."""
    console.print(
        f"{evaluation.queries} queries, {evaluation.judgments} judgments; "
        f"{evaluation.settings.confidence:.0%} intervals from {evaluation.settings.samples:,} draws by query"
    )
    if evaluation.without_relevant:
        console.print(f"{evaluation.without_relevant} queries have no relevant document and score 0 in every run")
    table = Table(Column("run", overflow="fold"), *evaluation.settings.measures, box=box.SIMPLE_HEAD)
    for run in evaluation.runs:
        name = run.name + (f"\n{run.unanswered} of {run.queries} queries unanswered" if run.unanswered else "")
        table.add_row(Text(name), *(_cell(run.measures[measure]) for measure in evaluation.settings.measures))
    console.print(table)
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


def _settings(measures: str, relevant_grade: int, samples: int, seed: int) -> EvaluationSettings:
    names = tuple(dict.fromkeys(name.strip() for name in measures.split(",") if name.strip()))
    if not names:
        raise EvaluationError("--measures: expected at least one name, got none; for example nDCG@10,R@100")
    try:
        return msgspec.convert(
            {"measures": names, "relevant_grade": relevant_grade, "samples": samples, "seed": seed}, EvaluationSettings
        )
    except msgspec.ValidationError as error:
        raise EvaluationError(f"options: {error}") from error


def _load_run(file: Path) -> Scores:
    return {query: dict(zip(ranking.ids, ranking.scores, strict=True)) for query, ranking in read_run(file).items()}


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
