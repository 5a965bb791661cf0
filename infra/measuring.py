"""Measuring a run's policy versions, and methods that learn nothing, on its task's held-out sets, paired by query."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from infra.context import App
from infra.progress import Report
from infra.run_settings import read_run_settings
from infra.tasks.task import Task, load_task
from search_env.corpora import Qrels, Query
from storage.errors import EvaluationError
from storage.evaluation.precision import pooled_recall_at_precision
from storage.evaluation.tables import Evaluation, EvaluationSettings, evaluate_runs


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One held-out set: every ranking's measures with intervals, and recall at 90 % precision with one threshold."""

    name: str
    evaluation: Evaluation
    pooled_recall: dict[str, float]


def measure_runs(
    app: App,
    rankings: Sequence[tuple[str, str]],
    *,
    baseline: str | None,
    given: tuple[Sequence[Query], Qrels] | None,
    settings: EvaluationSettings,
    report: Report,
) -> list[Measured]:
    """Return each held-out set with all rankings measured on it.

    rankings: (run, policy version or method); one is called `run:policy` in the result. baseline: one of these names.
    given: judged queries of the user's own. Raises EvaluationError if the runs do not share their sets.
    """
    found: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    qrels: dict[str, Qrels] = {}
    tasks: dict[str, Task] = {}  # One of each kind, which may keep what its rankings share.
    for run, policy in rankings:
        kept = read_run_settings(app.home.existing_run(run))
        name = kept.settings.train.task
        task = tasks[name] = tasks.get(name) or load_task(name)
        for each in task.rank(app.with_settings(kept.settings), kept, policy=policy, given=given, report=report):
            if qrels.setdefault(each.name, each.qrels) != each.qrels:
                raise EvaluationError(f"runs have different judgments for {each.name!r}: measure them one by one")
            found.setdefault(each.name, {})[f"{run}:{policy}"] = each.run
    return [
        Measured(
            name=name,
            evaluation=evaluate_runs(runs, qrels[name], baseline=baseline, settings=settings, progress=report),
            pooled_recall={run: pooled_recall_at_precision(scores, qrels[name]) for run, scores in runs.items()},
        )
        for name, runs in found.items()
    ]
