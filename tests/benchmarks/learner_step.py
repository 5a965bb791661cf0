"""The learner's step against TRL's GRPOTrainer on the same batch: same loss, same gradients, how much time?

One step of ours is all of `Updater.update`: events checked and packed, forward, backward, clipping, AdamW, metrics. One
of TRL's is GRPOTrainer's own `_compute_loss` on ready tensors, backward, clipping and its own optimizer. Both in fp32,
on one thread; runs alternate, so that a busy machine slows both; medians. Beside the wall clock stands the processor's
time, in which other processes do not count: on a quiet machine the two agree.

Run: python tests/benchmarks/learner_step.py [--groups 4] [--runs 5]
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from learner.objectives import ObjectiveSettings
from learner.packing import PromptGroup
from learner.updates import Updater, UpdateSettings
from tests.trl_oracle import random_group, random_llama, reward_event, trl_inputs, trl_trainer

TEMPERATURE = 0.9
GOAL = 0.12


def main() -> None:
    """Check the gradients, time the steps, print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--completion", type=int, default=32)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)

    model = random_llama(vocabulary=4096, hidden=256, layers=4, heads=4, kv_heads=4)
    generator = torch.Generator().manual_seed(0)
    groups = [
        random_group(
            generator,
            prompt=options.prompt,
            lengths=[options.completion] * options.candidates,
            vocabulary=4096,
            temperature=TEMPERATURE,
        )
        for _ in range(options.groups)
    ]
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = steps(model, groups, folder)
        difference, largest = compare_gradients(ours, theirs)
        wall: dict[str, list[float]] = {"ours": [], "trl": []}
        processor: dict[str, list[float]] = {"ours": [], "trl": []}
        for _ in range(options.runs):
            for name, step in (("ours", ours), ("trl", theirs)):
                started, used = time.perf_counter(), time.process_time()
                step()
                wall[name].append(time.perf_counter() - started)
                processor[name].append(time.process_time() - used)
    result = {
        "benchmark": "learner_step",
        "groups": options.groups,
        "candidates": options.candidates,
        "prompt_tokens": options.prompt,
        "completion_tokens": options.completion,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "runs": options.runs,
        "ours_seconds": round(statistics.median(wall["ours"]), 4),
        "trl_seconds": round(statistics.median(wall["trl"]), 4),
        "ratio": ratio(wall),
        "processor_ratio": ratio(processor),
        "ratio_goal": GOAL,
        "gradient_difference_max": difference,
        "gradient_max": largest,
        "load_average": round(os.getloadavg()[0], 1),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    print(f"gradients differ by at most {difference:.1e} (largest {largest:.1e})")
    print(f"{'':>5}  {'wall s':>8}  {'processor s':>11}")
    for name in ("ours", "trl"):
        print(f"{name:>5}  {statistics.median(wall[name]):8.3f}  {statistics.median(processor[name]):11.3f}")
    print(f"ratio  {result['ratio']:8.3f}  {result['processor_ratio']:11.3f}   goal ≤ {GOAL}")
    print(json.dumps(result))


def ratio(times: dict[str, list[float]]) -> float:
    """Return the median over the runs of our time by TRL's in the same run."""
    return round(statistics.median(ours / trl for ours, trl in zip(times["ours"], times["trl"], strict=True)), 4)


def steps(
    model: torch.nn.Module, groups: list[PromptGroup], folder: str
) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return our step and TRL's, each on its own copy of the model, each changing its copy."""
    settings = ObjectiveSettings(correction="none")
    updater = Updater(copy.deepcopy(model), objective=settings, settings=UpdateSettings(grad_norm_max=1e9))
    rewards = [reward_event(f"group-{number}", group) for number, group in enumerate(groups)]

    trainer = trl_trainer(copy.deepcopy(model), folder, temperature=TEMPERATURE, loss_type="grpo", max_grad_norm=1e9)
    trainer.model.train()
    optimizer = trainer.create_optimizer()
    inputs = trl_inputs(groups)

    def ours() -> None:
        updater.update(rewards)

    def theirs() -> None:
        trainer._compute_loss(trainer.model, inputs).backward()
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), trainer.args.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return ours, theirs


def compare_gradients(ours: Callable[[], None], theirs: Callable[[], None]) -> tuple[float, float]:
    """Run both steps once; return the largest difference of their gradients and the largest gradient."""
    caught: list[Tensor] = []

    def catch(optimizer: torch.optim.Optimizer, *_: object) -> None:
        named = [p for group in optimizer.param_groups for p in group["params"]]
        caught.append(torch.cat(sorted((p.grad.flatten().clone() for p in named), key=len)))

    hook = register_optimizer_step_pre_hook(catch)
    ours()
    theirs()
    hook.remove()
    difference = float((caught[0] - caught[1]).abs().max())
    if not difference <= 1e-5:
        raise SystemExit(f"gradients differ by {difference}, expected at most 1e-5: the times mean nothing")
    return difference, float(caught[1].abs().max())


if __name__ == "__main__":
    main()
