"""The values of a run's metrics, from its log, from the facts about its stages, and from its alerts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from storage.log import Log
from storage.monitor.best import BestVersion
from storage.monitor.stalls import RunFacts, RunState
from storage.verification.partitions import UNACCOUNTED
from streams.events import DevScore, DevSet, PolicyRef
from streams.topics import version_name

RECENT_UPDATES = 20
LEARNING = (
    "clip_share",
    "entropy",
    "grad_norm",
    "kl_behaviour",
    "kl_reference",
    "learning_rate",
    "loss",
    "ratio_max",
    "ratio_mean",
)
"""The metrics of an update that are shown: a log of somebody else cannot add names."""

STAGES_MAX = 16  # A log of somebody else cannot add series without limit.


class LoopValues(msgspec.Struct, frozen=True, kw_only=True):
    """A run's values now. A value that is None or absent gives no series: unknown is never 0.

    policies: a version's name by role (newest, rewarded, measured, best). dev: by role. alerts: whether each fires.
    lag_records, lag_seconds: by stage. staleness: by statistic (median, p95, max). Times are seconds since 1970.
    """

    run: str
    recipe: str = ""
    state: str = ""
    policies: dict[str, str] = {}
    groups: int | None = None
    candidates: dict[str, int] = {}
    updates: int | None = None
    updates_wanted: int | None = None
    dead_letters: dict[str, int] = {}
    residual: int | None = None
    lag_records: dict[str, int] = {}
    lag_seconds: dict[str, float] = {}
    staleness: dict[str, float] = {}
    reward: float | None = None
    dev: dict[str, float] = {}
    measure: str = ""
    learning: dict[str, float] = {}
    alerts: dict[str, bool] | None = None
    last_group: float | None = None
    last_update: float | None = None
    read_at: float | None = None


def read_log(run: str, log: Log, *, now_ms: int) -> LoopValues:
    """Return the values that a run's log tells.

    Raises StorageError if the log cannot be read.
    """
    (rewarded,) = log.rows(
        "SELECT count(DISTINCT group_id) AS groups, max(made_at_ms) AS at_ms FROM rewards WHERE topic LIKE '%.rewards'"
    )
    updates = log.rows("SELECT lineage, step, made_at_ms, metrics FROM surviving_updates ORDER BY step DESC LIMIT 1")
    newest = log.rows(
        "SELECT lineage, step FROM counted_versions WHERE status <> 'retired' ORDER BY record_offset DESC LIMIT 1"
    )
    reward = log.rows(
        "SELECT lineage, step, avg(reward_mean) AS reward FROM group_rewards WHERE reward_mean IS NOT NULL "
        "GROUP BY lineage, step ORDER BY step DESC, lineage DESC LIMIT 1"
    )
    dev, measured, measure = _dev(log)
    policies = {"newest": _name(newest), "rewarded": _name(reward), **measured}
    metrics: Mapping[str, float] = updates[0]["metrics"] if updates else {}
    return LoopValues(
        run=run,
        policies={role: name for role, name in policies.items() if name},
        groups=rewarded["groups"],
        candidates=_candidates(log),
        updates=updates[0]["step"] if updates else 0,
        dead_letters=_dead_letters(log),
        residual=log.rows(UNACCOUNTED)[0]["records"],
        staleness=_staleness(log),
        reward=reward[0]["reward"] if reward else None,
        dev=dev,
        measure=measure,
        learning={name: float(metrics[name]) for name in LEARNING if metrics.get(name) is not None},
        last_group=_seconds(rewarded["at_ms"]),
        last_update=_seconds(updates[0]["made_at_ms"]) if updates else None,
        read_at=now_ms / 1000,
    )


def with_facts(values: LoopValues, facts: RunFacts, state: RunState) -> LoopValues:
    """Return the values with what the run's topics, groups and files tell: its state and the lag of each stage."""
    since = {stage.stage: stage.since_ms for stage in facts.stages}
    return msgspec.structs.replace(
        values,
        state=state.state,
        updates_wanted=facts.updates_wanted or None,
        lag_records={stage.stage: stage.waiting for stage in facts.stages if stage.waiting is not None},
        lag_seconds={
            stage: 0.0 if since_ms is None else max(facts.now_ms - since_ms, 0) / 1000
            for stage, since_ms in since.items()
        },
    )


def with_alerts(values: LoopValues, firing: Mapping[str, bool]) -> LoopValues:
    """Return the values with each alert's name, and whether it fires."""
    return msgspec.structs.replace(values, alerts=dict(firing))


def _dead_letters(log: Log) -> dict[str, int]:
    rows = log.rows(
        f"SELECT stage, count(*) AS n FROM dead_letter GROUP BY stage ORDER BY n DESC, stage LIMIT {STAGES_MAX}"
    )
    return {row["stage"]: row["n"] for row in rows}


def _candidates(log: Log) -> dict[str, int]:
    (row,) = log.rows(
        "SELECT sum(scored)::BIGINT AS scored, sum(failed)::BIGINT AS failed, sum(expired)::BIGINT AS expired, "
        "sum(waiting)::BIGINT AS waiting FROM accounting"
    )
    return {fate: count or 0 for fate, count in row.items()}


def _staleness(log: Log) -> dict[str, float]:
    (row,) = log.rows(
        f"""
        SELECT quantile_disc(lag_versions, 0.5) AS median, quantile_disc(lag_versions, 0.95) AS p95,
            max(lag_versions) AS max
        FROM staleness WHERE step > (SELECT max(step) FROM surviving_updates) - {RECENT_UPDATES}
        """
    )
    return {name: float(value) for name, value in row.items() if value is not None}


def _dev(log: Log) -> tuple[dict[str, float], dict[str, str], str]:
    """Return scores and versions by role, and the measure. Only scores of the same queries are compared."""
    best = BestVersion(gain_min=0.0, patience=0)
    newest: DevScore | None = None
    for row in log.rows(
        "SELECT run, lineage, step, weights_sha256, index, measure, value, sets FROM first_dev_scores "
        "ORDER BY record_offset"
    ):
        newest = _dev_score(row)
        best.add(newest)
    if newest is None or best.best is None:
        return {}, {}, ""
    scores = {"measured": newest, "best": best.best}
    names = {role: version_name(score.policy) for role, score in scores.items()}
    return {role: score.value for role, score in scores.items()}, names, newest.measure


def _dev_score(row: Mapping[str, Any]) -> DevScore:
    sets = tuple(DevSet(name=each["name"], queries=each["queries"], measures={}) for each in row["sets"])
    policy = PolicyRef(lineage=row["lineage"], step=row["step"], sha256=row["weights_sha256"])
    return DevScore(
        run=row["run"], policy=policy, index=row["index"], measure=row["measure"], value=row["value"], sets=sets
    )


def _name(rows: list[dict[str, Any]]) -> str:
    return version_name(PolicyRef(lineage=rows[0]["lineage"], step=rows[0]["step"], sha256="")) if rows else ""


def _seconds(milliseconds: int | None) -> float | None:
    return milliseconds / 1000 if milliseconds else None
