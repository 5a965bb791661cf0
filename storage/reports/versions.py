"""The groups that each policy version wrote, summed; after a report that was kept, only versions with new records.

A version that gained no record has the same row as before. One that gained a record is summed anew from all of its
rows, smallest value first or as decimal numbers, so its figures do not depend on when reports were made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import pyarrow as pa

from storage.log import Log
from storage.reports.growth import NAME, Growth, first

DIGITS = 6
GROUPS_AT_ONCE = 100_000  # What a slice joins lies in memory; .5 s for each slice.

Numbers = dict[str, float]
Key = tuple[str, int]


class VersionRow(msgspec.Struct, frozen=True, kw_only=True):
    """The groups that one policy version wrote: one point of the reward curve.

    groups: rewarded groups. reward: mean over groups of the mean over candidates, with its standard error.
    best: mean over groups of the best candidate. valid, flat: shares of candidates and of groups.
    expansions: mean number per candidate. components: the mean of each part of the reward. spread: mean over groups of
    the standard deviation within each.
    """

    lineage: str
    step: int
    groups: int
    scored: int
    failed: int
    reward: float | None
    reward_error: float | None
    best: float | None
    valid: float | None
    flat: float | None
    expansions: float | None
    components: Numbers
    spread: float | None = None


class VersionSums(msgspec.Struct, frozen=True, array_like=True):
    """A version's row, and the run whose records it sums."""

    run: str
    row: VersionRow


def version_sums(growth: Growth, before: Sequence[VersionSums]) -> tuple[VersionSums, ...]:
    """Return the row of every version with rewarded groups, by run, step and lineage. before: of the earlier report."""
    grown = _grown(growth)
    named = {(row["lineage"], row["step"]) for row in grown}
    found = [each for each in before if (each.row.lineage, each.row.step) not in named]
    for some in _slices(grown):
        found += _summed(growth.log, some)
    return tuple(sorted(found, key=lambda each: (each.run, each.row.step, each.row.lineage)))


def _grown(growth: Growth) -> list[dict[str, Any]]:
    """Return the versions with a new record, or with an older record of a group that has one, and where they lie."""
    fresh = growth.fresh("rewards")
    return growth.log.rows(
        f"""
        WITH mine AS (
            SELECT run, group_id, lineage, step, record_offset FROM rewards WHERE topic LIKE '%.rewards'
        ), new AS (
            SELECT run, group_id, lineage, step FROM rewards WHERE topic LIKE '%.rewards' AND {fresh}
        ), again AS (
            SELECT {NAME} AS name FROM new WHERE {NAME} IN (FROM repeated_rewards)
        ), grown AS (
            SELECT lineage, step FROM new UNION SELECT lineage, step FROM mine WHERE {NAME} IN (FROM again)
        )
        SELECT lineage, step, count(*) AS groups, min(record_offset) AS low, max(record_offset) AS high
        FROM mine JOIN grown USING (lineage, step) GROUP BY lineage, step ORDER BY low, step, lineage
        """
    )


def _slices(versions: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yield the versions in lists of about `GROUPS_AT_ONCE` groups."""
    some: list[dict[str, Any]] = []
    groups = 0
    for each in versions:
        if some and groups + each["groups"] > GROUPS_AT_ONCE:
            yield some
            some, groups = [], 0
        some.append(each)
        groups += each["groups"]
    if some:
        yield some


def _summed(log: Log, versions: Sequence[dict[str, Any]]) -> list[VersionSums]:
    """Return the rows of some versions, from the records of theirs that count."""
    log.connection.register("slice_versions", _named(versions))
    within = f"record_offset BETWEEN {min(v['low'] for v in versions)} AND {max(v['high'] for v in versions)}"
    counted = f"""
        WITH counted AS (
            SELECT r.topic, r.partition, r.record_offset, r.run, r.lineage, r.step FROM {first("rewards")} r
            JOIN slice_versions USING (lineage, step) WHERE {within}
        ), judged AS (
            SELECT o.* EXCLUDE (run), c.run, c.lineage, c.step FROM outcomes o
            JOIN counted c USING (topic, partition, record_offset) WHERE {within}
        )
    """
    components: dict[Key, Numbers] = {}
    for row in log.rows(
        f"""
        {counted}, parts AS (
            SELECT lineage, step, part.key AS name, part.value AS value,
                CASE WHEN abs(part.value) < 1e9 THEN part.value::DECIMAL(38, 12) END AS exact
            FROM (SELECT lineage, step, unnest(map_entries(components)) AS part FROM judged WHERE status = 'scored')
        )
        SELECT lineage, step, name, CASE WHEN count(value) = count(exact) THEN avg(exact) ELSE avg(value) END AS mean
        FROM parts GROUP BY lineage, step, name ORDER BY lineage, step, name
        """
    ):
        components.setdefault((row["lineage"], row["step"]), {})[row["name"]] = round(row["mean"], DIGITS)
    rows = log.rows(
        f"""
        {counted}, grouped AS (
            SELECT run, lineage, step, count(*) AS candidates, count(reward) AS scored, {_sorted("reward")} AS rewards,
                avg(valid::INTEGER) FILTER (status = 'scored') AS valid_share,
                avg(len(expansions)) FILTER (status = 'scored') AS expansions_mean
            FROM judged GROUP BY topic, partition, record_offset, run, lineage, step
        ), figured AS (
            SELECT *, list_avg(rewards) AS reward_mean, list_stddev_pop(rewards) AS reward_std,
                rewards[-1] AS reward_max, scored >= 2 AND rewards[1] = rewards[-1] AS flat,
                valid_share * scored AS valid
            FROM grouped
        ), listed AS (
            SELECT run, lineage, step, count(*) AS groups, sum(scored)::BIGINT AS scored,
                sum(candidates - scored)::BIGINT AS failed, avg(flat::INTEGER) AS flat,
                {_sorted("reward_mean")} AS means, {_sorted("reward_max")} AS highest, {_sorted("valid")} AS valid,
                {_sorted("expansions_mean")} AS expansions, {_sorted("reward_std")} AS spreads
            FROM figured GROUP BY run, lineage, step
        )
        SELECT run, lineage, step, groups, scored, failed, flat, list_avg(means) AS reward,
            list_stddev_samp(means) / sqrt(len(means)) AS reward_error, list_avg(highest) AS best,
            list_sum(valid) / nullif(scored, 0) AS valid, list_avg(expansions) AS expansions,
            list_avg(spreads) AS spread
        FROM listed
        """
    )
    return [_sums(row, components) for row in rows]


def _sums(row: dict[str, Any], components: dict[Key, Numbers]) -> VersionSums:
    run, lineage, step, *counts = (row.pop(name) for name in ("run", "lineage", "step", "groups", "scored", "failed"))
    figures = {name: rounded(value) for name, value in row.items()}
    groups, scored, failed = counts
    found = VersionRow(
        lineage=lineage,
        step=step,
        groups=groups,
        scored=scored,
        failed=failed,
        components=components.get((lineage, step), {}),
        **figures,
    )
    return VersionSums(run, found)


def _sorted(column: str) -> str:
    """Return the values of a column that are there, in order: a sum over them is the same whenever it is made."""
    return f"list_sort(list({column}) FILTER ({column} IS NOT NULL))"


def _named(versions: Sequence[dict[str, Any]]) -> pa.Table:
    return pa.table(
        {
            "lineage": pa.array([each["lineage"] for each in versions], pa.string()),
            "step": pa.array([each["step"] for each in versions], pa.int64()),
        }
    )


def rounded(value: Any) -> float | None:
    """Return a number with the digits that do not depend on the order of sums."""
    return None if value is None else round(float(value), DIGITS)
