"""The ledger's tables and views equal those of its migrations, and nothing shadows the names that the proof uses.

The proof asks the ledger in SQL. Somebody who may write the file can also add a view, a macro or a table of another
type, and could then choose each answer. So the structure is checked first, by names that nothing can shadow. Tables and
views whose names no query of ours says can shadow nothing: people keep their own beside the rows, and they are told.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable

import duckdb
import msgspec

from storage.ledger import OFFLINE
from storage.schema import migrate

Objects = dict[tuple[str, str], str]  # kind, name → definition


class Strange(msgspec.Struct, frozen=True, kw_only=True):
    """A ledger's differences from its migrations, each in a few words.

    wrong: what is missing, changed, or could answer for ours. foreign: what no query of ours can reach.
    """

    wrong: list[str]
    foreign: list[str]


# These queries use no function and no operator, because a macro could replace one.
KINDS = {
    "table": "SELECT internal, schema_name, table_name, sql FROM system.main.duckdb_tables()",
    "view": "SELECT internal, schema_name, view_name, sql FROM system.main.duckdb_views()",
    "index": "SELECT false, schema_name, index_name, sql FROM system.main.duckdb_indexes()",
    "sequence": "SELECT false, schema_name, sequence_name, sql FROM system.main.duckdb_sequences()",
    "macro": "SELECT internal, schema_name, function_name, macro_definition FROM system.main.duckdb_functions()",
    "type": "SELECT internal, schema_name, type_name, logical_type FROM system.main.duckdb_types()",
    "schema": "SELECT internal, schema_name, schema_name, '' FROM system.main.duckdb_schemas()",
}
SHOWN = 5
SEARCHED = frozenset({"main", "temp", "system", "pg_catalog", "information_schema"})
WORD = re.compile(r"\w+")
QUERY = re.compile(r"\b(SELECT|FROM|JOIN|INTO|UPDATE|DELETE|CREATE|WITH|WHERE|UNION)\b")


def strange_objects(connection: duckdb.DuckDBPyConnection) -> Strange:
    """Return the ledger's differences from its migrations: changed, missing or foreign objects.

    Raises duckdb.Error if its catalog cannot be read.
    """
    with duckdb.connect(":memory:", config=dict(OFFLINE)) as scratch:
        migrate(scratch)
        expected = _objects(scratch)
    found = _objects(connection)
    wrong: list[str] = []
    foreign: list[str] = []
    for kind, name in sorted({*expected, *found}):
        if found.get((kind, name)) == expected.get((kind, name)):
            continue
        if (kind, name) not in expected and _out_of_reach(kind, name):
            foreign.append(f"the {kind} {name!r}")
        else:
            wrong.append(f"the {kind} {name!r} {_said(found.get((kind, name)), expected.get((kind, name)))}")
    return Strange(wrong=_shortened(wrong), foreign=_shortened(foreign))


def _out_of_reach(kind: str, name: str) -> bool:
    """Return whether no query of ours can reach an object that is not ours, whatever it holds.

    Our queries name tables without a schema, so another schema is out of reach, but for those that DuckDB looks through
    by itself. An index may answer for our table, a macro for an operator, and a type for one of DuckDB's.
    """
    schema, _, inner = name.rpartition(".")
    if kind == "schema" or schema:
        return (schema or inner).lower() not in SEARCHED
    return kind in ("table", "view") and name.lower() not in _words_of_queries()


@cache
def _words_of_queries() -> frozenset[str]:
    """Return every word in a query of this package; a comment's or a docstring's words do no harm."""
    words: set[str] = set()
    pending: list[Traversable] = [resources.files("storage")]
    while pending:
        place = pending.pop()
        if place.is_dir():
            pending += place.iterdir()
        elif place.name.endswith(".sql"):
            words.update(WORD.findall(place.read_text(encoding="utf-8")))
        elif place.name.endswith(".py"):
            for node in ast.walk(ast.parse(place.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and QUERY.search(node.value):
                    words.update(WORD.findall(node.value))
    return frozenset(word.lower() for word in words)


def _shortened(said: list[str]) -> list[str]:
    more = len(said) - SHOWN
    return [*said[:SHOWN], *([f"and {more} more"] if more > 0 else [])]


def _objects(connection: duckdb.DuckDBPyConnection) -> Objects:
    found: Objects = {}
    for number, name, sha256 in connection.execute("SELECT number, name, sha256 FROM schema_migrations").fetchall():
        found["migration", str(number)] = f"{name} {sha256}"
    for kind, sql in KINDS.items():
        for internal, schema, name, made in connection.execute(sql).fetchall():
            if not internal:
                whole = name if schema == "main" or kind == "schema" else f"{schema}.{name}"
                found[kind, whole] = f"{found.get((kind, whole), '')}{made}\n"  # A macro may have several forms.
    return found


def _said(found: str | None, expected: str | None) -> str:
    if expected is None:
        return "is not one of searchloop's"
    return "is missing" if found is None else "is not as searchloop makes it"
