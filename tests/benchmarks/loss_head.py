"""The output head at the vocabulary of a large model: log-probabilities, entropies and gradients, against plain torch.

Both compute the same loss of the same hidden states in fp32. Plain torch takes `log_softmax` of all logits; ours
(`learner.logprobs.target_logprobs`) goes over them in chunks and computes them again for the gradient. Each run is a
process of its own, so that its peak memory is its own; runs alternate; medians. The gradients must be equal.

Run: python tests/benchmarks/loss_head.py [--tokens 1024] [--vocabulary 131072] [--hidden 256] [--runs 5]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor

from learner.logprobs import target_logprobs

MEMORY_GOAL, TIME_GOAL = 0.25, 1.0
SIDES = ("ours", "plain torch")
ENTROPY_WEIGHT = 0.01


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-probabilities and entropies, as one writes them down."""
    logprobs = (hidden @ weight.T).log_softmax(dim=1)
    return logprobs.gather(1, targets[:, None]).squeeze(1), -(logprobs.exp() * logprobs).sum(dim=1)


def chunked(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the same by the learner's own head."""
    none = torch.empty(0, dtype=torch.long, device=hidden.device)
    return target_logprobs(hidden, weight, targets, none, none)


def run_side(side: str, *, tokens: int, vocabulary: int, hidden: int, device: str = "cpu") -> dict[str, float]:
    """Return seconds, peak memory above the inputs in MiB, and sums that tell whether the gradients are the same.

    On the processor the peak is that of the whole process, so each side needs a process of its own.
    """
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(tokens, hidden, generator=generator).to(device).requires_grad_()
    weight = (torch.randn(vocabulary, hidden, generator=generator) * hidden**-0.5).to(device).requires_grad_()
    targets = torch.randint(vocabulary, (tokens,), generator=generator).to(device)
    states.grad, weight.grad = torch.zeros_like(states), torch.zeros_like(weight)
    before = begin_mib(device)
    began = time.perf_counter(), time.process_time()
    logprobs, entropies = (chunked if side == SIDES[0] else plain)(states, weight, targets)
    loss = -(logprobs * torch.linspace(-1, 1, tokens, device=device)).sum() - ENTROPY_WEIGHT * entropies.sum()
    loss.backward()
    return {
        "loss": loss.item(),
        "states": states.grad.abs().sum().item(),
        "weight": weight.grad.abs().sum().item(),
        "seconds": time.perf_counter() - began[0],
        "processor": time.process_time() - began[1],
        "peak_mib": peak_mib(device) - before,
    }


def begin_mib(device: str) -> float:
    """Return the memory in use now, in MiB, from which the peak counts; a GPU forgets what was in use before."""
    if device == "cpu":
        return peak_mib(device)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated() / 2**20


def peak_mib(device: str) -> float:
    """Return the most memory used so far, in MiB: of the GPU since `begin_mib`, or of this process."""
    if device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return torch.cuda.max_memory_allocated() / 2**20


def main() -> None:
    """Run both sides in turn, and print a table and a JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--vocabulary", type=int, default=131_072)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    sizes = {"tokens": given.tokens, "vocabulary": given.vocabulary, "hidden": given.hidden}
    if given.side:
        print(json.dumps(run_side(given.side, **sizes)))
        return
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(given.runs):
        for side in SIDES:
            options = [part for name, value in sizes.items() for part in (f"--{name}", str(value))]
            done = subprocess.run(
                [sys.executable, __file__, "--side", side, *options], capture_output=True, text=True, check=True
            )
            found[side].append(json.loads(done.stdout))
    middle = {
        side: {name: statistics.median(run[name] for run in runs) for name in runs[0]} for side, runs in found.items()
    }
    ours, theirs = (middle[side] for side in SIDES)
    for name in ("loss", "states", "weight"):
        assert abs(ours[name] - theirs[name]) <= 1e-4 * abs(theirs[name]), (name, ours[name], theirs[name])
    print(f"| {given.tokens} tokens, V = {given.vocabulary}, D = {given.hidden} | ours | plain torch | ratio | goal |")
    print("|---|---|---|---|---|")
    for name, goal in (("seconds", TIME_GOAL), ("processor", TIME_GOAL), ("peak_mib", MEMORY_GOAL)):
        print(f"| {name} | {ours[name]:.3g} | {theirs[name]:.3g} | {ours[name] / theirs[name]:.3f} | ≤ {goal} |")
    pairs = list(zip(found[SIDES[0]], found[SIDES[1]], strict=True))
    rows = {"loss-head-seconds": "seconds", "loss-head-memory": "peak_mib"}
    values = {row: [one[name] / other[name] for one, other in pairs] for row, name in rows.items()}
    sides = {row: {side: middle[side][name] for side in SIDES} for row, name in rows.items()}
    result = {"benchmark": "loss_head", **sizes, "runs": given.runs, "ours": ours, "plain": theirs}
    print(json.dumps(result | {"values": values, "sides": sides}))


if __name__ == "__main__":
    main()
