"""The ledger's tables and views equal those of its migrations, and nothing shadows the names that the proof uses.

The proof asks the ledger in SQL. Somebody who may write the file can also add a view, a macro or a table of another
type, and could then choose each answer. So the structure is checked first, by names that nothing can shadow.
"""

from __future__ import annotations

import duckdb

from storage.ledger import OFFLINE
from storage.schema import migrate

Objects = dict[tuple[str, str], str]  # kind, name → definition

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


def strange_objects(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """Return the ledger's differences from its migrations (changed, missing or foreign objects), each in a few words.

    Raises duckdb.Error if its catalog cannot be read.
    """
    with duckdb.connect(":memory:", config=dict(OFFLINE)) as scratch:
        migrate(scratch)
        expected = _objects(scratch)
    found = _objects(connection)
    strange = [
        f"the {kind} {name!r} {_said(found.get((kind, name)), expected.get((kind, name)))}"
        for kind, name in sorted({*expected, *found})
        if found.get((kind, name)) != expected.get((kind, name))
    ]
    more = len(strange) - SHOWN
    return [*strange[:SHOWN], *([f"and {more} more"] if more > 0 else [])]


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
