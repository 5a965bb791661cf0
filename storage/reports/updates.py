"""The groups that each update of the surviving lineage took: their fates, and how old the policy was that wrote them.

An update is summed anew if it is new on the lineage, or if a record of one of its groups came. One that the lineage has
left, because a learner went back, is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec
import pyarrow as pa

from storage.log import Log
from storage.reports.growth import NAME, Growth, first
from storage.reports.versions import GROUPS_AT_ONCE, Numbers, rounded

Key = tuple[str, str | None, int | None]
Place = tuple[str, int, int]
TAKEN = ("updates", "update_groups")
FATES = ("trained", "flat", "expired", "failed")


class UpdateRow(msgspec.Struct, frozen=True, kw_only=True):
    """One optimizer step of the surviving lineage: the fates and the staleness of its groups, and its metrics."""

    lineage: str
    step: int
    trained: int
    flat: int
    expired: int
    failed: int
    lag_mean: float | None
    lag_max: int | None
    metrics: Numbers


class UpdateSums(msgspec.Struct, frozen=True, array_like=True):
    """An update's run, lineage and step, the places of its records, and its groups by fate and by lag in versions."""

    key: Key
    places: tuple[Place, ...]
    fates: tuple[int, ...] = (0, 0, 0, 0)
    lags: tuple[tuple[int | None, int], ...] = ()


def make_surviving(log: Log) -> None:
    """Make the temporary table `surviving`: the updates on which the newest one stands."""
    log.connection.execute("CREATE OR REPLACE TEMP TABLE surviving AS FROM surviving_updates")


def update_sums(growth: Growth, before: Sequence[UpdateSums]) -> tuple[UpdateSums, ...]:
    """Return the sums of each surviving update, in the order of the log. before: those of the earlier report."""
    now: dict[Key, list[Place]] = {}
    for row in growth.log.rows(
        "SELECT run, lineage, step, topic, partition, record_offset FROM surviving "
        "ORDER BY record_offset, topic, partition"
    ):
        run, lineage, step, *place = row.values()
        now.setdefault((run, lineage, step), []).append((place[0], place[1], place[2]))
    late = set() if growth.whole else _late(growth)
    found = {each.key: each for each in before if now.get(each.key) == list(each.places) and each.key not in late}
    due = [UpdateSums(key, tuple(places)) for key, places in now.items() if key not in found]
    at_once = _at_once(growth.log)
    for begin in range(0, len(due), at_once):
        found |= _summed(growth.log, due[begin : begin + at_once])
    return tuple(found[key] for key in now)


def update_rows(log: Log, sums: Iterable[UpdateSums]) -> tuple[UpdateRow, ...]:
    """Return the rows of the surviving updates, by step."""
    of = {each.key: each for each in sums}
    rows = log.rows(
        "SELECT run, lineage, step, metrics FROM surviving ORDER BY step, lineage, record_offset, topic, partition"
    )
    return tuple(_row(of[row["run"], row["lineage"], row["step"]], row["metrics"]) for row in rows)


def lag_numbers(log: Log, sums: Iterable[UpdateSums]) -> Numbers:
    """Return number, median, 95th percentile and maximum of the lags of all groups that were taken."""
    lags: Counter[int | None] = Counter()
    for each in sums:
        lags.update(dict(each.lags))
    counted = {"lag": pa.array(list(lags), pa.int64()), "groups": pa.array(list(lags.values()), pa.int64())}
    log.connection.register("counted_lags", pa.table(counted))
    (row,) = log.rows(
        "SELECT count(*) AS groups, median(lag) AS p50, quantile_disc(lag, 0.95) AS p95, max(lag) AS max "
        "FROM counted_lags, range(groups)"
    )
    return {name: value for name, value in row.items() if value is not None}


def _late(growth: Growth) -> set[Key]:
    """Return the updates with a group of which a reward is new."""
    rows = growth.log.rows(
        f"""
        SELECT DISTINCT s.run, s.lineage, s.step
        FROM (SELECT * FROM update_groups WHERE {NAME} IN (SELECT {NAME} FROM rewards WHERE {growth.fresh("rewards")}))
        JOIN surviving s USING (topic, partition, record_offset)
        """
    )
    return {(row["run"], row["lineage"], row["step"]) for row in rows}


def _at_once(log: Log) -> int:
    """Return how many updates have about `GROUPS_AT_ONCE` groups."""
    (row,) = log.rows(
        "SELECT (SELECT count(*) FROM updates) AS updates, (SELECT count(*) FROM update_groups) AS groups"
    )
    return max(1, GROUPS_AT_ONCE * int(row["updates"]) // max(1, int(row["groups"])))


def _summed(log: Log, updates: Sequence[UpdateSums]) -> dict[Key, UpdateSums]:
    """Return the sums of some surviving updates, of which only the places are known."""
    runs, lineages, steps = zip(*(each.key for each in updates), strict=True)
    named = {"run": pa.array(runs, pa.string()), "lineage": pa.array(lineages, pa.string()), "step": pa.array(steps)}
    log.connection.register("slice_updates", pa.table(named))
    log.connection.execute(
        """
        CREATE OR REPLACE TEMP TABLE taken AS
        SELECT g.run, g.group_id, g.lineage, g.step, g.fate, min(g.parent_step) AS parent_step
        FROM update_groups g JOIN (
            SELECT s.topic, s.partition, s.record_offset FROM surviving s JOIN slice_updates USING (run, lineage, step)
        ) USING (topic, partition, record_offset) GROUP BY ALL
        """
    )
    lags: dict[Key, list[tuple[int | None, int]]] = {}
    for row in log.rows(
        f"""
        SELECT t.run, t.lineage, t.step, t.parent_step - r.step AS lag, count(*) AS groups
        FROM taken t JOIN {first("rewards")} r USING (run, group_id) GROUP BY ALL ORDER BY lag
        """
    ):
        lags.setdefault((row["run"], row["lineage"], row["step"]), []).append((row["lag"], row["groups"]))
    counts = ", ".join(f"count(*) FILTER (fate = '{fate}') AS {fate}" for fate in FATES)
    rows = log.rows(f"SELECT run, lineage, step, {counts} FROM taken GROUP BY run, lineage, step")
    fates = {(row["run"], row["lineage"], row["step"]): tuple(row[fate] for fate in FATES) for row in rows}
    none = UpdateSums(("", None, None), ()).fates
    return {
        each.key: UpdateSums(each.key, each.places, fates.get(each.key, none), tuple(lags.get(each.key, ())))
        for each in updates
    }


def _row(sums: UpdateSums, metrics: dict[str, float]) -> UpdateRow:
    lags = [(lag, groups) for lag, groups in sums.lags if lag is not None]
    groups = sum(count for _, count in lags)
    trained, flat, expired, failed = sums.fates
    return UpdateRow(
        lineage=sums.key[1],  # type: ignore[arg-type]
        step=sums.key[2],  # type: ignore[arg-type]
        trained=trained,
        flat=flat,
        expired=expired,
        failed=failed,
        lag_mean=rounded(sum(lag * count for lag, count in lags) / groups) if groups else None,
        lag_max=max(lag for lag, _ in lags) if lags else None,
        metrics={name: rounded(value) or 0.0 for name, value in sorted(metrics.items())},
    )
