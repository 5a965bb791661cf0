"""How fast the sink stores records, against DuckDB taking the very same rows from Arrow tables that are ready made.

Raw: `BEGIN`, one `INSERT … SELECT` from a ready-made Arrow table for each of the three tables, `COMMIT`; nothing else.
Its transactions hold `batch_records_max` records, as the sink's do where many wait, and it has the sink's DuckDB
settings and statement. The sink gets bytes, as many at a time as its worker gathers: it decodes the JSON, builds the
Arrow tables, and stores the offsets with the rows. Both write to a new file on the same disk; they alternate, and the
medians are compared. The first transaction of each, which also starts the sink's builder, is not timed.

The sink decodes in another process and stores in a thread, so it needs two free cores to show its rate.
`processor_ratio` says what they would give on a busy machine too: processor seconds of raw by those of the sink's
busier thread. --no-builder decodes in the sink's own process.

Run: python tests/benchmarks/sink.py [--records 4096] [--repeats 7]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from storage.ledger import build_batch, insert_rows, open_ledger
from storage.rows import Tables
from storage.sink import Sink, SinkSettings
from streams.records import Received
from tests.stored_events import record, reward

GOAL = 0.8


class Times(NamedTuple):
    """Seconds that one run took: on the clock, and of the processor in the main thread and in the others."""

    wall: float
    main: float
    others: float

    @property
    def busiest(self) -> float:
        """Processor seconds of the busier side: what the run would take on the clock with a core for each."""
        return max(self.main, self.others)


def timed(act: Callable[[], None]) -> Times:
    """Run it once."""
    wall, main, process = time.perf_counter(), time.thread_time(), time.process_time()
    act()
    main_used = time.thread_time() - main
    return Times(time.perf_counter() - wall, main_used, time.process_time() - process - main_used)


def time_raw(tables: list[Tables], path: Path, settings: SinkSettings) -> Times:
    """Insert ready-made tables, one transaction each."""
    connection = open_ledger(path, memory_mib=settings.memory_mib, threads=settings.threads)

    def insert(batches: list[Tables]) -> None:
        for batch in batches:
            connection.execute("BEGIN")
            for name, rows in batch.items():
                insert_rows(connection, name, rows)
            connection.execute("COMMIT")

    insert(tables[:1])
    times = timed(lambda: insert(tables[1:]))
    connection.close()
    return times


def time_sink(records: list[Received], path: Path, settings: SinkSettings) -> Times:
    """Store records that arrive as bytes, until all are durable."""
    sink = Sink(path, settings)
    sink.write(records[: settings.batch_records_max])  # This also starts the process that builds rows.

    def store() -> None:
        for first in range(settings.batch_records_max, len(records), settings.batch_records_max):
            sink.submit(records[first : first + settings.batch_records_max])
        sink.flush()

    times = timed(store)
    sink.close()
    return times


def main() -> None:
    """Time both sides in turn, and print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--records", type=int, default=4096, help="reward records, each a group of 8 with 10 hits")
    parser.add_argument("--batch", type=int, default=SinkSettings().batch_records_max, help="records per transaction")
    parser.add_argument("--repeats", type=int, default=7, help="alternating runs of each")
    parser.add_argument("--no-builder", action="store_true", help="decode in the sink's own process")
    arguments = parser.parse_args()

    settings = SinkSettings(batch_records_max=arguments.batch, builder=not arguments.no_builder)
    records = [record(reward(number), number) for number in range(arguments.records)]
    batches = [
        build_batch(records[first : first + arguments.batch]).tables
        for first in range(0, arguments.records, arguments.batch)
    ]
    rows = sum(table.num_rows for batch in batches[1:] for table in batch.values())
    folder = Path(tempfile.mkdtemp(prefix="sink-bench-"))
    runs: list[tuple[Times, Times]] = []
    try:
        for repeat in range(arguments.repeats + 1):
            raw = time_raw(batches, folder / "raw.duckdb", settings)
            sink = time_sink(records, folder / "sink" / "ledger.duckdb", settings)
            if repeat:  # The first of each warms the disk and the imports.
                runs.append((raw, sink))
            shutil.rmtree(folder)
            folder.mkdir()
    finally:
        shutil.rmtree(folder)
    report(arguments, runs, rows=rows, record_bytes=sum(len(r.value or b"") for r in records) // len(records))


def report(arguments: argparse.Namespace, runs: list[tuple[Times, Times]], *, rows: int, record_bytes: int) -> None:
    """Print the medians and one JSON line."""
    raw, sink = ([run[side].wall for run in runs] for side in (0, 1))
    busiest = [(raw.busiest, sink.busiest) for raw, sink in runs]
    result = {
        "benchmark": "sink",
        "records": arguments.records,
        "rows": rows,
        "record_bytes": record_bytes,
        "records_per_transaction": arguments.batch,
        "builder": not arguments.no_builder,
        "repeats": arguments.repeats,
        "sink_rows_per_second": round(rows / statistics.median(sink)),
        "raw_rows_per_second": round(rows / statistics.median(raw)),
        "ratio": round(statistics.median(raw / sink for raw, sink in zip(raw, sink, strict=True)), 3),
        "processor_ratio": round(statistics.median(raw / sink for raw, sink in busiest), 3),
        "goal": GOAL,
        "values": {"sink": [one / other for one, other in zip(raw, sink, strict=True)]},
        "floors": {"sink": 1.0},
        "sides": {"sink": {"sink": statistics.median(sink), "raw": statistics.median(raw)}},
        "load_average": round(os.getloadavg()[0], 1),
    }
    print(f"{'':8}{'rows/s':>10}{'seconds (min, median, max)':>30}")
    for name, seconds in (("sink", sink), ("raw", raw)):
        spread = f"{min(seconds):.2f} {statistics.median(seconds):.2f} {max(seconds):.2f}"
        print(f"{name:8}{round(rows / statistics.median(seconds)):>10,}{spread:>30}")
    print(f"ratio   {result['ratio']:>10}   by the processor {result['processor_ratio']} (goal ≥ {GOAL})")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
