"""An update by several learner processes against the same update by one, on this machine.

Both sides are `Updater.update` on the same batch of LESER's size with a policy of the tiny one's shapes, each process
with one thread. With two free cores, two processes gain; on busy ones they wait for each other. The helping process
waits idle while the other side runs. Runs alternate; medians.

Run: python tests/benchmarks/learner_processes.py [--processes 2] [--groups 32] [--runs 5]
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from learner.objectives import ObjectiveSettings
from learner.processes import ALONE, Processes, join
from learner.updates import Updater, UpdateSettings
from streams.events import Reward
from tests.trl_oracle import random_group, random_llama, reward_event

AGAIN, OVER = b"again", b"over"


def main() -> None:
    """Time both sides in turn, and print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--groups", type=int, default=32)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, rewards = random_llama(vocabulary=4096, hidden=128, layers=4, heads=4, kv_heads=4), batch(options.groups)
    alone = updater(model, 1, ALONE)
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"file://{folder}/meeting"
        forks = multiprocessing.get_context("fork")
        helpers = [
            # A daemon ends with this process if an error ends that; else both would wait for each other.
            forks.Process(target=follow, args=(meeting, rank, options.processes, model, rewards), daemon=True)
            for rank in range(1, options.processes)
        ]
        for helper in helpers:
            helper.start()
        processes = join(meeting, rank=0, count=options.processes)
        shared = updater(model, options.processes, processes)
        wall: dict[str, list[float]] = {"one": [], "several": []}
        for run in range(options.runs + 1):
            for side, made in (("one", alone), ("several", shared)):
                began = time.perf_counter()
                if side == "several":
                    processes.tell(AGAIN)
                made.update(rewards)
                if run:  # The first of each warms both up.
                    wall[side].append(time.perf_counter() - began)
        processes.tell(OVER)
        for helper in helpers:
            helper.join()
        processes.close()
    ratios = [several / one for several, one in zip(wall["several"], wall["one"], strict=True)]
    middle = {side: statistics.median(times) for side, times in wall.items()}
    one, several = middle["one"], middle["several"]
    print(f"{options.groups} groups of 8: one process {one:.3f} s, {options.processes} processes {several:.3f} s")
    print(f"ratio {statistics.median(ratios):.3f} (1/{options.processes} is the least), load {os.getloadavg()[0]:.1f}")
    print(
        json.dumps(
            {
                "benchmark": "learner_processes",
                "processes": options.processes,
                "groups": options.groups,
                "values": {"learner-processes": ratios},
                "floors": {"learner-processes": 1 / options.processes},
                "sides": {"learner-processes": middle},
                "load_average": round(os.getloadavg()[0], 1),
            }
        )
    )


def batch(count: int) -> list[Reward]:
    """Return groups of 8 with prompts of 64 to 192 tokens."""
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(64, 192, (count,), generator=generator).tolist()
    return [
        reward_event(f"g{number}", random_group(generator, prompt=prompt, lengths=[16] * 8, vocabulary=4096))
        for number, prompt in enumerate(prompts)
    ]


def updater(model: torch.nn.Module, shares: int, processes: Processes) -> Updater:
    """Return an updater of its own copy of the model."""
    return Updater(
        copy.deepcopy(model),
        objective=ObjectiveSettings(),
        settings=UpdateSettings(),
        shares=shares,
        processes=processes,
    )


def follow(meeting: str, rank: int, count: int, model: torch.nn.Module, rewards: list[Reward]) -> None:
    """Help until rank 0 says that it is over."""
    torch.set_num_threads(1)
    processes = join(meeting, rank=rank, count=count)
    made = updater(model, count, processes)
    while processes.hear(lambda: False) == AGAIN:
        made.update(rewards)
    processes.close()


if __name__ == "__main__":
    main()
