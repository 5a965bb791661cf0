"""Reports for tests, made by hand: without a log, or with an evaluation whose values are 0 and 1."""

from __future__ import annotations

import msgspec

from storage.evaluation.tables import Evaluation, EvaluationSettings, evaluate_runs
from storage.reports.report import Report
from storage.reports.updates import UpdateRow
from storage.reports.versions import VersionRow

EMPTY = Report(
    run="r",
    live=False,
    first_ms=None,
    last_ms=None,
    partitions=(),
    accounting=(),
    versions=(),
    updates=(),
    lag={},
    dead_letters={},
    letters=(),
    examples=(),
    evaluations={},
)


def versions(count: int, **changed: object) -> tuple[VersionRow, ...]:
    return tuple(
        msgspec.structs.replace(
            VersionRow(
                lineage="a", step=step, groups=8, scored=64, failed=0, reward=0.1 + step / 1000, reward_error=0.01,
                best=0.5, valid=0.99, flat=0.1, expansions=3.0, spread=0.2,
                components={"relevance": 0.4, "size": 0.1, "raw_size": 90.0, "terms": 12.0, "counted": 55.0},
            ),
            **changed,
        )
        for step in range(count)
    )  # fmt: skip


def updates(count: int, metrics: dict[str, float]) -> tuple[UpdateRow, ...]:
    return tuple(
        UpdateRow(
            lineage="a", step=step, trained=8, flat=0, expired=0, failed=0, lag_mean=0.5, lag_max=1, metrics=metrics
        )
        for step in range(1, count + 1)
    )


def compared(raw: dict[str, bool], policy: dict[str, bool], **others: dict[str, bool]) -> Evaluation:
    """An evaluation in which a row finds a query's only relevant document first or not at all: nDCG@10 is 1 or 0."""
    rows = {"raw": raw, "policy": policy} | others
    runs = {
        name: {query: {"right" if hit else "wrong": 1.0} for query, hit in row.items()} for name, row in rows.items()
    }
    qrels = {query: {"right": 1, "other": 0} for query in raw}
    settings = EvaluationSettings(measures=("nDCG@10",), samples=500)
    return evaluate_runs(runs, qrels, baseline="raw", settings=settings)


def hits(found: str, *, of: int = 20) -> dict[str, bool]:
    """Queries by number; found: those with a hit, as a range `3-19`."""
    first, _, last = found.partition("-")
    return {f"q{number}": int(first) <= number <= int(last or first) for number in range(of)}
