"""The streaming loop against our own loop in one process, with an environment as slow as writing and learning.

Both make the same number of updates from the same warmed-up policy on the same machine. First the loop in one process
says what an update takes without its scoring. The environment then takes that long for each update, on both sides: it
scores and waits for the rest, and a wait is no work, as that for a distant search engine is none. Runs alternate.
Counted is the time between the second update and the last one, so that no start is in it. Beside the seconds stands
each side's mean reward in its last quarter, since a stale policy may learn less from an update. The busiest stage's
share is that of the streaming side: the time in which the environment scores or waits for its engine, of all the time
counted.

Run: python tests/benchmarks/asynchronous.py [--updates 24] [--runs 3]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])  # The workers import the recipe from tests, too.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import duckdb

from infra.app.app import App
from infra.app.settings import TrainSettings
from infra.recipes.recipe import NewRun, load_recipe
from infra.runs.training_runs import copy_warmed_up, loop_run, train_run
from storage.ledger import LEDGER
from tests.benchmarks.small_loop import FIRST, INDEX, say, small_loop
from tests.capacity.calibration import calibrate
from tests.slow_environment import SCORED, SECONDS_PER_GROUP

GOAL = 0.6
SHARE_GOAL = 0.9
RECIPE = "tests.slow_environment:SlowLeser"
COUNTED_FROM = 2
UNCOUNTED = 6  # Updates of the run that only says how long an update takes.


class Took(NamedTuple):
    """Seconds between two updates of a run, its mean reward in the last quarter, and its busiest stage's share."""

    seconds: float
    reward: float
    busiest: float


def main() -> None:
    """Alternate both sides, and print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--updates", type=int, default=24)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    train = TrainSettings(recipe=RECIPE)
    took: dict[str, list[Took]] = {"streaming": [], "one process": []}
    with small_loop(train=train) as app:
        scored_before = len(SCORED)
        bare = synchronous(app, "bare", UNCOUNTED).seconds / (UNCOUNTED - COUNTED_FROM)
        bare -= statistics.median(SCORED[scored_before + COUNTED_FROM :])
        os.environ[SECONDS_PER_GROUP] = str(bare / app.settings.batch.groups)
        for run in range(options.runs):
            took["one process"].append(synchronous(app, f"one-{run}", options.updates))
            took["streaming"].append(streaming(app, f"streaming-{run}", options.updates))
    ratios = [ours.seconds / other.seconds for ours, other in zip(took["streaming"], took["one process"], strict=True)]
    counted = options.updates - COUNTED_FROM
    print(f"writing and learning take {bare:.3f} s an update, the environment as long; medians of {options.runs}")
    for side, found in took.items():
        seconds = statistics.median(each.seconds for each in found)
        reward = statistics.median(each.reward for each in found)
        print(f"  {side:<12} {seconds:7.2f} s, {seconds / counted:.3f} s an update, reward {reward:.3f}")
    shares = [each.busiest for each in took["streaming"]]
    print(f"  ratio {statistics.median(ratios):.3f} (goal ≤ {GOAL})")
    print(f"  the busiest stage has work {statistics.median(shares):.0%} of the time (goal ≥ {SHARE_GOAL:.0%})")
    print(
        json.dumps(
            {
                "benchmark": "asynchronous",
                "updates": counted,
                "writing_and_learning_seconds": bare,
                "rewards": {side: [each.reward for each in found] for side, found in took.items()},
                "values": {"async": ratios, "pipeline-slow-engine": shares},
                "floors": {"async": 0.5, "pipeline-slow-engine": 1.0},
                "sides": {
                    "async": {side: statistics.median(each.seconds for each in found) for side, found in took.items()}
                },
                "load_average": round(os.getloadavg()[0], 1),
            }
        )
    )


def synchronous(app: App, run: str, updates: int) -> Took:
    """Run the loop in this process."""
    folder = app.home.run(run)
    copy_warmed_up(app.home.run(FIRST), folder, carried=load_recipe(RECIPE).carried)
    moments, rewards = [], []
    for update in loop_run(app, NewRun(run=run, index=INDEX), recipe="demo", updates=updates, report=say):
        moments.append(time.perf_counter())
        rewards.append(update.metrics.get("reward_mean", 0.0))
    reward = statistics.fmean(rewards[-max(updates // 4, 1) :])
    return Took(moments[-1] - moments[COUNTED_FROM - 1], reward, math.nan)  # One stage after the other.


def streaming(app: App, run: str, updates: int) -> Took:
    """Run the loop with its workers; its times are those of its updates' events."""
    new = NewRun(run=run, index=INDEX)
    summary = train_run(app, new, recipe="demo", updates=updates, report=say, from_run=FIRST)
    with duckdb.connect(str(app.home.run(run) / LEDGER), read_only=True) as ledger:
        made = dict(ledger.execute("SELECT step, min(made_at_ms) FROM updates GROUP BY step").fetchall())
    if summary.restarts or not {COUNTED_FROM, updates} <= made.keys():
        raise SystemExit(f"asynchronous: expected updates {COUNTED_FROM} and {updates}, and no restart")
    busy = calibrate(app.home.run(run) / LEDGER, from_update=COUNTED_FROM).busy
    return Took((made[updates] - made[COUNTED_FROM]) / 1000, summary.reward_last, max(busy.values()))


if __name__ == "__main__":
    main()
