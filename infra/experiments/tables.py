"""What an experiment found: one table a query set, one curve a measure, each arm the mean over its seeds.

An arm's value for a query is its mean over the seeds; intervals and differences are then drawn by query, paired. Where
the baseline has the same seeds, seed is compared with seed, and every seed's own mean stands beside the mean of all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from infra.experiments.arms import QuerySet, commands, read_scores, run_file, run_name
from infra.experiments.plan import Plan
from infra.home import Home
from storage.errors import StorageError
from storage.evaluation.comparison import Interval, bootstrap_mean, compare_gains, compare_means, holm
from storage.evaluation.gains import relevant_retrieved
from storage.evaluation.measures import Values, measure_run
from storage.evaluation.tables import RETRIEVAL_GAIN, Difference
from storage.report import read_report

Curve = dict[str, tuple[tuple[float, float], ...]]


class ArmRow(msgspec.Struct, frozen=True, kw_only=True):
    """One arm on one set. by_seed: {measure: {seed: mean}}; differences are against the baseline."""

    name: str
    seeds: tuple[int, ...]
    measures: dict[str, Interval]
    by_seed: dict[str, dict[str, float]]
    differences: dict[str, Difference] = {}


class SetTable(msgspec.Struct, frozen=True, kw_only=True):
    """One query set; without_relevant: queries that no run can answer."""

    name: str
    queries: int
    without_relevant: int
    arms: tuple[ArmRow, ...]


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """The whole experiment. curves: {what: {arm: (step, mean over seeds) points}}, from the runs' own logs."""

    title: str
    index: str
    baseline: str
    measures: tuple[str, ...]
    samples: int
    sets: tuple[SetTable, ...]
    curves: dict[str, Curve]
    commands: tuple[str, ...]


def read_results(home: Home, plan: Plan, *, name: str, index: str, sets: Sequence[QuerySet]) -> Results:
    """Return what a finished experiment found."""
    folder = home.experiment(name)
    return Results(
        title=plan.title,
        index=index,
        baseline=plan.baseline,
        measures=(*plan.measures, RETRIEVAL_GAIN),
        samples=plan.samples,
        sets=tuple(_set_table(folder, plan, each) for each in sets),
        curves=_curves(home, plan, name),
        commands=tuple(commands(plan, name=name, index=index)),
    )


def mean_over_seeds(of: Sequence[Mapping[str, float]]) -> Values:
    """Return each query's mean over the seeds."""
    return {query: math.fsum(values[query] for values in of) / len(of) for query in of[0]}


def _set_table(folder: Path, plan: Plan, each: QuerySet) -> SetTable:
    values: dict[str, dict[int, dict[str, Values]]] = {}
    for arm in plan.arms:
        for seed in plan.seeds_of(arm):
            run = read_scores(run_file(folder, arm, seed, each.name))
            found = measure_run(run, each.qrels, plan.measures, relevant_grade=1)
            found[RETRIEVAL_GAIN] = relevant_retrieved(run, each.qrels, depth=plan.top, relevant_grade=1)
            values.setdefault(arm.name, {})[seed] = found
    return SetTable(
        name=each.name,
        queries=len(each.qrels),
        without_relevant=sum(max(grades.values(), default=0) < 1 for grades in each.qrels.values()),
        arms=tuple(_row(plan, arm.name, values) for arm in plan.arms),
    )


def _row(plan: Plan, name: str, values: Mapping[str, Mapping[int, Mapping[str, Values]]]) -> ArmRow:
    mine, base = values[name], values[plan.baseline]
    shared = [seed for seed in mine if seed in base]
    differences = {}
    if name != plan.baseline:
        for measure in (*plan.measures, RETRIEVAL_GAIN):
            compare = compare_gains if measure == RETRIEVAL_GAIN else compare_means
            differences[measure] = compare(
                mean_over_seeds([mine[seed][measure] for seed in shared or mine]),
                mean_over_seeds([base[seed][measure] for seed in shared or base]),
                samples=plan.samples,
            )
    tested = {measure: item.p for measure, item in differences.items() if item.p is not None}
    corrected = dict(zip(tested, holm(list(tested.values())), strict=True))
    return ArmRow(
        name=name,
        seeds=tuple(mine),
        measures={
            measure: bootstrap_mean(mean_over_seeds([of[measure] for of in mine.values()]), samples=plan.samples)
            for measure in plan.measures
        },
        by_seed={
            measure: {str(seed): math.fsum(of[measure].values()) / len(of[measure]) for seed, of in mine.items()}
            for measure in plan.measures
        },
        differences={
            measure: Difference(interval=item, p_holm=corrected.get(measure)) for measure, item in differences.items()
        },
    )


def _curves(home: Home, plan: Plan, name: str) -> dict[str, Curve]:
    """Return reward, gain, validity and entropy by update, each trained arm's mean over its seeds."""
    curves: dict[str, Curve] = {"reward": {}, "relevance gain of the samples": {}, "valid": {}, "entropy": {}}
    for arm in plan.arms:
        if arm.train is None:
            continue
        points: dict[str, dict[int, list[float]]] = {what: {} for what in curves}
        for seed in plan.seeds_of(arm):
            try:
                report = read_report(home.run(run_name(name, arm, seed)))
            except StorageError:
                continue  # A run whose log was cleaned away still has its rankings.
            for version in report.versions:
                found = (version.reward, version.components.get("relevance"), version.valid)
                for what, value in zip(list(curves)[:3], found, strict=True):
                    if value is not None:
                        points[what].setdefault(version.step, []).append(value)
            for update in report.updates:
                if "entropy" in update.metrics:
                    points["entropy"].setdefault(update.step, []).append(update.metrics["entropy"])
        for what, by_step in points.items():
            curves[what][arm.name] = tuple(
                (float(step), math.fsum(found) / len(found)) for step, found in sorted(by_step.items())
            )
    return curves
