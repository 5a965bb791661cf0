"""Memory and time beside an index of a million documents that searchloop did not make.

    python tests/benchmarks/attached.py --documents 1000000

The index has its own mapping and three shards, and is written by the engine's bulk API. Then come the commands that a
user gives: `attach`, and `train` with LESER's recipe on the queries that `attach` made of its sample. Peak memory is
the kernel's high-water mark (VmHWM) of each process over its whole life. The first expansion is the first record of
the run's topic of expansions; its time counts from the start of `attach`, and both commands' imports are in it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
from elasticsearch import Elasticsearch
from elasticsearch.helpers import parallel_bulk

sys.path.insert(0, str(Path(__file__).parents[2]))
from infra.app.home import Home
from infra.runs.living import living_workers
from search_env.engine.client import ElasticsearchSettings, connect
from services.local import Endpoints, LocalServices
from services.settings import LocalSettings
from tests.commands import ROOT, command, environment

INDEX = "their-products"
RUN = "beside"
MEMORY_GOAL_MIB = 1024
NOUNS = 4_000
MAPPING = {
    "properties": {
        "sku": {"type": "keyword"},
        "name": {"type": "text", "analyzer": "english"},
        "copy": {"type": "text"},
        "specs": {"properties": {key: {"type": "keyword"} for key in ("colour", "material", "size", "maker")}},
        "price": {"type": "float"},
    }
}


def documents(count: int) -> Iterator[dict[str, Any]]:
    """Yield products: nouns by Zipf's law, four attributes, and a text that names two of them."""
    random = np.random.default_rng(0)
    nouns = 1 / np.arange(1, NOUNS + 1)
    for start in range(0, count, 10_000):
        drawn = random.choice(NOUNS, size=(10_000, 3), p=nouns / nouns.sum())
        values = random.integers(0, (24, 40, 60, 900), size=(10_000, 4))
        for row in range(min(10_000, count - start)):
            first, second, third = (f"noun{number}" for number in drawn[row])
            colour, material, size, maker = (int(each) for each in values[row])
            yield {
                "_id": f"p{start + row}",
                "_source": {
                    "sku": f"p{start + row}",
                    "name": f"{first} {second} {third}",
                    "copy": f"A {first} of material{material} by maker{maker}, for every {second}.",
                    "specs": {
                        "colour": f"colour{colour}",
                        "material": f"material{material}",
                        "size": f"size{size}",
                        "maker": f"maker{maker}",
                    },
                    "price": float(colour + material),
                },
            }


def fill(client: Elasticsearch, count: int) -> None:
    """Make the index as somebody else would."""
    client.indices.create(
        index=INDEX,
        settings={"number_of_shards": 3, "number_of_replicas": 0, "refresh_interval": "-1"},
        mappings=MAPPING,
    )
    for done, (good, answer) in enumerate(
        parallel_bulk(client, documents(count), index=INDEX, thread_count=2, chunk_size=2_000), start=1
    ):
        assert good, answer
        if done % 100_000 == 0:
            print(f"{done:,} documents written", file=sys.stderr)
    client.indices.refresh(index=INDEX)


class Watched:
    """A command, and the peak memory of it and of the workers that it starts, in MiB by role."""

    def __init__(self, home: Path, endpoints: Endpoints, *arguments: str) -> None:
        self.peaks: dict[str, int] = {}
        began = time.time()
        process = subprocess.Popen(command(home, *arguments), cwd=ROOT, env=environment(endpoints))
        while process.poll() is None:
            self._look(home, process.pid, arguments[0])
            time.sleep(0.2)
        self.seconds = time.time() - began
        if process.returncode:
            raise SystemExit(f"attached: {arguments[0]} ended with status {process.returncode}")

    def _look(self, home: Path, pid: int, verb: str) -> None:
        found = {verb: pid} | {role: each for _, role, each in living_workers(Home(home).runs)}
        for role, each in found.items():
            with contextlib.suppress(OSError, StopIteration):
                lines = Path(f"/proc/{each}/status").read_text().splitlines()
                peak = int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) // 1024
                self.peaks[role] = max(self.peaks.get(role, 0), peak)


def main() -> None:
    """Fill the index, give the commands, and print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--updates", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="searchloop-attached-") as folder:
        home = Path(folder)
        home.chmod(0o755)
        services = LocalServices(home, LocalSettings(quick_start=True), attached=True)
        endpoints = services.up()
        try:
            with contextlib.closing(connect(ElasticsearchSettings(url=endpoints.elasticsearch))) as client:
                began = time.time()
                fill(client, options.documents)
                filled = time.time() - began
            began = time.time()
            fields = ["--id", "sku", "--title", "name", "--text", "copy", "--attributes", "specs"]
            attach = Watched(home, endpoints, "attach", INDEX, "--name", "shop", *fields)
            train = Watched(
                home,
                endpoints,
                *("train", "--recipe", "leser", "--index", "shop", "--run", RUN, "--updates", str(options.updates)),
            )
            with duckdb.connect(str(Home(home).run(RUN) / "searchloop.duckdb"), read_only=True) as ledger:
                (first,) = ledger.execute("SELECT min(record_time_ms) FROM generations").fetchone() or (None,)
        finally:
            services.remove()
    peaks = {"attach": attach.peaks["attach"]} | train.peaks
    print(f"{options.documents:,} documents, three shards; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print("| part | seconds | peak MiB |\n|---|---|---|")
    print(f"| attach | {attach.seconds:.0f} | {peaks['attach']:,} |")
    print(f"| train, {options.updates} updates | {train.seconds:.0f} | {peaks['train']:,} |")
    for role, peak in peaks.items():
        if role not in ("attach", "train"):
            print(f"| its {role} | | {peak:,} |")
    print(f"| attach to the first expansion | {first / 1000 - began:.0f} | |")
    print(f"environment: {peaks['environment']:,} MiB (goal ≤ {MEMORY_GOAL_MIB:,})")
    print(
        json.dumps(
            {
                "benchmark": "attached",
                "documents": options.documents,
                "filled_s": round(filled, 1),
                "attach_s": round(attach.seconds, 1),
                "first_expansion_s": round(first / 1000 - began, 1),
                "peak_mib": peaks,
            }
        )
    )


if __name__ == "__main__":
    main()
