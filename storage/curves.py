"""A run's curves for other tools: one number a step, with the time at which it was made."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from storage.log import Log

# A version counts if the newest policy stands on it: its own update survived, or the first surviving one began with it.
SURVIVING = """
    SELECT lineage, step FROM surviving_updates
    UNION SELECT parent_lineage, parent_step FROM surviving_updates
"""
REWARDS = f"""
    SELECT v.step, v.reward_mean AS mean, v.reward_best AS best, v.valid_share, v.flat_share, v.expansions_mean,
        r.at_ms
    FROM reward_by_version v
    JOIN (SELECT lineage, step, max(made_at_ms) AS at_ms FROM first_rewards GROUP BY lineage, step) r
        USING (lineage, step)
    WHERE (v.lineage, v.step) IN ({SURVIVING}) OR NOT EXISTS (SELECT 1 FROM surviving_updates)
    ORDER BY v.step
"""
COMPONENTS = f"""
    SELECT step, part.key AS name, avg(part.value) AS mean, max(at_ms) AS at_ms FROM (
        SELECT o.step, unnest(map_entries(o.components)) AS part, r.made_at_ms AS at_ms
        FROM first_outcomes o JOIN first_rewards r USING (topic, partition, record_offset)
        WHERE o.status = 'scored'
            AND ((o.lineage, o.step) IN ({SURVIVING}) OR NOT EXISTS (SELECT 1 FROM surviving_updates))
    ) GROUP BY step, part.key ORDER BY step, part.key
"""
UPDATES = """
    SELECT step, unnest(map_entries(metrics)) AS part, made_at_ms AS at_ms FROM surviving_updates ORDER BY step
"""
DEV = """
    SELECT step, measure, value, sets, made_at_ms AS at_ms FROM first_dev_scores ORDER BY step, record_offset
"""


class CurvePoint(msgspec.Struct, frozen=True, kw_only=True):
    """One point of the curve `name`, such as "reward/mean" or "update/loss". at: in seconds since 1970."""

    name: str
    step: int
    value: float
    at: float


def curves(log: Log) -> Iterator[CurvePoint]:
    """Yield every point of a run's curves: rewards by version, metrics by update, dev scores by version.

    Only what the newest policy stands on is there, so a step has one value.
    """
    for row in log.rows(REWARDS):
        for name in ("mean", "best", "valid_share", "flat_share", "expansions_mean"):
            if row[name] is not None:
                yield _point(f"reward/{name}", row["step"], row[name], row["at_ms"])
    for row in log.rows(COMPONENTS):
        yield _point(f"reward/components/{row['name']}", row["step"], row["mean"], row["at_ms"])
    for row in log.rows(UPDATES):
        yield _point(f"update/{row['part']['key']}", row["step"], row["part"]["value"], row["at_ms"])
    for row in log.rows(DEV):
        yield _point(f"dev/{row['measure']}", row["step"], row["value"], row["at_ms"])
        for each in row["sets"]:
            for measure, value in each["measures"].items():
                yield _point(f"dev/{each['name']}/{measure}", row["step"], value, row["at_ms"])


def _point(name: str, step: int, value: float, at_ms: int | None) -> CurvePoint:
    return CurvePoint(name=name, step=step, value=float(value), at=(at_ms or 0) / 1000)
