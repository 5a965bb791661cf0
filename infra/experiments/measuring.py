"""Measures of policy versions and of baselines on a recipe's held-out sets, paired by query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from infra.app.app import App
from infra.app.progress import Report
from infra.app.run_settings import RunSettings
from infra.recipes.recipe import TOP, Judged, Ranked, Recipe, load_recipe
from search_env.catalogue.corpora import Qrels
from search_env.engine.index import load_manifest
from storage.errors import EvaluationError
from storage.evaluation.precision import pooled_recall_at_precision
from storage.evaluation.tables import Evaluation, EvaluationSettings, evaluate_runs


class MeasuredSet(msgspec.Struct, frozen=True, kw_only=True):
    """One held-out set: every ranking's measures with intervals, and recall at 90% precision with one threshold."""

    name: str
    evaluation: Evaluation
    pooled_recall: dict[str, float]


def rank_run(
    app: App,
    run: RunSettings,
    *,
    policy: str,
    given: Judged | None,
    report: Report,
    changes: Mapping[str, Any] | None = None,
    temperature: float = 0.0,
    top: int = TOP,
    recipe: Recipe | None = None,
) -> list[Ranked]:
    """Return a policy version's or a baseline's rankings of the held-out sets of a run's recipe.

    The run's own settings apply. changes: tables of settings that differ from them. recipe: the run's recipe object;
    pass it if many rankings share its cached data.
    """
    ranking = app.with_settings(run.settings)
    if changes:
        ranking = ranking.with_changes("--set", dict(changes))
    run = msgspec.structs.replace(run, settings=ranking.settings)
    recipe = recipe or load_recipe(run.settings.train.recipe)
    return recipe.rank(ranking, run, policy=policy, given=given, report=report, temperature=temperature, top=top)


def without_run(app: App, *, recipe: str, index: str, seed: int) -> RunSettings:
    """Return placeholder settings for baselines, which need no run. app: has the recipe's settings."""
    return RunSettings(
        run=f"{index}-{seed}",
        recipe=recipe,
        index=index,
        index_version=load_manifest(app.home.index(index)).name,
        seed=seed,
        updates=0,
        settings=app.settings,
    )


def measure_rankings(
    rankings: Mapping[str, Sequence[Ranked]], *, baseline: str | None, settings: EvaluationSettings, report: Report
) -> list[MeasuredSet]:
    """Return each held-out set with the measures of all rankings, by name.

    baseline: the name of one ranking. Raises EvaluationError if the rankings have different sets.
    """
    found: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    qrels: dict[str, Qrels] = {}
    for name, ranked in rankings.items():
        for each in ranked:
            if qrels.setdefault(each.name, each.qrels) != each.qrels:
                raise EvaluationError(f"the runs have different judgments for {each.name!r}: measure them separately")
            found.setdefault(each.name, {})[name] = each.run
    return [
        MeasuredSet(
            name=name,
            evaluation=evaluate_runs(runs, qrels[name], baseline=baseline, settings=settings, progress=report),
            pooled_recall={run: pooled_recall_at_precision(scores, qrels[name]) for run, scores in runs.items()},
        )
        for name, runs in found.items()
    ]
