"""The results of an experiment: one table per query set and one curve per measure, averaged over the seeds.

An arm's value for a query is its mean over the seeds. Intervals and differences are then computed over queries, paired.
If the baseline has the same seeds, only equal seeds are compared. The tables show each seed's mean beside the overall
mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from infra.app.home import Home
from infra.experiments.arms import commands, jobs, read_made, row_name
from infra.experiments.making import Points
from infra.experiments.plan import Plan
from infra.experiments.rankings import read_qrels, read_scores, row_file, set_names
from storage.errors import StorageError
from storage.evaluation.comparison import Interval, bootstrap_mean, compare_gains, compare_means
from storage.evaluation.gains import relevant_retrieved
from storage.evaluation.incomplete import (
    Believed,
    added_measures,
    believed_measure,
    beside,
    holm_with_added,
    judged_share,
    ndcg_in_doubt,
)
from storage.evaluation.measures import Values, measure_run
from storage.evaluation.pooled import (
    POOLED_RECALL,
    Drawn,
    compare_pooled,
    draw_pooled_recall,
    mean_drawn,
    pooled_interval,
)
from storage.evaluation.tables import RETRIEVAL_GAIN, Difference
from storage.reports.report import read_report

Curve = dict[str, Points]


class ArmRow(msgspec.Struct, frozen=True, kw_only=True):
    """One arm on one set. by_seed: {measure: {seed: mean}}; differences are to the baseline."""

    name: str
    seeds: tuple[int, ...]
    measures: dict[str, Interval]
    by_seed: dict[str, dict[str, float]]
    differences: dict[str, Difference] = {}


class SetTable(msgspec.Struct, frozen=True, kw_only=True):
    """One query set.

    without_relevant: queries that no run can answer. added: measures beside the plan's, for unjudged documents, and
    believed: the measure to believe (see `storage.evaluation.incomplete`); results of older versions have neither.
    """

    name: str
    queries: int
    without_relevant: int
    arms: tuple[ArmRow, ...]
    added: tuple[str, ...] = ()
    believed: Believed | None = None

    @property
    def beside(self) -> tuple[str, ...]:
        """Return the columns of the table for incomplete judgments: nDCG@k, and what is added; none if nothing is."""
        return beside(self.believed.ndcg) if self.believed and self.added else ()


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


class ArmMeasures(NamedTuple):
    """The measures of one arm's ranking with one seed: by query, and the pooled recall over all queries.

    judged: the share of judged documents in the first k, for the plan's first nDCG@k.
    """

    values: dict[str, Values]
    gained: Values
    pooled: Drawn | None
    judged: float


def read_results(home: Home, plan: Plan, *, name: str, index: str) -> Results:
    """Return the results of a finished experiment."""
    rankings = home.experiment(name) / "rankings"
    return Results(
        title=plan.title,
        index=index,
        baseline=plan.baseline,
        measures=plan.measures,
        samples=plan.samples,
        sets=tuple(_set_table(rankings, plan, each) for each in set_names(rankings)),
        curves=_curves(home, plan, name, index),
        commands=tuple(commands(home, plan, name=name, index=index)),
    )


def mean_over_seeds(of: Sequence[Mapping[str, float]]) -> Values:
    """Return each query's mean over the seeds."""
    return {query: math.fsum(values[query] for values in of) / len(of) for query in of[0]}


def _set_table(rankings: Path, plan: Plan, set_name: str) -> SetTable:
    qrels = read_qrels(rankings, set_name)
    by_query = [measure for measure in plan.measures if measure not in (RETRIEVAL_GAIN, POOLED_RECALL)]
    ndcg = ndcg_in_doubt(by_query, qrels)
    rows: dict[str, dict[int, ArmMeasures]] = {}
    unanswered = False
    for arm in plan.arms:
        for seed in plan.seeds_of(arm):
            run = read_scores(row_file(rankings, set_name, row_name(arm, seed)))
            unanswered = unanswered or not all(run.get(query) for query in qrels)
            rows.setdefault(arm.name, {})[seed] = ArmMeasures(
                values=measure_run(run, qrels, by_query, relevant_grade=1),
                gained=relevant_retrieved(run, qrels, depth=plan.top, relevant_grade=1),
                pooled=draw_pooled_recall(run, qrels, samples=plan.samples) if POOLED_RECALL in plan.measures else None,
                judged=judged_share(run, qrels, ndcg) if ndcg else 1.0,
            )
    judged = {name: math.fsum(row.judged for row in of.values()) / len(of) for name, of in rows.items()}
    # Only now is it known whether measures are added: the files are read again, so that no two runs are in memory.
    if added := added_measures(by_query, ndcg, judged):
        for arm in plan.arms:
            for seed, row in rows[arm.name].items():
                run = read_scores(row_file(rankings, set_name, row_name(arm, seed)))
                row.values.update(measure_run(run, qrels, added, relevant_grade=1))
    return SetTable(
        name=set_name,
        queries=len(qrels),
        without_relevant=sum(max(grades.values(), default=0) < 1 for grades in qrels.values()),
        arms=tuple(_row(plan, arm.name, rows, added) for arm in plan.arms),
        added=added,
        believed=believed_measure(judged, ndcg, unanswered=unanswered) if ndcg else None,
    )


def _row(plan: Plan, name: str, rows: Mapping[str, Mapping[int, ArmMeasures]], added: tuple[str, ...]) -> ArmRow:
    mine, base = rows[name], rows[plan.baseline]
    measures = plan.measures + added
    differences = {}
    if name != plan.baseline:
        ours, theirs = _compared(plan, name, mine, base)
        differences = {measure: _difference(measure, ours, theirs, plan.samples) for measure in measures}
    # An added Judged@k says how far to trust the others; it is no claim.
    claims = [measure for measure in measures if not (measure in added and measure.startswith("Judged"))]
    tested = {m: item.p for m, item in differences.items() if item.p is not None and m in claims}
    corrected = holm_with_added(tested, added)
    reached = [measure for measure in measures if measure != RETRIEVAL_GAIN]
    return ArmRow(
        name=name,
        seeds=tuple(mine),
        measures={measure: _reached(measure, list(mine.values()), plan.samples) for measure in reached},
        by_seed={
            measure: {str(seed): _reached_mean(measure, row) for seed, row in mine.items()} for measure in reached
        },
        differences={
            measure: Difference(interval=item, p_holm=corrected.get(measure)) for measure, item in differences.items()
        },
    )


def _compared(
    plan: Plan, name: str, mine: Mapping[int, ArmMeasures], base: Mapping[int, ArmMeasures]
) -> tuple[list[ArmMeasures], list[ArmMeasures]]:
    """Return the rows of both arms to compare: rows of the same seeds, or all rows if one arm is not trained."""
    seeds = [seed for seed in mine if seed in base]
    if not seeds or any(plan.trainer(plan.arm(arm)) is None for arm in (name, plan.baseline)):
        return list(mine.values()), list(base.values())
    return [mine[seed] for seed in seeds], [base[seed] for seed in seeds]


def _difference(measure: str, ours: Sequence[ArmMeasures], theirs: Sequence[ArmMeasures], samples: int) -> Interval:
    if measure == POOLED_RECALL:
        return compare_pooled(_pooled(ours), _pooled(theirs))
    if measure == RETRIEVAL_GAIN:
        gained = [mean_over_seeds([row.gained for row in rows]) for rows in (ours, theirs)]
        return compare_gains(gained[0], gained[1], samples=samples)
    values = [mean_over_seeds([row.values[measure] for row in rows]) for rows in (ours, theirs)]
    return compare_means(values[0], values[1], samples=samples)


def _reached(measure: str, rows: Sequence[ArmMeasures], samples: int) -> Interval:
    if measure == POOLED_RECALL:
        return pooled_interval(_pooled(rows))
    return bootstrap_mean(mean_over_seeds([row.values[measure] for row in rows]), samples=samples)


def _reached_mean(measure: str, row: ArmMeasures) -> float:
    if measure == POOLED_RECALL:
        return _pooled([row]).value
    return math.fsum(row.values[measure].values()) / len(row.values[measure])


def _pooled(rows: Sequence[ArmMeasures]) -> Drawn:
    return mean_drawn([row.pooled for row in rows if row.pooled is not None])


def _curves(home: Home, plan: Plan, name: str, index: str) -> dict[str, Curve]:
    """Return reward, its parts, validity and entropy by update, as each trained arm's mean over its seeds."""
    found: dict[str, dict[str, dict[float, list[float]]]] = {}

    def add(what: str, arm: str, place: float, value: float | None) -> None:
        if value is not None:
            found.setdefault(what, {}).setdefault(arm, {}).setdefault(place, []).append(value)

    for job in jobs(plan, name=name, index=index):
        made = read_made(home, job)
        for what, points in made.curves.items():
            for place, value in points:
                add(what, job.arm.name, place, value)
        for run in made.runs:
            try:
                report = read_report(home.run(run))
            except StorageError:
                continue  # A run whose log was deleted, or that learned from no group, still has its rankings.
            for version in report.versions:
                add("reward", job.arm.name, version.step, version.reward)
                add("valid", job.arm.name, version.step, version.valid)
                for part, value in version.components.items():
                    if part != "valid":
                        add(f"reward, {part}", job.arm.name, version.step, value)
            for update in report.updates:
                add("entropy", job.arm.name, update.step, update.metrics.get("entropy"))
    return {
        what: {
            arm: tuple((float(place), math.fsum(values) / len(values)) for place, values in sorted(by_place.items()))
            for arm, by_place in curve.items()
        }
        for what, curve in found.items()
    }
