"""The ledger's content as one hash per table: two ledgers with equal hashes are equal, row for row.

The hash does not depend on the order of rows, and a row that occurs twice counts twice. Tables about the ledger's own
history are left out: the applied migrations and their times, and the records that moved into the archive.
"""

from __future__ import annotations

from collections.abc import Iterator

import duckdb

BUCKET_RECORDS = 512  # Neighboring offsets whose rows are hashed together, so that a difference has a place.

# A ledger of an older searchloop lacks these columns in its old rows, although its bytes are the same. So the columns
# are compared separately.
LATER_COLUMNS = {"updates": "record_sha256", "policy_versions": "epoch, holder"}
LEFT_OUT = frozenset({"schema_migrations", "archive_segments", "records"})


def table_hashes(connection: duckdb.DuckDBPyConnection) -> dict[str, str]:
    """Return a number of rows and a hash of 24 hex digits for each table: "120 rows, 5f2e…"."""
    names = connection.execute(
        "SELECT table_name FROM duckdb_tables() WHERE database_name = current_database() AND NOT temporary ORDER BY 1"
    ).fetchall()
    return {name: _hash(connection, name) for (name,) in names if name not in LEFT_OUT}


def bucket_hashes(
    connection: duckdb.DuckDBPyConnection, name: str, *, only: str = "true"
) -> Iterator[tuple[tuple[str, int, int], tuple[int, int, int]]]:
    """Yield, for each (topic, partition, bucket of offsets) of a table, its number of rows and two sums of hashes.

    only: an SQL condition on the rows, which are named `t` there. The sums of parts add up to those of the whole.
    """
    columns = f"* EXCLUDE ({LATER_COLUMNS[name]})" if name in LATER_COLUMNS else "*"
    rows = connection.execute(
        f"SELECT topic, partition, record_offset // {BUCKET_RECORDS}, count(*), {LOW}, {HIGH} "
        f'FROM (SELECT {columns} FROM "{name}") t WHERE {only} GROUP BY ALL'
    )
    while some := rows.fetchmany(1024):
        for topic, partition, bucket, count, low, high in some:
            yield (topic, partition, bucket), (count, low, high)


def digest_text(count: int, low: int, high: int) -> str:
    """Return a number of rows and the sums of their hashes as text for a person."""
    return f"{count} rows, {(high & (2**48 - 1)):012x}{(low & (2**48 - 1)):012x}"


# Rows as text: floats in their shortest exact form, text quoted, so that different rows never look the same. Sums
# instead of exclusive or, so that two equal rows do not cancel each other.
LOW = "coalesce(sum(md5_number_lower(t::VARCHAR)::HUGEINT), 0)"
HIGH = "coalesce(sum((md5_number_upper(t::VARCHAR) >> 16)::HUGEINT), 0)"


def _hash(connection: duckdb.DuckDBPyConnection, name: str) -> str:
    count, low, high = connection.execute(f'SELECT count(*), {LOW}, {HIGH} FROM "{name}" t').fetchall()[0]
    return digest_text(count, low, high)
