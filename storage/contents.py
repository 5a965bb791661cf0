"""What the ledger holds, as one hash a table: two ledgers with equal hashes say the same, row for row.

The hash does not depend on the order of rows, and a row that stands twice counts twice. Tables that only say how the
ledger came about are left out: which migrations ran when, and which records have moved from it into the archive.
"""

from __future__ import annotations

import duckdb

LEFT_OUT = frozenset({"schema_migrations", "archive_segments", "records"})


def table_hashes(connection: duckdb.DuckDBPyConnection) -> dict[str, str]:
    """Return a hash of 24 hex digits for each table, after its number of rows: "120 rows, 5f2e…"."""
    names = connection.execute(
        "SELECT table_name FROM duckdb_tables() WHERE database_name = current_database() AND NOT temporary ORDER BY 1"
    ).fetchall()
    return {name: _hash(connection, name) for (name,) in names if name not in LEFT_OUT}


def _hash(connection: duckdb.DuckDBPyConnection, name: str) -> str:
    # Rows as text: floats in their shortest exact form, text quoted, so that no two different rows look the same. Sums,
    # and not exclusive or, so that two equal rows do not cancel each other.
    count, low, high = connection.execute(
        f"SELECT count(*), coalesce(sum(md5_number_lower(t::VARCHAR)::HUGEINT), 0), "
        f'coalesce(sum((md5_number_upper(t::VARCHAR) >> 16)::HUGEINT), 0) FROM "{name}" t'
    ).fetchall()[0]
    return f"{count} rows, {(high & (2**48 - 1)):012x}{(low & (2**48 - 1)):012x}"
