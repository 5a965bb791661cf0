"""The ledger's tables and views, made by numbered migrations.

A migration is a file `storage/migrations/NNNN_name.sql`. Migrations are applied in the order of their numbers, each
once
and in one transaction. An applied file is never edited: its hash is kept, and a difference is an error. To change the
schema, add a file.
"""

from __future__ import annotations

import hashlib
import time
from importlib import resources

import duckdb
import msgspec

from storage.errors import StorageError


class Migration(msgspec.Struct, frozen=True, kw_only=True):
    """One numbered step of the schema."""

    number: int
    name: str
    sql: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


def migrations() -> tuple[Migration, ...]:
    """Return every migration of this version of searchloop, in the order of its number."""
    files = [file for file in resources.files("storage").joinpath("migrations").iterdir() if file.name.endswith(".sql")]
    found = []
    for file in sorted(files, key=lambda item: item.name):
        number, _, name = file.name.removesuffix(".sql").partition("_")
        found.append(Migration(number=int(number), name=name, sql=file.read_text(encoding="utf-8")))
    return tuple(found)


def pending(connection: duckdb.DuckDBPyConnection) -> bool:
    """Return whether the database lacks a migration of this version of searchloop."""
    (newest,) = connection.execute("SELECT coalesce(max(number), 0) FROM schema_migrations").fetchall()[0]
    return int(newest) < max(step.number for step in migrations())


def migrate(connection: duckdb.DuckDBPyConnection, steps: tuple[Migration, ...] | None = None) -> list[int]:
    """Bring the database up to date, and return the numbers of the migrations that were applied in this call.

    Raises StorageError if the database is newer than this program, or if an applied migration was edited afterwards.
    """
    steps = migrations() if steps is None else steps
    connection.execute(
        "CREATE TABLE IF NOT EXISTS schema_migrations "
        "(number INTEGER NOT NULL, name VARCHAR NOT NULL, sha256 VARCHAR NOT NULL, applied_at_ms BIGINT NOT NULL)"
    )
    applied = dict(connection.execute("SELECT number, sha256 FROM schema_migrations").fetchall())
    known = {step.number: step for step in steps}
    if newer := sorted(set(applied) - set(known)):
        raise StorageError(
            f"the database has migration {newer[-1]}, but this searchloop knows none above {max(known, default=0)}; "
            "upgrade searchloop, or rebuild the database from its archive"
        )
    for number, sha256 in applied.items():
        if known[number].sha256 != sha256:
            raise StorageError(
                f"migration {number} ({known[number].name}) differs from the one that was applied to this database; "
                "rebuild the database from its archive"
            )
    now = []
    for step in steps:
        if step.number in applied:
            continue
        connection.execute("BEGIN")
        try:
            connection.execute(step.sql)
            connection.execute(
                "INSERT INTO schema_migrations VALUES (?, ?, ?, ?)",
                [step.number, step.name, step.sha256, time.time_ns() // 1_000_000],
            )
            connection.execute("COMMIT")
        except duckdb.Error:
            connection.execute("ROLLBACK")
            raise
        now.append(step.number)
    return now
