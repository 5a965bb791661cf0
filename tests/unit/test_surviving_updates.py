"""The chain of surviving updates: going island by island gives the rows of going from update to update."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

import duckdb
import pytest

from storage.schema import migrate, migrations

(PLAIN,) = re.findall(r"CREATE VIEW surviving_updates AS\n(.*?);", migrations()[1].sql, re.DOTALL)
"""The definition, as it stood first: from the newest update to its parent, and on."""

Row = tuple[str, int, str, int, str, str | None, int | None, str | None]


@pytest.fixture(scope="module")
def migrated() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        migrate(connection)
        connection.execute(f"CREATE TEMP VIEW plain AS {PLAIN}")
        yield connection


@pytest.fixture
def ledger(migrated: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyConnection:
    migrated.execute("DELETE FROM updates")
    return migrated


def store(ledger: duckdb.DuckDBPyConnection, rows: list[Row]) -> None:
    """Write updates: run, offset, lineage, step, weights, and the parent's lineage, step and weights."""
    ledger.executemany(
        "INSERT INTO updates (topic, partition, record_offset, record_time_ms, run, lineage, step, weights_sha256, "
        "parent_lineage, parent_step, parent_sha256, metrics) "
        "SELECT ?, 0, ?, 0, ?, ?, ?, ?, ?, ?, ?, map {'entropy': 1.0}",
        [(f"{row[0]}.updates", row[1], row[0], *row[2:]) for row in rows],
    )


def random_log(random_: random.Random, run: str, count: int) -> list[Row]:
    """Return a log with lives that go back, repeated announcements, unknown parents and missing ones."""
    rows: list[Row] = []
    for offset in range(count):
        known = rows[-1] if rows else None
        kind = random_.random()
        if rows and kind < 0.15:
            known = random_.choice(rows)  # A learner went back to an earlier checkpoint, in a life of its own.
        if rows and kind > 0.93:
            rows.append((run, offset, *random_.choice(rows)[2:]))  # An update that was announced again.
            continue
        lineage = f"l{offset}" if kind < 0.15 or known is None else known[2]
        step = 1 if known is None else known[3] + 1
        parent: tuple[str | None, int | None, str | None] = (known[2], known[3], known[4]) if known else ("l", 0, "w")
        if 0.9 < kind <= 0.93:
            parent = random_.choice([(None, None, None), (parent[0], parent[1], "other weights"), ("zzz", 7, "w9")])
        rows.append((run, offset, lineage, step, f"w{offset}", *parent))
    return rows


@pytest.mark.parametrize("seed", range(40))
def test_any_log_gives_the_rows_of_the_definition(ledger: duckdb.DuckDBPyConnection, seed: int) -> None:
    random_ = random.Random(seed)
    rows = [row for run in ("a", "b") for row in random_log(random_, run, random_.randint(1, 60))]
    random_.shuffle(rows)
    store(ledger, rows)
    expected = ledger.execute("FROM plain ORDER BY ALL").fetchall()
    assert expected and ledger.execute("FROM surviving_updates ORDER BY ALL").fetchall() == expected


def test_the_chain_takes_one_step_for_each_way_back_and_not_for_each_update(ledger: duckdb.DuckDBPyConnection) -> None:
    ledger.execute(
        "INSERT INTO updates (topic, partition, record_offset, record_time_ms, run, lineage, step, weights_sha256, "
        "parent_lineage, parent_step, parent_sha256) SELECT 'a.updates', 0, n, 0, 'a', 'l', n + 1, 'w' || (n + 1), "
        "'l', n, 'w' || n FROM (SELECT unnest(range(100_000)) AS n)"
    )
    # Row by row this many take more than a minute.
    assert ledger.execute("SELECT count(*) FROM surviving_updates").fetchall() == [(100_000,)]


def test_an_old_ledger_gets_the_view_and_keeps_its_rows() -> None:
    with duckdb.connect() as connection:
        migrate(connection, tuple(step for step in migrations() if step.number < 13))
        store(connection, random_log(random.Random(1), "a", 30))
        before = connection.execute("FROM surviving_updates ORDER BY ALL").fetchall()
        assert migrate(connection)[0] == 13
        assert before and connection.execute("FROM surviving_updates ORDER BY ALL").fetchall() == before
