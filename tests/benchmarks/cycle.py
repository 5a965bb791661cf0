"""What a run costs, process by process: processor time by part, and peak memory.

The run is the demo's: its catalogue and its recipe (or a corpus and a recipe that are given), a real Kafka and a real
Elasticsearch, and the four workers, each in a process of its own with clocks around three parts (tests/part_times.py):
Kafka's client with its threads, the codec (encode, decode, hash), and DuckDB (Arrow tables, transactions, archive). The
rest of a worker is the work itself. What the parts cost hardly depends on the work: the larger catalogue and policy,
the smaller the share.

Counted is the time between two updates in mid-run, so that no start and no warm-up is in it; waiting is not processor
time, but polling for what has not come yet is. The share that must stay small is that of the three parts in every
worker and of the whole broker, in all that the workers and both services used. Peak memory is the kernel's high-water
mark (VmHWM) of each process over its whole life; the broker and the engine are Java with a fixed heap.

Run: python tests/benchmarks/cycle.py [--recipe demo] [--corpus FILE] [--updates 40] [--from-update 10] [--home DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import msgspec
import psutil

import infra.runs.training
from infra.app.app import App
from infra.app.home import Home
from infra.app.indexing import index_corpus
from infra.app.progress import progress
from infra.recipes.files import recipe_path
from infra.recipes.recipe import NewRun
from infra.runs.training_runs import train_run
from search_env.catalogue.corpora import Document, load_corpus
from search_env.catalogue.generated import demo_catalogue
from tests.part_times import PARTS

PART_TIMES = Path(__file__).resolve().parents[1] / "part_times.py"
SHARE_GOAL = 0.05
LEARNER_GIB_GOAL = 2.0
RUN = "bench"
WORKERS = ("generator", "environment", "learner", "sink")
SERVICES = ("kafka", "elasticsearch")
PEAKS: dict[str, int] = {}  # MiB by role, read before each process is stopped.


class ClockedWorkers:
    """Stands in for the supervisor: the same four workers, each under the clocks, none restarted."""

    restarts = 0

    def __init__(self, _: Sequence[str], roles: Sequence[str], run_dir: Path, environment: dict[str, str]) -> None:
        self._roles = roles
        self._run_dir = run_dir
        self._environment = environment
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> ClockedWorkers:
        for role in self._roles:
            clocks = [sys.executable, str(PART_TIMES), str(times_file(self._run_dir, role))]
            worker = ["--home", str(self._run_dir.parents[1]), "run", role, "--run", self._run_dir.name, "--supervised"]
            self._processes[role] = subprocess.Popen(
                [*clocks, *worker],
                stdin=subprocess.PIPE,
                env=os.environ | self._environment,
                start_new_session=True,
            )
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(list(self._processes))

    def check(self) -> None:
        """End the benchmark if a worker has ended."""
        for role, process in self._processes.items():
            if process.poll() is not None:
                raise SystemExit(f"cycle: the {role} ended with status {process.returncode}; see above")

    def stop(self, roles: Sequence[str]) -> None:
        """Read each worker's peak memory, and stop it."""
        for role in roles:
            if process := self._processes.pop(role, None):
                PEAKS[role] = peak_mib(process.pid)
                process.terminate()
                process.wait(timeout=60)


def main() -> None:
    """Run the loop, and print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--updates", type=int, default=40)
    parser.add_argument("--from-update", type=int, default=10, help="where counting begins")
    parser.add_argument("--recipe", default="demo", help="demo or leser")
    parser.add_argument("--corpus", type=Path, help="a catalogue as `searchloop index` takes it (default: the demo's)")
    parser.add_argument("--home", type=Path, help="keep everything here (default: a folder that is removed)")
    options = parser.parse_args()
    home = options.home or Path(tempfile.mkdtemp(prefix="cycle-bench-"))
    infra.runs.training.Supervisor = ClockedWorkers  # type: ignore[assignment,misc]
    try:
        app = App(Home(home.absolute()), recipe=recipe_path(options.recipe))
        documents = load_corpus(options.corpus) if options.corpus else demo_catalogue(app.settings.demo)
        run_dir, moments = run_loop(app, documents, recipe=options.recipe, updates=options.updates)
        show(options, run_dir, moments)
    finally:
        if options.home is None:
            shutil.rmtree(home, ignore_errors=True)


class Moment(msgspec.Struct):
    """When the newest update was seen, and what the services had used by then: processor seconds by role."""

    time: float
    services: dict[str, float]


def run_loop(app: App, documents: Iterable[Document], *, recipe: str, updates: int) -> tuple[Path, dict[int, Moment]]:
    """Index, warm up and train; return the run's folder and the moment of each update."""
    moments: dict[int, Moment] = {}
    with progress() as report, app.running_services(report) as running:
        pids = {row.role: row.pid for row in app.local_services().status() if row.pid}

        def note(what: str, done: int, total: int) -> None:
            if what.startswith("updates"):
                used = {role: sum(psutil.Process(pid).cpu_times()[:2]) for role, pid in pids.items()}
                moments[done] = Moment(time.time(), used)
            report(what, done, total)

        index_corpus(running, name=RUN, documents=documents, report=report)
        train_run(
            running,
            NewRun(run=RUN, index=RUN, seed=0),
            recipe=recipe,
            updates=updates,
            report=note,
        )
        PEAKS.update({role: peak_mib(pid) for role, pid in pids.items()})
    PEAKS["train"] = peak_mib(os.getpid())
    return app.home.run(RUN), moments


def times_file(run_dir: Path, role: str) -> Path:
    """Return where a worker's clocks write."""
    return run_dir / f"times-{role}.jsonl"


def peak_mib(pid: int) -> int:
    """Return the kernel's high-water mark of a process's memory."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024


def used_between(path: Path, began: float, ended: float) -> dict[str, float]:
    """Return the processor seconds of one worker between two moments, whole and by part."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    first, last = (min(lines, key=lambda line: abs(line["time"] - moment)) for moment in (began, ended))
    return {name: last[name] - first[name] for name in ("total", *PARTS)}


def show(options: argparse.Namespace, run_dir: Path, moments: dict[int, Moment]) -> None:
    """Print what was measured."""
    counted = [step for step in sorted(moments) if step >= options.from_update]
    first, last = counted[0], counted[-1]
    began, ended = moments[first], moments[last]
    workers = {role: used_between(times_file(run_dir, role), began.time, ended.time) for role in WORKERS}
    services = {role: ended.services[role] - began.services[role] for role in SERVICES}
    whole = sum(worker["total"] for worker in workers.values()) + sum(services.values())
    parts = {part: sum(worker[part] for worker in workers.values()) for part in PARTS}
    share = (sum(parts.values()) + services["kafka"]) / whole

    updates = last - first
    print(
        f"updates {first} to {last}: {ended.time - began.time:.1f} s on the clock; processor ms per update and peak MiB"
    )
    print(f"{'':>14}{'all':>9}" + "".join(f"{part:>9}" for part in PARTS) + f"{'peak MiB':>11}")
    for role, worker in workers.items():
        figures = "".join(f"{1000 * worker[part] / updates:9.1f}" for part in ("total", *PARTS))
        print(f"{role:>14}{figures}{PEAKS[role]:11}")
    for role, seconds in services.items():
        print(f"{role:>14}{1000 * seconds / updates:9.1f}{'':>27}{PEAKS[role]:11}")
    print(f"{'train':>14}{'':>36}{PEAKS['train']:11}   (index, warm-up, requests)")
    print(f"Kafka, codec and DuckDB: {share:.1%} of the processor time (goal ≤ {SHARE_GOAL:.0%})")
    print(f"learner's peak: {PEAKS['learner'] / 1024:.2f} GiB (goal < {LEARNER_GIB_GOAL:g})")
    print(
        json.dumps(
            {
                "benchmark": "cycle",
                "recipe": options.recipe,
                "corpus": options.corpus.name if options.corpus else "demo",
                "updates": updates,
                "seconds": round(ended.time - began.time, 1),
                "share": round(share, 4),
                "share_goal": SHARE_GOAL,
                "values": {"stream-share": [share]},
                "share_without_broker": round(sum(parts.values()) / whole, 4),
                "processor_ms_per_update": {
                    **{role: round(1000 * worker["total"] / updates, 1) for role, worker in workers.items()},
                    **{role: round(1000 * seconds / updates, 1) for role, seconds in services.items()},
                },
                "parts_ms_per_update": {part: round(1000 * seconds / updates, 1) for part, seconds in parts.items()},
                "peak_mib": PEAKS,
                "load_average": round(os.getloadavg()[0], 1),
            }
        )
    )


if __name__ == "__main__":
    main()
