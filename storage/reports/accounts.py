"""Every candidate by its outcome, summed over groups: what an account loses and gains when some groups change.

An account is a sum over groups of whole numbers. So the account of a grown ledger is the earlier one, less what the
groups with something new gave then, plus what they give now: nothing else is read, and the result is exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
import pyarrow as pa

from storage.reports.growth import NAME, REPEATABLE, Growth, earlier, first
from storage.reports.updates import Place

COUNTS = ("groups", "candidates", "scored", "failed", "expired", "waiting")


class AccountRow(msgspec.Struct, frozen=True, kw_only=True):
    """Every candidate of one split by its outcome. uses_max: the most gradients that any of them gave (at most 1)."""

    split: str
    candidates: int
    scored: int
    failed: int
    expired: int
    waiting: int
    uses_max: int


class AccountSums(msgspec.Struct, frozen=True, array_like=True):
    """The groups of a run and a split that gave so many gradients: their `COUNTS`."""

    run: str
    split: str | None
    uses: int
    counts: tuple[int, ...]


def account_sums(growth: Growth, before: Sequence[AccountSums], survived: Sequence[Place]) -> tuple[AccountSums, ...]:
    """Return the sums of all groups. before, survived: the sums of the earlier report, and its surviving updates.

    It needs the temporary table `surviving`.
    """
    connection = growth.log.connection
    if growth.whole:
        return _merged(_read(growth, "true", "surviving"), ())
    connection.register("survived", _places(survived))
    connection.execute(
        f"""
        CREATE OR REPLACE TEMP TABLE touched AS
        SELECT {NAME} AS name FROM generations WHERE {growth.fresh("generations")}
        UNION SELECT {NAME} FROM rewards WHERE {growth.fresh("rewards")}
        UNION SELECT {NAME} FROM update_groups WHERE (topic, partition, record_offset) IN (
            ({_place("surviving")} EXCEPT {_place("survived")}) UNION ALL
            ({_place("survived")} EXCEPT {_place("surviving")}))
        """
    )
    touched = f"{NAME} IN (FROM touched)"
    gone = _read(growth, touched, "survived", known=True)
    return _merged([*before, *_read(growth, touched, "surviving")], gone)


def account_rows(sums: Iterable[AccountSums]) -> tuple[AccountRow, ...]:
    """Return a row for each run and split."""
    found: dict[tuple[str, str | None], list[AccountSums]] = {}
    for each in sums:
        found.setdefault((each.run, each.split), []).append(each)
    rows = []
    for (_, split), of in sorted(found.items(), key=lambda item: (item[0][0], item[0][1] is None, item[0][1] or "")):
        total = dict(zip(COUNTS, map(sum, zip(*(each.counts for each in of), strict=True)), strict=True))
        del total["groups"]
        rows.append(AccountRow(split=split, uses_max=max(each.uses for each in of), **total))  # type: ignore[arg-type]
    return tuple(rows)


def _merged(added: Iterable[AccountSums], gone: Iterable[AccountSums]) -> tuple[AccountSums, ...]:
    """Return sums and differences by run, split and uses; without a group, an entry is left out."""
    found: dict[tuple[str, str | None, int], list[int]] = {}
    for sign, sums in ((1, added), (-1, gone)):
        for each in sums:
            counts = found.setdefault((each.run, each.split, each.uses), [0] * len(COUNTS))
            for place, count in enumerate(each.counts):
                counts[place] += sign * count
    return tuple(AccountSums(*key, tuple(counts)) for key, counts in found.items() if counts[0])


def _read(growth: Growth, chosen: str, surviving: str, *, known: bool = False) -> list[AccountSums]:
    """Return the sums of some groups, as the view `accounting` counts them.

    chosen: the condition on a group's rows. surviving: the table of the updates that count. known: count only rows that
    were there before.
    """
    generations, rewards = (
        first(table, known=f"{chosen} AND {earlier(table) if known else 'true'}") for table in REPEATABLE
    )
    within = {
        table: _within(growth, source) if chosen != "true" else "true"
        for table, source in (("candidates", generations), ("outcomes", rewards))
    }
    rows = growth.log.rows(
        f"""
        WITH named AS (
            SELECT topic, partition, record_offset, run, group_id, lineage, step, fate FROM update_groups
            WHERE {chosen} AND (topic, partition, record_offset) IN ({_place(surviving)})
        ), again AS MATERIALIZED (
            SELECT {NAME} AS name FROM named GROUP BY name HAVING count(*) > 1
        ), fates AS (
            SELECT run, group_id, (fate = 'trained')::BIGINT AS uses, fate = 'expired' AS expired FROM named
            WHERE {NAME} NOT IN (FROM again)
            UNION ALL
            SELECT run, group_id, count(*) FILTER (fate = 'trained'), bool_or(fate = 'expired') FROM (
                SELECT DISTINCT run, group_id, lineage, step, fate FROM named WHERE {NAME} IN (FROM again)
            ) GROUP BY run, group_id
        ), written AS (
            SELECT g.run, g.group_id, g.split, c.counted FROM {generations} g JOIN (
                SELECT topic, partition, record_offset, count(*) AS counted FROM candidates
                WHERE {within["candidates"]} GROUP BY ALL
            ) c USING (topic, partition, record_offset)
        ), judged AS (
            SELECT r.run, r.group_id, r.split, o.counted, o.scored, o.failed FROM {rewards} r JOIN (
                SELECT topic, partition, record_offset, count(*) AS counted,
                    count(*) FILTER (status = 'scored') AS scored, count(*) FILTER (status = 'failed') AS failed
                FROM outcomes WHERE {within["outcomes"]} GROUP BY ALL
            ) o USING (topic, partition, record_offset)
        ), groups AS (
            SELECT run, coalesce(j.split, w.split) AS split,
                greatest(coalesce(w.counted, 0), coalesce(j.counted, 0)) AS counted,
                coalesce(j.counted, 0) AS answered, coalesce(j.scored, 0) AS scored, coalesce(j.failed, 0) AS failed,
                coalesce(f.uses, 0) AS uses, coalesce(f.expired AND f.uses = 0, false) AS expired
            FROM written w FULL OUTER JOIN judged j USING (run, group_id) LEFT JOIN fates f USING (run, group_id)
        )
        SELECT run, split, uses, count(*) AS groups, sum(counted)::BIGINT AS candidates,
            coalesce(sum(scored) FILTER (NOT expired), 0)::BIGINT AS scored,
            coalesce(sum(failed) FILTER (NOT expired), 0)::BIGINT AS failed,
            coalesce(sum(counted) FILTER (expired), 0)::BIGINT AS expired,
            coalesce(sum(counted - answered) FILTER (NOT expired), 0)::BIGINT AS waiting
        FROM groups GROUP BY run, split, uses ORDER BY run, split, uses
        """
    )
    return [AccountSums(row["run"], row["split"], row["uses"], tuple(row[name] for name in COUNTS)) for row in rows]


def _within(growth: Growth, records: str) -> str:
    """Return the condition that a row lies between the first and the last of some records."""
    (row,) = growth.log.rows(f"SELECT min(record_offset) AS low, max(record_offset) AS high FROM {records}")
    return "false" if row["low"] is None else f"record_offset BETWEEN {row['low']} AND {row['high']}"


def _place(table: str) -> str:
    return f"SELECT topic, partition, record_offset FROM {table}"


def _places(places: Sequence[Place]) -> pa.Table:
    topics, partitions, offsets = zip(*places, strict=True) if places else ((), (), ())
    return pa.table(
        {
            "topic": pa.array(topics, pa.string()),
            "partition": pa.array(partitions, pa.int32()),
            "record_offset": pa.array(offsets, pa.int64()),
        }
    )
