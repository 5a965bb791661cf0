"""A run's result in plain sentences: what was compared, what changed, how sure that is, and what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Literal

import msgspec

from storage.evaluation.comparison import Interval, compare_means
from storage.evaluation.tables import Evaluation, RunTable
from storage.reports.report import Report
from storage.shelf import Shelf

MEASURED = "evaluation"  # The file that `demo` writes; it comes first.
LEARNED = ("policy", "latest", "best")
SAME = 1e-9
RunOutcome = Literal["better", "worse", "unclear", "unmeasured"]


class QueryCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Queries on which the policy's row is above, below, or level with the baseline."""

    better: int
    worse: int
    same: int


class ResultLines(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a run.

    outcome: "better" or "worse" if the interval of the difference to the baseline leaves out 0, "unclear" if it holds
    0, "unmeasured" without a comparison. headline: a few words. lines: one sentence each. following: what to do next.
    commands: command lines to paste, with the user's own files in capitals. measure, difference: those of the headline.
    name, row, baseline: the evaluation, and the two rows of it that were compared.
    """

    outcome: RunOutcome
    headline: str
    lines: tuple[str, ...]
    following: str
    commands: tuple[str, ...] = ()
    measure: str = ""
    difference: Interval | None = None
    name: str = ""
    row: str = ""
    baseline: str = ""
    counts: QueryCounts | None = None


def result_lines(report: Report, shelf: Shelf | None = None) -> ResultLines:
    """Return the result of a run from its first evaluation; without one, what its log can say and how to get one."""
    shelf = shelf or Shelf()
    names = sorted(report.evaluations, key=lambda name: name.partition(": ")[0] != MEASURED)
    for name in names:
        evaluation = report.evaluations[name]
        row = learned_row(evaluation)
        measure = headline_measure(evaluation)
        if row is not None and measure is not None and measure in row.differences:
            return _measured(report, shelf, name, evaluation, row, measure)
    return _unmeasured(report, shelf)


def learned_row(evaluation: Evaluation) -> RunTable | None:
    """Return the row of the policy: the first whose name says so, else the last one that is not the baseline."""
    others = [run for run in evaluation.runs if run.name != evaluation.baseline]
    named = [run for run in others if any(word in run.name.rpartition("/")[2].lower() for word in LEARNED)]
    return next(iter(named or others[-1:]), None)


def headline_measure(evaluation: Evaluation) -> str | None:
    """Return the measure to believe, or else the first."""
    if evaluation.believed is not None:
        return evaluation.believed.measure
    return next(iter(evaluation.measures), None)


def _measured(
    report: Report, shelf: Shelf, name: str, evaluation: Evaluation, row: RunTable, measure: str
) -> ResultLines:
    baseline = next(run for run in evaluation.runs if run.name == evaluation.baseline)
    difference = row.differences[measure]
    outcome, interval = _outcome(difference.interval), difference.interval
    confidence = f"{evaluation.settings.confidence:.0%}"
    lines = [
        f"“{row.name}” was compared with “{baseline.name}” on {evaluation.queries} judged queries"
        + {2: ".", 3: ", next to one other row."}.get(
            len(evaluation.runs), f", next to {len(evaluation.runs) - 2} other rows."
        )
    ]
    before, after = baseline.measures[measure].value, row.measures[measure].value
    verb = {"better": "rose", "worse": "fell", "unclear": "went", "unmeasured": "went"}[outcome]
    lines.append(
        f"{measure} {verb} from {_value(before)} to {_value(after)}, a difference of "
        f"{said_interval(interval, confidence)}."
    )
    if outcome == "unclear":
        lines.append("The interval holds 0: these queries cannot tell the two rows apart.")
    counts = _counts(row, baseline, measure)
    if counts is not None:
        lines.append(
            f"Of the {counts.better + counts.worse + counts.same} queries, {counts.better} got better, {counts.worse} "
            f"got worse, and {counts.same} stayed as they were."
        )
    rival = _rival(evaluation, row, measure)
    line, against = _against(row, rival, measure, evaluation) if rival is not None else ("", "better")
    if line:
        lines.append(line)
    following, commands = _following(outcome, report, shelf, beaten=against == "better", rival=rival)
    return ResultLines(
        outcome=outcome,
        headline=_headline(outcome, against, interval, measure, rival),
        lines=tuple(lines),
        following=following,
        commands=commands,
        measure=measure,
        difference=interval,
        name=name,
        row=row.name,
        baseline=baseline.name,
        counts=counts,
    )


def held_out_result(evaluations: Mapping[str, Evaluation]) -> tuple[RunOutcome, RunOutcome, str] | None:
    """Return how the policy fares against the baseline and against the best other row, and the headline that says so.

    None if no evaluation compares the policy with a baseline.
    """
    for name in sorted(evaluations, key=lambda name: name.partition(": ")[0] != MEASURED):
        evaluation = evaluations[name]
        row, measure = learned_row(evaluation), headline_measure(evaluation)
        if row is not None and measure is not None and measure in row.differences:
            interval, rival = row.differences[measure].interval, _rival(evaluation, row, measure)
            outcome = _outcome(interval)
            against = "better" if rival is None else _against(row, rival, measure, evaluation)[1]
            return outcome, against, _headline(outcome, against, interval, measure, rival)
    return None


def _headline(
    outcome: RunOutcome, against: RunOutcome, interval: Interval, measure: str, rival: RunTable | None
) -> str:
    if outcome == "worse":
        return f"Search got worse: {_signed(interval.value)} {measure}"
    if outcome != "better":
        return f"No difference was shown in {measure}"
    better = f"Search got better: {_signed(interval.value)} {measure}"
    if rival is None or against == "better":
        return better
    if against == "worse":
        return f"{better}, but “{rival.name}” does better"
    return f"{better}, but it is not shown to beat “{rival.name}”"


def _outcome(interval: Interval) -> RunOutcome:
    if interval.low is None or interval.high is None:
        return "unclear"
    if interval.low > 0:
        return "better"
    return "worse" if interval.high < 0 else "unclear"


def _counts(row: RunTable, baseline: RunTable, measure: str) -> QueryCounts | None:
    """Return the counts, or None if the evaluation was kept without its values by query."""
    after, before = row.per_query.get(measure), baseline.per_query.get(measure)
    if not after or not before or set(after) != set(before):
        return None
    better = sum(after[query] > before[query] + SAME for query in after)
    worse = sum(after[query] < before[query] - SAME for query in after)
    return QueryCounts(better=better, worse=worse, same=len(after) - better - worse)


def _rival(evaluation: Evaluation, row: RunTable, measure: str) -> RunTable | None:
    """Return the best of the other rows, without the baseline."""
    others = [
        (run.measures[measure].value or 0.0, run)
        for run in evaluation.runs
        if run.name not in (row.name, evaluation.baseline) and measure in run.measures
    ]
    return max(others, key=lambda pair: pair[0])[1] if others else None


def _against(row: RunTable, rival: RunTable, measure: str, evaluation: Evaluation) -> tuple[str, RunOutcome]:
    """Return one sentence on the policy against the best other row, and how the policy fares."""
    value = rival.measures[measure].value
    said = f"The best of the other rows is “{rival.name}” with {_value(value)}"
    after, before = row.per_query.get(measure), rival.per_query.get(measure)
    if not after or not before or set(after) != set(before):
        ahead = (row.measures[measure].value or 0.0) > (value or 0.0)
        return f"{said}; it lies {'below' if ahead else 'not below'} “{row.name}”.", "better" if ahead else "unclear"
    settings = evaluation.settings
    interval = compare_means(
        after, before, samples=settings.samples, seed=settings.seed, confidence=settings.confidence
    )
    outcome = _outcome(interval)
    verdict = {
        "better": f"“{row.name}” beats it. The difference is",
        "worse": f"it beats “{row.name}”. The difference is",
    }.get(outcome, f"“{row.name}” is not shown to beat it. The difference is")
    confidence = f"{settings.confidence:.0%}"
    return f"{said}; {verdict} {said_interval(interval, confidence)}.", outcome


def _following(
    outcome: RunOutcome, report: Report, shelf: Shelf, *, beaten: bool, rival: RunTable | None
) -> tuple[str, tuple[str, ...]]:
    run = shlex.quote(report.run)
    base = f"{run}:{shelf.baseline}"
    judged = "--queries QUERIES --qrels QRELS"
    if outcome == "better" and not beaten and rival is not None:
        return (
            f"Judge more queries before you prefer the policy to “{rival.name}”: it is not shown to be better. Then "
            "read the examples with the lowest reward below.",
            (f"{shelf.program} measure {run}:shown {run}:latest --baseline {run}:shown {judged}",)
            if rival.name == "prompt's words"
            else (),
        )
    if outcome == "better":
        return (
            "Read the examples with the lowest reward below. If they are acceptable, bring the version to people on a "
            "ramp, which takes it back if it harms.",
            (f"{shelf.program} promote {_newest_version(report)} {judged}",),
        )
    if outcome == "worse":
        return (
            "Do not use this version. If the reward below rises while search gets worse, the policy exploits the "
            "reward: change the reward before you train again.",
            (),
        )
    return (
        "Judge more queries (four times as many halve the interval), or train on if the reward below still rises.",
        (f"{shelf.program} measure {base} {run}:latest --baseline {base} {judged}",),
    )


def _unmeasured(report: Report, shelf: Shelf) -> ResultLines:
    run = shlex.quote(report.run)
    lines = ["No evaluation lies in this run's folder, so this page cannot say whether search got better."]
    scored = [version for version in report.versions if version.reward is not None]
    if report.dev:
        first, last = report.dev[0], report.dev[-1]
        best = max(report.dev, key=lambda row: row.value)
        lines.append(
            f"On {last.queries} dev queries, {last.measure} was {first.value:.4f} at version {first.step} and "
            f"{last.value:.4f} at version {last.step}; the best was {best.value:.4f} at version {best.step}. The log "
            "keeps no values by query, so there is no interval."
        )
    if len(scored) > 1:
        lines.append(
            f"The reward of the training queries was {scored[0].reward:.3f} at version {scored[0].step} and "
            f"{scored[-1].reward:.3f} at version {scored[-1].step}. A policy can raise it without better search."
        )
    elif scored:
        lines.append(f"Only version {scored[0].step} has been rewarded: {scored[0].reward:.3f}.")
    else:
        lines.append("No group has been rewarded yet.")
    return ResultLines(
        outcome="unmeasured",
        headline="Not measured on held-out queries",
        lines=tuple(lines),
        following="Measure the policy on queries that trained nothing, keep the result in the run's folder, and make "
        "this page again:",
        commands=(
            f"{shelf.program} up",
            f"{shelf.program} measure {run}:{shelf.baseline} {run}:latest --baseline {run}:{shelf.baseline} "
            f"--measures nDCG@10,R@100 --json > {shelf.folder}/evaluation.json",
            f"{shelf.program} report --run {run} --html report.html",
        ),
    )


def _newest_version(report: Report) -> str:
    if not report.updates:
        return "VERSION"
    newest = report.updates[-1]
    return shlex.quote(f"{newest.lineage}-{newest.step:06d}")


def said_interval(interval: Interval, confidence: str) -> str:
    """Return a difference as words: `+0.0500 (95% interval +0.0400 to +0.0600)`."""
    if interval.value is None or interval.low is None or interval.high is None:
        return "not defined"
    return f"{interval.value:+.4f} ({confidence} interval {interval.low:+.4f} to {interval.high:+.4f})"


def _value(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3f}"
