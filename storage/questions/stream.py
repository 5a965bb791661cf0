"""What happens in a run, as server-sent events with a cursor: a page that comes back loses and repeats nothing.

The cursor is the log's own: the next offset of each partition. Each event carries some new rows, and as its id the
cursor after them. A browser that connects again sends the last id that it got.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import duckdb
import msgspec

from storage.questions.asking import ask

ROWS_AT_ONCE = 200
PLACE = re.compile(r"([a-z-]+)\.([0-9]{1,6}):([0-9]{1,18})")

Cursor = dict[tuple[str, int], int]
"""Next offset by kind of topic and partition."""

KINDS = {
    "rewards": """SELECT r."partition", r.record_offset, r.group_id, r.step,
        coalesce(nullif(r.query, ''), r.query_id) AS query, avg(o.reward) AS reward, stddev_pop(o.reward) AS spread
    FROM rewards r LEFT JOIN outcomes o USING (topic, "partition", record_offset)
    WHERE r."partition" = $partition AND r.record_offset BETWEEN $offset AND $end - 1 AND r.topic LIKE '%.rewards'
    GROUP BY ALL ORDER BY r.record_offset LIMIT $rows""",
    "updates": """SELECT "partition", record_offset, step, lineage FROM updates
    WHERE "partition" = $partition AND record_offset BETWEEN $offset AND $end - 1 ORDER BY record_offset LIMIT $rows""",
    "dev-scores": """SELECT "partition", record_offset, step, lineage, measure, value FROM dev_scores
    WHERE "partition" = $partition AND record_offset BETWEEN $offset AND $end - 1 ORDER BY record_offset LIMIT $rows""",
    "dead-letters": """SELECT "partition", record_offset, stage, error FROM dead_letters
    WHERE topic LIKE '%.dead-letters' AND "partition" = $partition AND record_offset BETWEEN $offset AND $end - 1
    ORDER BY record_offset LIMIT $rows""",
    "impression-outcomes": """SELECT "partition", record_offset, query, policy, len(actions) AS actions, final
    FROM impression_outcomes WHERE "partition" = $partition AND record_offset BETWEEN $offset AND $end - 1
    ORDER BY record_offset LIMIT $rows""",
    "decisions": """SELECT "partition", record_offset, version, kind, share, reason FROM decisions
    WHERE "partition" = $partition AND record_offset BETWEEN $offset AND $end - 1 ORDER BY record_offset LIMIT $rows""",
}
"""What is told of each kind of topic."""

POSITIONS = "SELECT topic, partition, next_offset FROM sink_offsets"


class News(msgspec.Struct, frozen=True, kw_only=True):
    """Some new rows of one kind. cursor: after them."""

    kind: str
    rows: list[dict[str, Any]]
    cursor: Cursor


def show_cursor(cursor: Mapping[tuple[str, int], int]) -> str:
    """Return a cursor as the id of an event: `rewards.0:512,updates.0:31`."""
    return ",".join(f"{kind}.{number}:{offset}" for (kind, number), offset in sorted(cursor.items()))


def read_cursor(text: str) -> Cursor | None:
    """Return the cursor of an id; None if it is none, so the page begins at the end of the log."""
    parts = text.split(",") if text else []
    found = [PLACE.fullmatch(part) for part in parts]
    if not parts or any(match is None or match[1] not in KINDS for match in found):
        return None
    return {(match[1], int(match[2])): int(match[3]) for match in found if match is not None}


def within(cursor: Cursor, end: Cursor) -> Cursor:
    """Return a cursor no further than the end of a log that is whole.

    A cursor beyond it belongs to another log of the same name, and would wait for rows that never come. If the log is
    that of a killed sink, whose newest records a page has seen in Kafka, those come twice.
    """
    return {place: min(offset, end.get(place, 0)) for place, offset in cursor.items()}


def ends(connection: duckdb.DuckDBPyConnection) -> Cursor:
    """Return the cursor at the end of the log as it is stored."""
    found = {}
    for topic, number, offset in ask(connection, POSITIONS).rows:
        kind = str(topic).rpartition(".")[2]
        if kind in KINDS:
            found[kind, int(number)] = int(offset)
    return found


def news(connection: duckdb.DuckDBPyConnection, cursor: Cursor) -> list[News]:
    """Return what lies beyond a cursor, a bounded number of rows for each partition."""
    found = []
    at = dict(cursor)
    for (kind, number), end in sorted(ends(connection).items()):
        if at.get((kind, number), 0) >= end:
            continue
        given = {"partition": number, "offset": at.get((kind, number), 0), "end": end, "rows": ROWS_AT_ONCE}
        rows = ask(connection, KINDS[kind], given).dicts()
        at[kind, number] = rows[-1]["record_offset"] + 1 if len(rows) == ROWS_AT_ONCE else end
        found.append(News(kind=kind, rows=rows, cursor=dict(at)))
    return found
