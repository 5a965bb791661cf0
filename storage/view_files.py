"""The ledger's views as Parquet files: one file a view, read in parts, so any run fits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from storage.errors import StorageError
from storage.log import Log

ROWS_AT_ONCE = 10_000


def view_names(log: Log) -> list[str]:
    """Return the names of the ledger's views, sorted."""
    rows = log.rows("SELECT DISTINCT view_name FROM duckdb_views() WHERE NOT internal AND schema_name = 'main'")
    return sorted(row["view_name"] for row in rows)


def write_views(log: Log, folder: Path) -> Iterator[tuple[str, int]]:
    """Write each view to `folder/VIEW.parquet`; yield its name and its number of rows when it is written.

    Raises StorageError if a view cannot be read, OSError if a file cannot be written.
    """
    for name in view_names(log):
        yield name, _write(log, name, folder / f"{name}.parquet")


def _write(log: Log, view: str, path: Path) -> int:
    try:
        reader: pa.RecordBatchReader = log.connection.sql(f'SELECT * FROM "{view}"').to_arrow_reader(ROWS_AT_ONCE)
        rows = 0
        with pq.ParquetWriter(path, reader.schema, compression="zstd") as writer:
            for batch in reader:
                writer.write_batch(batch)
                rows += batch.num_rows
    except (duckdb.Error, pa.ArrowException) as error:
        raise StorageError(f"view {view!r} cannot be exported: {' '.join(str(error).split())}") from error
    return rows
