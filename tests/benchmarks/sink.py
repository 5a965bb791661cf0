"""How fast the sink stores records, against DuckDB taking the very same rows from Arrow tables that are ready made.

Both write the same rows in transactions of the same size to a new file on the same disk; the sink also decodes the
JSON, builds the Arrow tables, and stores the offsets with the rows. They alternate, and the medians are compared.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from storage.ledger import build_batch, open_ledger
from storage.rows import Tables
from storage.sink import Sink, SinkSettings
from streams.delivery import Received
from tests.stored_events import record, reward


def time_raw(tables: list[Tables], path: Path, settings: SinkSettings) -> float:
    """Insert ready-made tables, one transaction each; return seconds."""
    connection = open_ledger(path, memory_mib=settings.memory_mib, threads=settings.threads)
    start = time.perf_counter()
    for batch in tables:
        connection.execute("BEGIN")
        for name, rows in batch.items():
            connection.register("arriving", rows)
            connection.execute(f'INSERT INTO "{name}" BY NAME SELECT * FROM arriving')
            connection.unregister("arriving")
        connection.execute("COMMIT")
    seconds = time.perf_counter() - start
    connection.close()
    return seconds


def time_sink(records: list[Received], path: Path, settings: SinkSettings) -> float:
    """Store records that arrive as bytes; return seconds until all are durable."""
    sink = Sink(path, settings)
    size = settings.batch_records_max
    start = time.perf_counter()
    for first in range(0, len(records), size):
        sink.submit(records[first : first + size])
    sink.flush()
    seconds = time.perf_counter() - start
    sink.close()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=4096, help="reward records, each a group of 8 with 10 hits")
    parser.add_argument("--batch", type=int, default=SinkSettings().batch_records_max, help="records per transaction")
    parser.add_argument("--repeats", type=int, default=7, help="alternating runs of each")
    arguments = parser.parse_args()

    settings = SinkSettings(batch_records_max=arguments.batch)
    records = [record(reward(number), number) for number in range(arguments.records)]
    batches = [
        build_batch(records[first : first + arguments.batch]).tables
        for first in range(0, arguments.records, arguments.batch)
    ]
    rows = sum(table.num_rows for batch in batches for table in batch.values())
    folder = Path(tempfile.mkdtemp(prefix="sink-bench-"))
    raw, sink = [], []
    try:
        for repeat in range(arguments.repeats + 1):
            seconds_raw = time_raw(batches, folder / "raw.duckdb", settings)
            seconds_sink = time_sink(records, folder / "sink" / "ledger.duckdb", settings)
            if repeat:  # The first of each warms the disk and the imports.
                raw.append(seconds_raw)
                sink.append(seconds_sink)
            shutil.rmtree(folder)
            folder.mkdir()
    finally:
        shutil.rmtree(folder)
    result = {
        "benchmark": "sink",
        "records": arguments.records,
        "rows": rows,
        "record_bytes": sum(len(r.value or b"") for r in records) // len(records),
        "records_per_transaction": arguments.batch,
        "repeats": arguments.repeats,
        "sink_rows_per_second": round(rows / statistics.median(sink)),
        "raw_rows_per_second": round(rows / statistics.median(raw)),
        "ratio": round(statistics.median(raw) / statistics.median(sink), 3),
        "goal": 0.8,
    }
    print(f"{'':8}{'rows/s':>10}{'seconds (min, median, max)':>30}")
    for name, seconds in (("sink", sink), ("raw", raw)):
        spread = f"{min(seconds):.2f} {statistics.median(seconds):.2f} {max(seconds):.2f}"
        print(f"{name:8}{round(rows / statistics.median(seconds)):>10,}{spread:>30}")
    print(f"ratio   {result['ratio']:>10} (goal .8)")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
