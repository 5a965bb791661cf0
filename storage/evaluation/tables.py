"""Several runs against one set of judgments as one table: the measures of each, and its gains over a baseline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated

import msgspec

from storage.errors import EvaluationError
from storage.evaluation.comparison import Interval, bootstrap_mean, compare_gains, compare_means
from storage.evaluation.gains import mean_relevance, relevant_retrieved
from storage.evaluation.incomplete import (
    Believed,
    added_measures,
    believed_measure,
    beside,
    holm_with_added,
    judged_share,
    ndcg_in_doubt,
)
from storage.evaluation.measures import MEASURES, Qrels, Run, Values, measure_run

RETRIEVAL_GAIN = "retrieval gain"
RELEVANCE_GAIN = "relevance gain"


class EvaluationSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The measures of an evaluation, and the confidence of its intervals."""

    measures: tuple[str, ...] = MEASURES
    relevant_grade: Annotated[int, msgspec.Meta(ge=1, description="the lowest grade that counts as relevant")] = 1
    retrieval_depth: Annotated[int, msgspec.Meta(ge=1, description="rank down to which the retrieval gain counts")] = (
        100
    )
    relevance_depth: Annotated[
        int, msgspec.Meta(ge=1, description="rank down to which the relevance gain averages")
    ] = 10
    samples: Annotated[int, msgspec.Meta(ge=100, le=1_000_000, description="bootstrap draws")] = 10_000
    seed: Annotated[int, msgspec.Meta(ge=0, description="seed of the draws")] = 0
    confidence: Annotated[float, msgspec.Meta(gt=0.5, lt=1, description="share of draws inside an interval")] = 0.95


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """A run against the baseline. p_holm: p corrected for the number of compared measures."""

    interval: Interval
    p_holm: float | None


class RunTable(msgspec.Struct, frozen=True, kw_only=True):
    """The results of one run.

    unanswered: judged queries that the run does not have; each counts as 0.
    """

    name: str
    queries: int
    unanswered: int
    measures: dict[str, Interval]
    differences: dict[str, Difference] = {}
    per_query: dict[str, Values] = {}


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """The whole table.

    without_relevant: queries without any document that was judged relevant; every run scores 0 there.
    added: measures that no one asked for, shown because some run has unjudged documents in the first k of a query, for
    the first nDCG@k of the measures (see `incomplete`). believed: nDCG@k or its judged-only twin. Both are empty
    without nDCG@k, and if the judgments list relevant documents only.
    """

    queries: int
    judgments: int
    without_relevant: int
    baseline: str | None
    settings: EvaluationSettings
    runs: tuple[RunTable, ...]
    added: tuple[str, ...] = ()
    believed: Believed | None = None

    @property
    def measures(self) -> tuple[str, ...]:
        """Return the measures of every run: those asked for, then those added."""
        return self.settings.measures + self.added

    @property
    def beside(self) -> tuple[str, ...]:
        """Return the columns of the table for incomplete judgments: nDCG@k, and what is added; none if nothing is."""
        return beside(self.believed.ndcg) if self.believed and self.added else ()


def evaluate_runs(
    runs: Mapping[str, Run],
    qrels: Qrels,
    *,
    baseline: str | None = None,
    relevance: Mapping[str, Mapping[str, float]] | None = None,
    settings: EvaluationSettings | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Evaluation:
    """Measure every run, and compare each with the baseline if there is one.

    baseline: the name of one of the runs. relevance: relevance-model scores of every document that any run has in its
    top, {query id: {document id: score}}; without them there is no relevance gain.
    progress: called with (current step, runs done, number of runs).
    Raises EvaluationError if something does not fit together; the message begins with the run's name.
    """
    settings = settings or EvaluationSettings()
    if baseline is not None and baseline not in runs:
        raise EvaluationError(f"baseline: expected one of {', '.join(runs)}, got {baseline!r}")
    ndcg = ndcg_in_doubt(settings.measures, qrels)
    judged = {name: judged_share(run, qrels, ndcg) for name, run in runs.items()} if ndcg else {}
    added = added_measures(settings.measures, ndcg, judged)
    values, gains = {}, {}
    for number, (name, run) in enumerate(runs.items()):
        if progress:
            progress("measuring", number, len(runs))
        values[name] = _values(name, run, qrels, settings, added)
        gains[name] = _gain_values(name, run, qrels, relevance, settings)
    tables = []
    for number, (name, run) in enumerate(runs.items()):
        if progress:
            progress("drawing queries", number, len(runs))
        differences: dict[str, Difference] = {}
        if baseline is not None and name != baseline:
            differences = _differences(values[name], values[baseline], gains[name], gains[baseline], settings, added)
        tables.append(
            RunTable(
                name=name,
                queries=len(qrels),
                unanswered=sum(not run.get(query) for query in qrels),
                measures={
                    measure: bootstrap_mean(
                        of, samples=settings.samples, seed=settings.seed, confidence=settings.confidence
                    )
                    for measure, of in values[name].items()
                },
                differences=differences,
                per_query=values[name] | gains[name],
            )
        )
    if progress:
        progress("drawing queries", len(runs), len(runs))
    return Evaluation(
        queries=len(qrels),
        judgments=sum(map(len, qrels.values())),
        without_relevant=sum(max(grades.values(), default=0) < settings.relevant_grade for grades in qrels.values()),
        baseline=baseline,
        settings=settings,
        runs=tuple(tables),
        added=added,
        believed=believed_measure(judged, ndcg, unanswered=any(table.unanswered for table in tables))
        if ndcg and judged
        else None,
    )


def _values(
    name: str, run: Run, qrels: Qrels, settings: EvaluationSettings, added: tuple[str, ...]
) -> dict[str, Values]:
    try:
        return measure_run(run, qrels, settings.measures + added, relevant_grade=settings.relevant_grade)
    except EvaluationError as error:
        raise EvaluationError(f"{name}: {error}") from error


def _gain_values(
    name: str,
    run: Run,
    qrels: Qrels,
    relevance: Mapping[str, Mapping[str, float]] | None,
    settings: EvaluationSettings,
) -> dict[str, Values]:
    found = {
        RETRIEVAL_GAIN: relevant_retrieved(
            run, qrels, depth=settings.retrieval_depth, relevant_grade=settings.relevant_grade
        )
    }
    if relevance is not None:
        try:
            found[RELEVANCE_GAIN] = mean_relevance(run, relevance, depth=settings.relevance_depth)
        except EvaluationError as error:
            raise EvaluationError(f"{name}: {error}") from error
    return found


def _differences(
    values: dict[str, Values],
    baseline: dict[str, Values],
    gains: dict[str, Values],
    gains_baseline: dict[str, Values],
    settings: EvaluationSettings,
    added: tuple[str, ...],
) -> dict[str, Difference]:
    found = {
        measure: compare_means(
            of, baseline[measure], samples=settings.samples, seed=settings.seed, confidence=settings.confidence
        )
        for measure, of in values.items()
    } | {
        measure: compare_gains(
            of, gains_baseline[measure], samples=settings.samples, seed=settings.seed, confidence=settings.confidence
        )
        for measure, of in gains.items()
    }
    # The share of judged documents says how far to trust the other measures. It is not a claim, so it does not enter
    # their correction.
    tested = {name: item.p for name, item in found.items() if item.p is not None and not name.startswith("Judged")}
    corrected = holm_with_added(tested, added)
    return {name: Difference(interval=item, p_holm=corrected.get(name)) for name, item in found.items()}
