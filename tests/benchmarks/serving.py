"""Answers of `searchloop serve` under load: times, failed requests and lost events, while everything beside it changes.

    python tests/benchmarks/serving.py --rate 500 --seconds 60

One process serves; this one sends, in an open loop (tests/open_loop.py). The first parts ask for queries with a ready
answer: words alone, the same while the answers are replaced every two seconds, and searches. Then the server's policy
helps with queries that have no ready answer, alone and while its run learns: new versions appear, and the learner and
the sink are killed with SIGKILL. At last events are sent while the broker is killed and comes again. An event is lost
if the server has accepted it and the topic does not hold it in the end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
from kafka import TopicPartition

from infra.app.app import App
from infra.app.home import Home
from infra.app.indexing import index_corpus
from infra.app.progress import progress
from infra.recipes.files import recipe_path
from infra.runs.living import living_workers
from search_env.catalogue.generated import demo_catalogue
from search_env.engine.index import load_manifest
from search_env.leser.expansion_cache import Expanded, ExpansionCache
from services.local import Endpoints, LocalServices
from services.settings import LocalSettings
from streams.clients import partitions_of
from streams.codec import decode
from streams.kafka_settings import KafkaSettings
from streams.ranges import log_bounds, read_range
from streams.topics import topic_name
from tests.commands import ROOT, command, environment
from tests.open_loop import Measured, Request, load, percentile_ms

VERSION = "1-abcdef-000004"
INDEX, LEARNED, LIVE = "shop", "learned", "live"
HEAD = 1_000  # Queries with a ready answer.
HEADINGS = ("part", "rate", "requests", "p50 ms", "p99 ms", "p99 without the search", "helped", "not 200")


@contextlib.contextmanager
def repeated(every_seconds: float, act: Callable[[], None]) -> Iterator[None]:
    """Do something again and again beside a part, in a thread."""
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(every_seconds):
            act()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextlib.contextmanager
def serving(home: Path, endpoints: Endpoints, *arguments: str) -> Iterator[str]:
    """Yield the address of a server, which is ended afterwards."""
    process = subprocess.Popen(
        command(home, "serve", "--index", INDEX, "--run", LIVE, "--port", "0", *arguments),
        cwd=ROOT,
        env=environment(endpoints) | {"SEARCHLOOP_SERVE__RELOAD_SECONDS": "1", "SEARCHLOOP_SERVE__UNGATED": "true"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().split()[0]
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def training(home: Path, endpoints: Endpoints, updates: int) -> Iterator[dict[str, int]]:
    """Let a run learn beside a part, kill its learner and its sink now and then, and yield how often."""
    process = subprocess.Popen(
        command(home, "train", "--recipe", "demo", "--index", INDEX, "--run", LEARNED, "--updates", str(updates)),
        cwd=ROOT,
        env=environment(endpoints),
        stderr=subprocess.DEVNULL,
    )
    killed = {"learner": 0, "sink": 0}

    def kill() -> None:
        for _, role, pid in living_workers(Home(home).runs):
            if role in killed:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed[role] += 1

    try:
        with repeated(15.0, kill):
            yield killed
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


def asked(path: str, prefix: str, count: int) -> Callable[[int], Request]:
    """Return requests for queries `prefix N`, N below count."""
    return lambda number: ("GET", f"{path}?query={prefix}+{number % count}", None)


def clicked(number: int) -> Request:
    """Return a click of its own id."""
    about = {"object": {"object_id": "p1"}, "event_id": f"bench-{number}"}
    return "POST", "/events", {"action_name": "click", "query_id": f"q{number}", "event_attributes": about}


def show(name: str, rate: float, measured: Measured) -> None:
    """Print a part as a row and as a JSON line."""
    helped = sum(count for policy, count in measured.policies.items() if policy not in ("", "raw"))
    cells = [name, f"{rate:g}/s", f"{len(measured.seconds):,}"]
    cells += [f"{percentile_ms(measured.seconds, share):.1f}" for share in (0.5, 0.99)]
    cells += [f"{percentile_ms(measured.own, 0.99):.1f}"]
    cells += [f"{helped / max(len(measured.seconds), 1):.0%}", str(measured.failed)]
    print("| " + " | ".join(cells) + " |", flush=True)
    print(json.dumps({"part": name, "rate": rate, "statuses": measured.statuses}), file=sys.stderr)


def run_part(name: str, base: str, ask: Callable[[int], Request], rate: float, seconds: float) -> Measured:
    """Measure one part and show it."""
    measured = asyncio.run(load(base, ask, rate=rate, seconds=seconds))
    show(name, rate, measured)
    return measured


def ready_answers(app: App, home: Path, endpoints: Endpoints, options: argparse.Namespace) -> None:
    """Measure queries with a ready answer, while nothing changes and while the answers are replaced."""
    version = load_manifest(app.home.index(INDEX))
    cache = ExpansionCache(app.home.run(LIVE), policy=VERSION, index_version=version.name)
    words = ("word1", "word2")
    cache.keep(
        Expanded(query_id=str(n), query=f"head {n}", expansions=words, valid=True, text="", policy=VERSION)
        for n in range(HEAD)
    )
    path = cache._path

    def replace() -> None:
        aside = path.with_name("aside")
        aside.write_bytes(path.read_bytes())
        aside.replace(path)

    head = asked("/expand", "head", HEAD)
    with serving(home, endpoints, "--policy", "none") as base:
        run_part("words, ready answers", base, head, options.rate, options.seconds)
        with repeated(2.0, replace):
            run_part("the same, answers replaced every 2 s", base, head, options.rate, options.seconds)
        run_part("search, ready answers", base, asked("/search", "head", HEAD), options.search_rate, options.seconds)


def tail(home: Path, endpoints: Endpoints, options: argparse.Namespace) -> None:
    """Measure queries that the policy has to answer in time, also while its run learns and loses workers."""
    subprocess.run(
        command(home, "train", "--recipe", "demo", "--index", INDEX, "--run", LEARNED, "--updates", "2"),
        cwd=ROOT,
        env=environment(endpoints),
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    with serving(home, endpoints, "--learned", LEARNED, "--policy", "latest") as base:
        new = asked("/search", "red oak chair", 10**9)
        run_part("search, no ready answer", base, new, options.tail_rate, options.seconds)
        newer = asked("/search", "blue steel lamp", 10**9)
        with training(home, endpoints, 10_000) as killed:
            time.sleep(20)  # Its first update.
            found = run_part("the same, while its run learns", base, newer, options.tail_rate, options.seconds)
    versions = [policy for policy in found.policies if policy not in ("", "raw")]
    print(f"versions that answered meanwhile: {len(versions)}; killed: {killed}", flush=True)


def events(home: Path, endpoints: Endpoints, services: LocalServices, options: argparse.Namespace) -> None:
    """Send events while the broker is killed and comes again, and count those that the topic holds in the end."""
    moments = iter((0.3, 0.6))
    began = time.monotonic()

    def disturb() -> None:
        if time.monotonic() - began < next_moment[0] * options.seconds:
            return
        if next_moment[0] < 0.5:
            broker = next(row for row in services.status() if row.role == "kafka")
            os.kill(broker.pid or 0, signal.SIGKILL)
        else:
            services.up()
        next_moment[0] = next(moments, 1e9)

    next_moment = [next(moments)]
    with serving(home, endpoints, "--policy", "none") as base:
        began = time.monotonic()
        with repeated(0.2, disturb):
            measured = run_part("clicks, broker killed and back", base, clicked, options.event_rate, options.seconds)
        deadline = time.monotonic() + 120
        while (held := len(kept(endpoints))) < measured.statuses["200"] and time.monotonic() < deadline:
            time.sleep(1)
    print(f"accepted {measured.statuses['200']:,} clicks; the topic holds {held:,} of them", flush=True)


def kept(endpoints: Endpoints) -> set[str]:
    """Return the ids of all clicks that the topic holds."""
    kafka = KafkaSettings(bootstrap=endpoints.kafka)
    bounds = log_bounds(kafka, partitions_of(kafka, [topic_name(LIVE, "actions")]))
    found: list[Any] = [
        decode(record.value)
        for item, (start, end) in bounds.items()
        for record in read_range(kafka, TopicPartition(*item), start, end, client_id="bench")
    ]
    return {action.action_id for action in found}


def main() -> None:
    """Make an index and measure each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=500, help="requests a second for words (default 500)")
    parser.add_argument("--search-rate", type=float, default=100, help="searches a second (default 100)")
    parser.add_argument("--tail-rate", type=float, default=10, help="searches without a ready answer (default 10)")
    parser.add_argument("--event-rate", type=float, default=100, help="events a second (default 100)")
    parser.add_argument("--seconds", type=float, default=60, help="length of each part (default 60)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="searchloop-serving-") as folder:
        home = Path(folder)
        home.chmod(0o755)
        services = LocalServices(home, LocalSettings(quick_start=True), attached=True)
        endpoints = services.up()
        try:
            app = App(Home(home), recipe=recipe_path("demo"), endpoints=endpoints)
            with progress() as report:
                index_corpus(app, name=INDEX, documents=demo_catalogue(app.settings.demo), report=report)
            print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
            print("| " + " | ".join(HEADINGS) + " |\n|" + "---|" * len(HEADINGS))
            ready_answers(app, home, endpoints, options)
            tail(home, endpoints, options)
            events(home, endpoints, services, options)
        finally:
            services.remove()


if __name__ == "__main__":
    main()
