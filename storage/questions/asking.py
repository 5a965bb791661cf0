"""SQL of people, asked of a ledger: one SELECT that reads this file and nothing else, within a time and a size."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pyarrow as pa

from storage.errors import StorageError
from storage.ledger import OFFLINE
from storage.scratch import within_memory

READING: dict[str, str | bool | int | float | list[str]] = {
    **OFFLINE,
    "enable_external_access": False,  # No files, no network, no other databases.
    "python_enable_replacements": False,  # No variables of this process.
    "lock_configuration": True,
    "max_temp_directory_size": "2GiB",
}
"""The options of every connection on which people ask, beside the folder for what does not fit into memory."""

CHARACTERS_MAX = 10_000
ROWS_AT_ONCE = 256
EXACT_MAX = 2**53  # Beyond it a page's numbers are not exact, so such a number becomes a text.


class AskLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The limits of one answer. An answer with more rows or bytes is cut, and says so."""

    rows: int = 10_000
    mib: int = 16
    seconds: float = 20.0
    text_characters: int = 4_000


class LedgerAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The rows of an answer, as JSON has its values. cut: there were more rows, more bytes or longer texts."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    cut: bool = False

    def dicts(self) -> list[dict[str, Any]]:
        """Return each row as a dictionary."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


class Refusal(StorageError):
    """A question that is not asked, or not answered: what was expected, what came, what to do."""


def reading_options(
    *, memory_mib: int = 1024, threads: int = 1, spill: Path | None = None
) -> dict[str, str | bool | int | float | list[str]]:
    """Return the options of a connection on which people ask, within a memory and a number of threads.

    spill: where what does not fit into memory lies; None for the folder of this process.
    """
    return {
        **READING,
        **within_memory(memory_mib, spill),
        "threads": threads,
    }


def connect_reading(path: Path) -> duckdb.DuckDBPyConnection:
    """Open a ledger's file for questions. Raises duckdb.Error, also while a sink holds the file."""
    return duckdb.connect(str(path), read_only=True, config=reading_options())


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
    require_one_select(connection, sql)
    timer = threading.Timer(limits.seconds, connection.interrupt)
    timer.daemon = True
    try:
        connection.execute("BEGIN TRANSACTION READ ONLY")
        timer.start()
        try:
            # A relation gives its rows as they are found; a cursor would first hold all of them.
            result = connection.sql(sql, params=dict(parameters or {}))
            columns = tuple(result.columns)
            # Closed before the transaction ends, whatever a value does: an open answer would keep it from ending.
            with closing(result), closing(result.to_arrow_reader(ROWS_AT_ONCE)) as batches:
                rows, cut = _rows_of(batches, limits)
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
    return LedgerAnswer(columns=columns, rows=rows, cut=cut)


def require_one_select(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    """Raise Refusal if this is not exactly one SELECT."""
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


def _rows_of(batches: pa.RecordBatchReader, limits: AskLimits) -> tuple[tuple[tuple[Any, ...], ...], bool]:
    """Return the rows within the limits, and whether there were more. No more is read than is returned."""
    shorten = _Shortening(limits.text_characters)
    found: list[tuple[Any, ...]] = []
    budget = limits.mib * 2**20
    for part in _parts(batches):
        budget -= part.nbytes
        if len(found) >= limits.rows or budget < 0:
            return tuple(found[: limits.rows]), True
        columns = [_values(column) for column in part.columns]
        found += [tuple(map(shorten, row)) for row in zip(*columns, strict=True)]
    return tuple(found[: limits.rows]), shorten.cut or len(found) > limits.rows


def _values(column: pa.Array) -> list[Any]:
    """Return the values of a column; a time beyond Python's years becomes a text."""
    try:
        return column.to_pylist()  # type: ignore[no-any-return]
    except (OverflowError, ValueError, ArithmeticError):
        return [_value(each) for each in column]


def _value(each: pa.Scalar) -> Any:
    try:
        return each.as_py()
    except (OverflowError, ValueError, ArithmeticError):
        return str(each.cast(pa.string())) if pa.types.is_temporal(each.type) else "(out of range)"


def _parts(batches: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
    """Yield the batches in parts of a bounded number of rows: DuckDB's own may be larger than asked for."""
    for batch in batches:
        large = batch.nbytes > 2**20
        size = 1 if large else ROWS_AT_ONCE
        for begin in range(0, batch.num_rows, size):
            yield batch.slice(begin, size)


class _Shortening:
    """Makes values plain, and cuts long texts. cut: something was cut."""

    def __init__(self, characters: int) -> None:
        self.cut = False
        self._characters = characters

    def __call__(self, value: Any) -> Any:
        if isinstance(value, str):
            if len(value) > self._characters:
                self.cut = True
                return value[: self._characters] + "…"
            return value
        if isinstance(value, list | tuple):
            if len(value) > self._characters:
                self.cut = True
            return [self(each) for each in value[: self._characters]]
        if isinstance(value, dict):
            return {str(self(name)): self(each) for name, each in value.items()}
        if isinstance(value, bytes):
            return f"({len(value):,} bytes)"
        if isinstance(value, Decimal):
            value = int(value) if value == value.to_integral_value() else float(value)
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) > EXACT_MAX:
            return str(value)
        return value
