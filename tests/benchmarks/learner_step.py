"""The learner's step against TRL's GRPOTrainer on the same batch: same loss, same gradients, how much time?

One step of ours is all of `Updater.update`: events checked and packed, forward, backward, clipping, AdamW, metrics. One
of TRL's is GRPOTrainer's own `_compute_loss` on ready tensors, backward, clipping and its own optimizer. Both in fp32,
on one thread; runs alternate, so that a busy machine slows both; medians. Beside the wall clock stands the processor's
time, in which other processes do not count: on a quiet machine the two agree.

A third side is the floor: the matrix products and the attention of our own step alone, with the same shapes and no
other operation. Its products alone are timed, too.
With `--model smollm2` the policy has SmolLM2-135M's shapes, random weights, and LoRA of rank 16.

Run: python tests/benchmarks/learner_step.py [--groups 4] [--runs 5] [--model smollm2]
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
from functools import partial
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from learner.objectives import ObjectiveSettings
from learner.packing import PromptGroup
from learner.updates import Updater, UpdateSettings
from tests.trl_oracle import random_group, random_llama, reward_event, trl_inputs, trl_trainer

TEMPERATURE = 0.9
GOALS = {"tiny": 0.08, "smollm2": 0.12}
ROWS = {"tiny": "learner-step", "smollm2": "learner-step-lora"}  # Of `searchloop bench`.
SIDES = ("ours", "trl", "floor", "products")
ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"


def main() -> None:
    """Check the gradients, time the steps, print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--completion", type=int, default=32)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--model", choices=sorted(GOALS), default="tiny")
    options = parser.parse_args()
    torch.set_num_threads(1)

    vocabulary = 4096 if options.model == "tiny" else 49_152
    if options.model == "tiny":
        model: torch.nn.Module = random_llama(vocabulary=vocabulary, hidden=256, layers=4, heads=4, kv_heads=4)
    else:
        model = smollm2_with_lora()
    generator = torch.Generator().manual_seed(0)
    groups = [
        random_group(
            generator,
            prompt=options.prompt,
            lengths=[options.completion] * options.candidates,
            vocabulary=vocabulary,
            temperature=TEMPERATURE,
        )
        for _ in range(options.groups)
    ]
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = steps(model, groups, folder)
        difference, largest = compare_gradients(ours, theirs)
        floor, products = floors_of(ours)
        floor()
        wall: dict[str, list[float]] = {side: [] for side in SIDES}
        processor: dict[str, list[float]] = {side: [] for side in SIDES}
        for _ in range(options.runs):
            for name, step in zip(SIDES, (ours, theirs, floor, products), strict=True):
                started, used = time.perf_counter(), time.process_time()
                step()
                wall[name].append(time.perf_counter() - started)
                processor[name].append(time.process_time() - used)
    result = {
        "benchmark": "learner_step",
        "model": options.model,
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
        "ratio_goal": GOALS[options.model],
        "values": {ROWS[options.model]: ratios(wall)},
        "floors": {ROWS[options.model]: statistics.median(ratios(wall, "floor"))},
        "products_ratio": statistics.median(ratios(wall, "products")),
        "sides": {ROWS[options.model]: {side: statistics.median(times) for side, times in wall.items()}},
        "gradient_difference_max": difference,
        "gradient_max": largest,
        "load_average": round(os.getloadavg()[0], 1),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    print(f"gradients differ by at most {difference:.1e} (largest {largest:.1e})")
    print(f"{'':>8}  {'wall s':>8}  {'processor s':>11}")
    for name in SIDES:
        print(f"{name:>8}  {statistics.median(wall[name]):8.3f}  {statistics.median(processor[name]):11.3f}")
    print(f"   ratio  {result['ratio']:8.3f}  {result['processor_ratio']:11.3f}   goal ≤ {GOALS[options.model]}")
    print(json.dumps(result))


def ratio(times: dict[str, list[float]]) -> float:
    """Return the median over the runs of our time by TRL's in the same run."""
    return round(statistics.median(ratios(times)), 4)


def ratios(times: dict[str, list[float]], side: str = "ours") -> list[float]:
    """Return each run's time of a side by TRL's."""
    return [round(one / trl, 4) for one, trl in zip(times[side], times["trl"], strict=True)]


def smollm2_with_lora() -> torch.nn.Module:
    """Return a policy of SmolLM2-135M's shapes with random weights, and LoRA whose both halves are random."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
        max_position_embeddings=2048,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
    model = get_peft_model(LlamaForCausalLM(config).eval(), lora).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # At 0, as it begins, the other half would have no gradient to compare.
            torch.nn.init.normal_(parameter, std=0.02)
    return model  # type: ignore[no-any-return]


class Costly(TorchDispatchMode):
    """Notes what runs under it: matrix products, as (shape and strides of either factor), and calls of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[tuple[tuple[int, ...], ...]] = []
        self.attention: list[Callable[[], object]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        """Run the operation."""
        name = function._schema.name.removeprefix("aten::")
        if name in ("mm", "addmm", "addmm_", "bmm"):
            left, right = args[-2:]
            self.products.append((tuple(left.shape), left.stride(), tuple(right.shape), right.stride()))
        elif name.startswith(ATTENTION):
            self.attention.append(partial(function, *args, **(kwargs or {})))
        return function(*args, **(kwargs or {}))


def floors_of(step: Callable[[], None]) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return two functions: one makes the step's matrix products and attention and nothing else, one the products."""
    with Costly() as costly:
        step()
    factors: dict[tuple[tuple[int, ...], tuple[int, ...]], Tensor] = {}

    def factor(shape: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
        if (shape, stride) not in factors:
            elements = 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
            factors[shape, stride] = torch.randn(elements).as_strided(shape, stride)
        return factors[shape, stride]

    pairs = [(factor(*each[:2]), factor(*each[2:])) for each in costly.products]

    def products() -> None:
        for left, right in pairs:
            left @ right

    def floor() -> None:
        products()
        with torch.no_grad():
            for attend in costly.attention:
                attend()

    return floor, products


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
    largest = float(caught[1].abs().max())
    if not difference <= max(1e-5, 1e-4 * largest):
        raise SystemExit(f"gradients differ by {difference} of {largest}, expected 1e-4 of it: the times mean nothing")
    return difference, largest


if __name__ == "__main__":
    main()
