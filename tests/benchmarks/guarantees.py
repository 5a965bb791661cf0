"""What the guarantees cost: groups a second of the whole loop with them, and without.

The loop is the demo's at a smaller size, or that of a recipe and a corpus that are given: a real Kafka and a real
Elasticsearch, and the four workers, each in a process of its own. Much of the cost is one by the update (a checkpoint
that is hashed and synced), so the smallest loop shows it at its largest. Runs begin from the same warmed-up policy and
take turns: with the workers as they are, and with `tests/unguarded.py` around them, which takes away acknowledgements,
waiting commits, fsync, hashes and the offsets in the sink's transaction. Counted is the time between two updates in
mid-run, so that no start is in it; beside it the processor time of the workers and of the broker, which a busy machine
disturbs less. A first pair warms the broker and the engine (Java compiles what it has run often) and is not counted.

Run: python tests/benchmarks/guarantees.py [--pairs 9] [--updates 32] [--recipe leser --corpus FILE]
SEARCHLOOP_TEST_KAFKA and SEARCHLOOP_TEST_ELASTICSEARCH (host:port, URL) use services that are up already.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar, NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import msgspec
import psutil
from scipy.stats import t as student_t

import infra.runs.training
from infra.app.app import App
from infra.app.home import Home
from infra.app.indexing import index_corpus
from infra.app.run_settings import RunSettings, write_run_settings
from infra.recipes.files import recipe_path
from infra.recipes.leser.preparation import prepare
from infra.recipes.recipe import NewRun, Prepared
from search_env.catalogue.corpora import load_corpus
from search_env.catalogue.generated import demo_catalogue
from services.local import Endpoints, LocalServices
from services.settings import LocalSettings

UNGUARDED = Path(__file__).resolve().parents[1] / "unguarded.py"
GOAL = 0.03
PRODUCTS = 1000
COUNTED_FROM = 4  # The update at which counting begins.
SIDES = {"with": ["-m", "infra.cli"], "without": [str(UNGUARDED)]}


class Cost(NamedTuple):
    """What one run took between two updates."""

    groups_per_second: float
    processor_seconds_per_group: float


class Workers:
    """Stands in for the supervisor: the same four workers, with or without guarantees, none restarted."""

    side: ClassVar[str] = "with"
    running: ClassVar[dict[str, subprocess.Popen[bytes]]] = {}
    restarts = 0

    def __init__(self, _: Sequence[str], roles: Sequence[str], run_dir: Path, environment: dict[str, str]) -> None:
        self._roles = roles
        self._run_dir = run_dir
        self._environment = environment

    def __enter__(self) -> Workers:
        for role in self._roles:
            verb = ["--home", str(self._run_dir.parents[1]), "run", role, "--run", self._run_dir.name, "--supervised"]
            self.running[role] = subprocess.Popen(
                [sys.executable, *SIDES[self.side], *verb],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=(self._run_dir / f"{role}.err").open("wb"),
                env=os.environ | self._environment,
                cwd=Path(__file__).resolve().parents[2],
                start_new_session=True,
            )
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(list(self.running))

    def check(self) -> None:
        """End the benchmark if a worker has ended."""
        for role, process in self.running.items():
            if process.poll() is not None:
                said = (self._run_dir / f"{role}.err").read_text(errors="replace")[-2000:]
                raise SystemExit(f"guarantees: the {role} ended with status {process.returncode}:\n{said}")

    def stop(self, roles: Sequence[str]) -> None:
        """Stop some of them."""
        for role in roles:
            if process := self.running.pop(role, None):
                process.terminate()
                process.wait(timeout=120)


def main() -> None:
    """Prepare once, run the pairs, print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--updates", type=int, default=32)
    parser.add_argument("--recipe", default="", help="a recipe as it is (default: the demo's, made smaller)")
    parser.add_argument("--corpus", type=Path, help="a catalogue as `searchloop index` takes it (default: the demo's)")
    options = parser.parse_args()
    infra.runs.training.Supervisor = Workers  # type: ignore[assignment,misc]
    with ExitStack() as opened:
        home = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="guarantees-", ignore_cleanup_errors=True)))
        home.chmod(0o755)
        endpoints = services(home, opened)
        app = App(Home(home), recipe=recipe_path(options.recipe or "demo")).at(endpoints)
        app = app if options.recipe else small(app)
        index = f"guarantees-{uuid.uuid4().hex[:8]}"
        documents = load_corpus(options.corpus) if options.corpus else demo_catalogue(app.settings.demo)
        index_corpus(app, name=index, documents=documents, report=say)
        prepare(app, NewRun(run="first", index=index), say)
        broker = broker_of(app)
        costs: dict[str, list[Cost]] = {side: [] for side in SIDES}
        for number in range(options.pairs + 1):
            for side in SIDES if number % 2 else reversed(SIDES):
                cost = timed(app, index, side, options.updates, broker)
                if number:  # The first pair warms both services.
                    costs[side].append(cost)
    show(costs, options)


def small(app: App) -> App:
    """Return the app with settings that warm up in a minute; the workers' own settings stay the recipe's."""
    settings = app.settings
    return app.with_settings(
        msgspec.structs.replace(
            settings,
            demo=msgspec.structs.replace(settings.demo, products=PRODUCTS),
            intents=msgspec.structs.replace(settings.intents, queries=400),
            gbdt=msgspec.structs.replace(settings.gbdt, trees=30, queries_max=100),
            lessons=msgspec.structs.replace(settings.lessons, copied=600, catalogue=600, head=20),
            reading_warmup=msgspec.structs.replace(settings.reading_warmup, epochs_max=1),
            warmup=msgspec.structs.replace(settings.warmup, epochs_max=2),
        )
    )


def services(home: Path, opened: ExitStack) -> Endpoints:
    """Return where Kafka and Elasticsearch are: those of the environment, or new ones that end with `opened`."""
    # Taken out, for the workers would not know these names.
    kafka, elasticsearch = (os.environ.pop(f"SEARCHLOOP_TEST_{name}", "") for name in ("KAFKA", "ELASTICSEARCH"))
    if kafka and elasticsearch:
        return Endpoints(kafka=kafka, elasticsearch=elasticsearch)
    local = LocalServices(home, LocalSettings(quick_start=True), attached=True)
    opened.callback(local.remove)
    return local.up()


def broker_of(app: App) -> psutil.Process | None:
    """Return the broker's process, if it is one of this machine's that is ours to see."""
    port = int(app.connections.kafka.bootstrap.rsplit(":", 1)[-1])
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
            return psutil.Process(connection.pid)
    return None


def timed(app: App, index: str, side: str, updates: int, broker: psutil.Process | None) -> Cost:
    """Run the loop once, and return what a group cost in mid-run."""
    run = f"{side}-{uuid.uuid4().hex[:8]}"
    prepared = new_run(app, run, index, updates)
    moments: dict[int, tuple[float, float]] = {}

    def note(what: str, done: int, total: int) -> None:
        if what.startswith("updates") and done not in moments:
            processes = [psutil.Process(each.pid) for each in Workers.running.values()] + ([broker] if broker else [])
            moments[done] = time.perf_counter(), sum(sum(each.cpu_times()[:2]) for each in processes)

    Workers.side = side
    infra.runs.training.stream(app, prepared, updates=updates, seed=0, report=note)
    first, last = min(step for step in moments if step >= COUNTED_FROM), max(moments)
    groups = (last - first) * app.settings.batch.groups
    (began, spent_before), (ended, spent) = moments[first], moments[last]
    cost = Cost(groups / (ended - began), (spent - spent_before) / groups)
    say(
        f"{side}: {cost.groups_per_second:.2f} groups/s, {1000 * cost.processor_seconds_per_group:.0f} ms a group", 0, 0
    )
    shutil.rmtree(app.home.run(run))
    return cost


def new_run(app: App, run: str, index: str, updates: int) -> Prepared:
    """Make a run of the warmed-up policy."""
    folder = app.home.run(run)
    shutil.copytree(app.home.run("first"), folder)
    prepared = prepare(app, NewRun(run=run, index=index), lambda *_: None)
    kept = RunSettings(
        run=run,
        recipe="demo",
        index=index,
        index_version=prepared.index,
        seed=0,
        updates=updates,
        settings=app.settings,
    )
    write_run_settings(folder, kept)
    return prepared


def say(what: str, done: int, total: int) -> None:
    """Say what is going on, on standard error."""
    print(f"{what} {done}/{total}" if total else what, file=sys.stderr, flush=True)


def show(costs: dict[str, list[Cost]], options: argparse.Namespace) -> None:
    """Print the table and the JSON line. Lost: the median over pairs, each against its own neighbour."""
    pairs = list(zip(costs["with"], costs["without"], strict=True))
    lost_time = [1 - guarded.groups_per_second / bare.groups_per_second for guarded, bare in pairs]
    lost_processor = [
        1 - bare.processor_seconds_per_group / guarded.processor_seconds_per_group for guarded, bare in pairs
    ]
    print(f"{'guarantees':12}{'groups/s (min, median, max)':>30}{'processor ms a group':>24}")
    for side, found in costs.items():
        speeds = [each.groups_per_second for each in found]
        spread = f"{min(speeds):.2f} {statistics.median(speeds):.2f} {max(speeds):.2f}"
        spent = 1000 * statistics.median(each.processor_seconds_per_group for each in found)
        print(f"{side:12}{spread:>30}{spent:>24.0f}")
    result = {
        "benchmark": "guarantees",
        "pairs": len(pairs),
        "recipe": options.recipe or "demo, smaller",
        "updates": options.updates,
        "groups_per_second": {
            side: round(statistics.median(each.groups_per_second for each in found), 3) for side, found in costs.items()
        },
        "lost_by_the_clock": round(statistics.median(lost_time), 4),
        "lost_by_the_clock_mean_and_interval": [round(each, 4) for each in mean_and_interval(lost_time)],
        "lost_by_the_clock_pairs": [round(each, 3) for each in lost_time],
        "lost_by_processor_time": round(statistics.median(lost_processor), 4),
        "lost_by_processor_time_mean_and_interval": [round(each, 4) for each in mean_and_interval(lost_processor)],
        "lost_by_processor_time_pairs": [round(each, 3) for each in lost_processor],
        "goal": GOAL,
        "values": {"guarantees": lost_time},
        "floors": {"guarantees": 0.0},
    }
    clock, processor = statistics.median(lost_time), statistics.median(lost_processor)
    print(f"lost: {clock:.1%} by the clock, {processor:.1%} of processor time (goal: at most {GOAL:.0%})")
    print(json.dumps(result))


def mean_and_interval(lost: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean and its 95 % interval by Student's t, or the mean alone thrice where there is one pair."""
    mean = statistics.fmean(lost)
    if len(lost) < 2:
        return mean, mean, mean
    half = float(student_t.ppf(0.975, len(lost) - 1)) * statistics.stdev(lost) / len(lost) ** 0.5
    return mean, mean - half, mean + half


if __name__ == "__main__":
    main()
