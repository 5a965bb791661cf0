"""Queries to the ledger whose results are findings, in memory that does not grow with the log."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import duckdb

from storage.errors import StorageError
from storage.log import Log
from storage.verification.account import Finding, Severity, one_line, place

SHOWN = 50  # The limit of findings for one rule in one place; a last finding gives the number of further ones.
MEMORY_MIB = 512
THREADS = 1  # A second thread costs more than it gains for small logs, and needs its own memory for large ones.
ROWS_AT_ONCE = 1024


@contextmanager
def bounded(log: Log) -> Iterator[None]:
    """Limit DuckDB's memory and put the rest into a temporary folder, which is removed at the end.

    By default DuckDB would take most of the machine's memory, and spill beside the user's ledger.
    """
    with tempfile.TemporaryDirectory(prefix="searchloop-verify-", ignore_cleanup_errors=True) as folder:
        log.connection.execute(f"SET memory_limit = '{MEMORY_MIB}MiB'")
        log.connection.execute(f"SET threads = {THREADS}")
        log.connection.execute(f"SET temp_directory = '{folder}'")
        yield


def each(log: Log, sql: str, parameters: tuple[object, ...] = ()) -> Iterator[dict[str, Any]]:
    """Yield the rows of a query as dictionaries, a few at a time; run no other query on the log meanwhile.

    Raises StorageError if DuckDB refuses the query or cannot read the file.
    """
    try:
        result = log.connection.execute(sql, list(parameters))
        names = [column[0] for column in result.description or ()]
        while some := result.fetchmany(ROWS_AT_ONCE):
            for row in some:
                yield dict(zip(names, row, strict=True))
    except duckdb.Error as error:
        raise StorageError(f"ledger: {one_line(error)}") from error


def ask(
    log: Log,
    rule: str,
    what: str,
    sql: str,
    parameters: tuple[object, ...] = (),
    *,
    severity: Severity = "broken",
) -> list[Finding]:
    """Return a finding for each row of a query with topic, partition, record_offset; `what` formats the row."""
    findings: list[Finding] = []
    more = 0
    for row in each(log, sql, parameters):
        if len(findings) < SHOWN:
            where = place(row["topic"], row["partition"], row["record_offset"])
            findings.append(Finding(rule=rule, where=where, what=what.format(**row), severity=severity))
        else:
            more += 1
    return shortened(rule, findings, more, severity=severity)


def shortened(rule: str, findings: list[Finding], more: int, *, severity: Severity = "broken") -> list[Finding]:
    """Return the findings, and one more that gives the number of further ones."""
    if not more:
        return findings
    last = Finding(rule=rule, where="…", what=f"and {more:,} more like these", severity=severity)
    return [*findings, last]
