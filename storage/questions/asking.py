"""SQL of people, asked of a ledger: one SELECT that reads this file and nothing else, within a time and a size."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import msgspec

from storage.errors import StorageError
from storage.ledger import OFFLINE

READING = {
    **OFFLINE,
    "enable_external_access": False,  # No files, no network, no other databases.
    "python_enable_replacements": False,  # No variables of this process.
    "lock_configuration": True,
}
"""The options of every connection on which people ask."""

CHARACTERS_MAX = 10_000


class AskLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The limits of one answer. An answer with more rows is cut, and says so."""

    rows: int = 10_000
    seconds: float = 20.0
    text_characters: int = 4_000


class LedgerAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The rows of an answer. cut: there were more rows than the limit, or a longer text."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    cut: bool = False

    def dicts(self) -> list[dict[str, Any]]:
        """Return each row as a dictionary."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


class Refusal(StorageError):
    """A question that is not asked, or not answered: what was expected, what came, what to do."""


def connect_reading(path: Path, *, memory_mib: int = 1024, threads: int = 1) -> duckdb.DuckDBPyConnection:
    """Open a ledger's file for questions. Raises duckdb.Error, also while a sink holds the file."""
    return duckdb.connect(
        str(path), read_only=True, config={**READING, "memory_limit": f"{memory_mib}MiB", "threads": threads}
    )


def ask(
    connection: duckdb.DuckDBPyConnection,
    sql: str,
    parameters: Mapping[str, object] | None = None,
    *,
    limits: AskLimits | None = None,
) -> LedgerAnswer:
    """Ask one SELECT in a transaction that cannot write, and return the answer.

    connection: a cursor that nobody else uses, opened with `READING`.
    Raises Refusal for anything but one SELECT, for a question that is too long, wrong or too slow.
    """
    limits = limits or AskLimits()
    statement = one_select(connection, sql)
    timer = threading.Timer(limits.seconds, connection.interrupt)
    timer.daemon = True
    try:
        connection.execute("BEGIN TRANSACTION READ ONLY")
        timer.start()
        try:
            result = connection.execute(statement, dict(parameters or {}))
            columns = tuple(column[0] for column in result.description or ())
            rows = result.fetchmany(limits.rows + 1)
        finally:
            timer.cancel()
            connection.execute("ROLLBACK")
    except duckdb.InterruptException as error:
        raise Refusal(
            f"expected an answer within {limits.seconds:g} s, and stopped there. Ask for less: a version, a query, "
            "or an aggregate"
        ) from error
    except (duckdb.Error, RuntimeError) as error:
        raise Refusal(" ".join(str(error).split())[: CHARACTERS_MAX // 10]) from error
    kept, shortened = _shortened(rows[: limits.rows], limits.text_characters)
    return LedgerAnswer(columns=columns, rows=kept, cut=shortened or len(rows) > limits.rows)


def one_select(connection: duckdb.DuckDBPyConnection, sql: str) -> Any:
    """Return the statement. Raises Refusal if this is not exactly one SELECT."""
    if len(sql) > CHARACTERS_MAX:
        raise Refusal(f"expected at most {CHARACTERS_MAX:,} characters of SQL, got {len(sql):,}")
    if "\0" in sql or (not sql.isascii() and any("\ud800" <= each <= "\udfff" for each in sql)):
        raise Refusal("expected SQL, got a text with NUL or with half of a character")
    try:
        statements = connection.extract_statements(sql)
    except duckdb.Error as error:
        raise Refusal(" ".join(str(error).split())[:CHARACTERS_MAX]) from error
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        kinds = ", ".join(each.type.name for each in statements) or "nothing"
        raise Refusal(f"expected one SELECT, got {kinds}. The ledger is read-only here")
    return statements[0]


def _shortened(rows: Sequence[tuple[Any, ...]], characters: int) -> tuple[tuple[tuple[Any, ...], ...], bool]:
    cut = False

    def short(value: Any) -> Any:
        nonlocal cut
        if isinstance(value, str) and len(value) > characters:
            cut = True
            return value[:characters] + "…"
        if isinstance(value, bytes | bytearray | memoryview):
            return f"({len(value):,} bytes)"
        return value

    return tuple(tuple(short(value) for value in row) for row in rows), cut
