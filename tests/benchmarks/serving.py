"""Cached answers at a fixed rate: service times and failed requests, while answers are swapped.

    python tests/benchmarks/serving.py --rate 500 --seconds 60

An open loop: a request is sent at its time, whether or not the earlier ones have been answered. The server runs in one
process; this one only sends. `/search` includes Elasticsearch's time, which `server-timing` tells.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import aiohttp

sys.path.insert(0, str(Path(__file__).parents[2]))
from infra.app.home import Home
from infra.services.local import LocalServices
from infra.services.settings import LocalSettings
from search_env.catalogue.corpora import Document
from search_env.engine.client import ElasticsearchSettings, connect
from search_env.engine.index import build_index
from search_env.leser.expansion_cache import Expanded, ExpansionCache
from tests.commands import ROOT, command, environment

VERSION = "1-abcdef-000004"
QUERIES = 1_000


class Measured:
    """Times of requests in seconds, the search's part of them, and the answers' statuses."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.searched: list[float] = []
        self.statuses: Counter[str] = Counter()

    def percentile(self, values: list[float], share: float) -> float:
        """Return a percentile in milliseconds."""
        return 1000 * sorted(values)[min(int(share * len(values)), len(values) - 1)] if values else 0.0


async def ask(session: aiohttp.ClientSession, url: str, measured: Measured) -> None:
    began = time.perf_counter()
    try:
        async with session.get(url) as answer:
            await answer.read()
            took = time.perf_counter() - began
            measured.statuses[str(answer.status)] += 1
            searched = float(answer.headers.get("server-timing", "search;dur=0").rpartition("=")[2]) / 1000
            measured.seconds.append(took)
            measured.searched.append(took - searched)
    except (aiohttp.ClientError, TimeoutError) as error:
        measured.statuses[type(error).__name__] += 1


async def load(
    base: str, path: str, *, rate: int, seconds: int, swap: contextlib.AbstractContextManager[None]
) -> Measured:
    measured = Measured()
    tasks: set[asyncio.Task[None]] = set()
    timeout = aiohttp.ClientTimeout(total=10)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=200), timeout=timeout) as session:
        began = time.perf_counter()
        with swap:
            for number in range(rate * seconds):
                await asyncio.sleep(max(began + number / rate - time.perf_counter(), 0))
                task = asyncio.create_task(ask(session, f"{base}{path}?query=query+{number % QUERIES}", measured))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            while tasks:
                await asyncio.sleep(0.05)
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=int, default=500, help="requests a second (default 500)")
    parser.add_argument("--search-rate", type=int, default=100, help="searches a second (default 100)")
    parser.add_argument("--seconds", type=int, default=60, help="length of each part (default 60)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="searchloop-serving-") as folder:
        home = Path(folder)
        home.chmod(0o755)
        services = LocalServices(home, LocalSettings(quick_start=True), attached=True)
        endpoints = services.up()
        try:
            documents = [Document(id=f"p{n}", title=f"query {n} word{n % 7}", text="") for n in range(5_000)]
            with contextlib.closing(connect(ElasticsearchSettings(url=endpoints.elasticsearch))) as client:
                version = build_index(client, "bench", documents, installation="b", directory=Home(home).index("bench"))
            cache = ExpansionCache(Home(home).run("live"), policy=VERSION, index_version=version.name)
            answers = [
                Expanded(
                    query_id=str(n),
                    query=f"query {n}",
                    expansions=("word1", "word2"),
                    valid=True,
                    text="",
                    policy=VERSION,
                )
                for n in range(QUERIES)
            ]
            cache.keep(answers)
            process = subprocess.Popen(
                command(home, "serve", "--index", "bench", "--policy", "none", "--port", "0"),
                cwd=ROOT,
                env=environment(endpoints) | {"SEARCHLOOP_SERVE__RELOAD_SECONDS": "1"},
                stdout=subprocess.PIPE,
                text=True,
            )
            assert process.stdout is not None
            base = process.stdout.readline().split()[0]
            try:
                measure(base, cache, answers, options)
            finally:
                process.terminate()
                process.wait()
        finally:
            services.remove()


def measure(base: str, cache: ExpansionCache, answers: list[Expanded], options: argparse.Namespace) -> None:
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print("| part | rate | requests | p50 ms | p99 ms | p99 without the search | not 200 |")
    print("|---|---|---|---|---|---|---|")

    @contextlib.contextmanager
    def swapped() -> object:  # type: ignore[misc]
        """Put new answers in place every two seconds, from another process."""
        code = (
            "import sys, time, os\nwhile True:\n time.sleep(2)\n"
            "path = sys.argv[1]\n content = open(path, 'rb').read()\n"
            "open(path + '.new', 'wb').write(content)\n os.replace(path + '.new', path)\n"
        ).replace("path = sys", " path = sys")
        swapping = subprocess.Popen([sys.executable, "-c", code, str(cache._path)])
        try:
            yield
        finally:
            swapping.kill()
            swapping.wait()

    for name, path, rate, swap in (
        ("words, ready answers", "/expand", options.rate, contextlib.nullcontext()),
        ("the same, answers swapped every 2 s", "/expand", options.rate, swapped()),
        ("search, ready answers", "/search", options.search_rate, contextlib.nullcontext()),
    ):
        found = asyncio.run(load(base, path, rate=rate, seconds=options.seconds, swap=swap))
        failed = sum(count for status, count in found.statuses.items() if status != "200")
        row = [name, f"{rate}/s", f"{len(found.seconds):,}"]
        row += [f"{found.percentile(found.seconds, share):.1f}" for share in (0.5, 0.99)]
        row += [f"{found.percentile(found.searched, 0.99):.1f}", str(failed)]
        print("| " + " | ".join(row) + " |", flush=True)
        print(
            json.dumps({"part": name, "rate": rate, "seconds": options.seconds, "statuses": found.statuses}),
            file=sys.stderr,
        )


if __name__ == "__main__":
    main()
