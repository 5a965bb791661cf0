"""What a ledger has gained since a report was made: its new rows, and which record of a group counts.

The ledger only gains rows. A row is new if its record lies at or beyond the offset up to which an earlier report had
summed its table. The earlier rows are not read again. The number of them and the sums of their offsets and times show
whether rows are gone, added or moved; this takes a hundredth of the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec
import pyarrow as pa

from storage.log import Log

Summed = Literal["generations", "candidates", "rewards", "outcomes", "updates", "update_groups"]
Repeatable = Literal["generations", "rewards"]
TABLES: tuple[Summed, ...] = ("generations", "candidates", "rewards", "outcomes", "updates", "update_groups")
REPEATABLE: tuple[Repeatable, ...] = ("generations", "rewards")
NAME = "hash(run, group_id)"  # Groups with the same hash are looked at together, so every result is exact.


class TableExtent(msgspec.Struct, frozen=True, array_like=True):
    """The rows of one partition in one table: the offset after the last one, their number, and two sums."""

    table: str
    topic: str
    partition: int
    next_offset: int
    rows: int
    sums: str


class Growth:
    """A log with temporary tables that say what is new beyond some extents. Without extents, every row is new."""

    def __init__(self, log: Log, before: Sequence[TableExtent]) -> None:
        self.log = log
        self.whole = not before
        log.connection.register("summed_extents", _table(before))
        for table in REPEATABLE:
            log.connection.execute(
                f"CREATE OR REPLACE TEMP TABLE repeated_{table} AS SELECT {NAME} AS name FROM {table} "
                f"WHERE topic LIKE '%.{table}' GROUP BY name HAVING count(*) > 1"
            )

    def fresh(self, table: Summed) -> str:
        """Return the condition that a row of a table is new."""
        return "true" if self.whole else f"NOT {earlier(table)}"


def first(table: Repeatable, *, known: str = "true") -> str:
    """Return the query for the record of each group that counts: the first one, as in the view `first_…`.

    known: the condition on the rows that are looked at. It needs the temporary tables of a `Growth`.
    """
    mine, repeated = f"topic LIKE '%.{table}' AND {known}", f"(FROM repeated_{table})"
    return f"""(
        SELECT * FROM {table} WHERE {mine} AND {NAME} NOT IN {repeated}
        UNION ALL
        SELECT * FROM {table} WHERE {mine} AND {NAME} IN {repeated} QUALIFY row_number() OVER (
            PARTITION BY run, group_id ORDER BY source_offset, record_offset, topic, partition) = 1)"""


def earlier(table: Summed) -> str:
    """Return the condition that a row of a table was there before."""
    return f"""coalesce(record_offset < (SELECT any_value(e.next_offset) FROM summed_extents e
        WHERE e."table" = '{table}' AND e.topic = {table}.topic AND e.partition = {table}.partition), false)"""


def extents_of(log: Log, before: Sequence[TableExtent] | None = None) -> tuple[TableExtent, ...]:
    """Return the extents of the tables, in a fixed order; before: only as far as these reach."""
    if before is not None:
        log.connection.register("summed_extents", _table(before))
    found = []
    for table in TABLES:
        rows = log.rows(
            "SELECT topic, partition, max(record_offset) + 1 AS next_offset, count(*) AS rows, "
            f"concat(sum(record_offset), ' ', sum(record_time_ms)) AS sums FROM {table} "
            f"WHERE {'true' if before is None else earlier(table)} GROUP BY topic, partition ORDER BY topic, partition"
        )
        found += [TableExtent(table=table, **row) for row in rows]
    return tuple(found)


def _table(extents: Sequence[TableExtent]) -> pa.Table:
    return pa.table(
        {
            "table": pa.array([each.table for each in extents], pa.string()),
            "topic": pa.array([each.topic for each in extents], pa.string()),
            "partition": pa.array([each.partition for each in extents], pa.int32()),
            "next_offset": pa.array([each.next_offset for each in extents], pa.int64()),
        }
    )
