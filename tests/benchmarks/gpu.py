"""One prepared script for a machine with a GPU, at most ten minutes: the learner at the shapes of a 0.6 B model.

It measures, with random weights (Qwen3-0.6B's shapes, bf16, LoRA of rank 16) and in one call:

- the learner's own step (`Updater.update`: packed groups, the shared prompt once) against the same groups as padded
  rows of prompt and completion: seconds, tokens a second, peak memory (with the other side's weights, which lie there);
- model FLOPs utilization: 6 · parameters · tokens that pass through the model, by the GPU's peak in bf16. LoRA spares
  a third of these products, and neither side computes the output head for a prompt's tokens, so the share of work that
  is really done is lower; the usual convention counts both;
- the loss head against plain torch at V = 128k, by `loss_head.py` on the GPU;
- vLLM's tokens a second and swap of adapters, by `generation.py`, if vLLM is installed (`make vllm`). It comes last:
  what was measured before is printed and kept without it.

Without a GPU it runs the same code on the processor with small shapes (`--small`), which says only that it works.

Run: python tests/benchmarks/gpu.py [--small] [--runs 5] [--out gpu.json]
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor, nn

from learner.logprobs import target_logprobs
from learner.objectives import ObjectiveSettings
from learner.packing import PromptGroup
from learner.updates import Updater, UpdateSettings
from streams.devices import choose_device, describe_device, release_memory
from tests.benchmarks.loss_head import run_side
from tests.trl_oracle import random_group, reward_event

ROOT = Path(__file__).resolve().parents[2]
TOKENS_GOAL, MFU_GOAL = 13_300, 0.25
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L4": 121e12, "B200": 2250e12}  # Dense bf16.


class Shape(NamedTuple):
    """A model's and a batch's sizes."""

    vocabulary: int
    hidden: int
    feedforward: int
    layers: int
    heads: int
    kv_heads: int
    groups: int
    candidates: int
    prompt: int
    completion: int


LARGE = Shape(151_936, 1024, 3072, 28, 16, 8, groups=16, candidates=8, prompt=256, completion=32)
SMALL = Shape(2_048, 64, 192, 2, 4, 2, groups=2, candidates=4, prompt=48, completion=8)


def random_policy(shape: Shape, device: str, dtype: torch.dtype) -> nn.Module:
    """Return a causal LM of this shape with random weights and LoRA adapters of rank 16."""
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.feedforward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=max(shape.hidden // shape.heads, 16),
        tie_word_embeddings=True,
        max_position_embeddings=4096,
        use_sliding_window=False,
    )
    model = Qwen3ForCausalLM(config).to(device=device, dtype=dtype).eval()
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    return get_peft_model(model, LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=targets)).eval()  # type: ignore[no-any-return]


def precision_of(model: nn.Module) -> Literal["fp32", "bf16"]:
    """Return the setting `learner.update.precision` with which the learner trains a policy on such a base."""
    return "bf16" if any(each.dtype == torch.bfloat16 for each in model.parameters()) else "fp32"


def packed_step(model: nn.Module, groups: list[PromptGroup], micro: int) -> Callable[[], None]:
    """Return the learner's own step on these groups."""
    settings = UpdateSettings(micro_batch_groups=micro, logprob_difference_max=1e9, precision=precision_of(model))
    updater = Updater(model, objective=ObjectiveSettings(correction="none"), settings=settings)
    rewards = [reward_event(f"group-{number}", group) for number, group in enumerate(groups)]

    def step() -> None:
        updater.update(rewards)

    return step


def padded_step(model: nn.Module, groups: list[PromptGroup], micro: int) -> Callable[[], None]:
    """Return a step on the same groups as rows of prompt and completion, each forwarded alone."""
    parameters = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    device, halved = parameters[0].device, precision_of(model) == "bf16"
    none = torch.empty(0, dtype=torch.long, device=device)
    count = sum(len(group.candidates) for group in groups)

    def rows(part: list[PromptGroup]) -> tuple[Tensor, Tensor, Tensor]:
        texts = [(g.prompt_ids, c.token_ids, c.advantage) for g in part for c in g.candidates]
        ids = torch.tensor([[*prompt, *answer] for prompt, answer, _ in texts], device=device)
        advantages = torch.tensor([advantage for *_, advantage in texts], dtype=torch.float32, device=device)
        return ids, torch.tensor(len(part[0].prompt_ids)), advantages

    def step() -> None:
        for start in range(0, len(groups), micro):
            ids, prompt, advantages = rows(groups[start : start + micro])
            base: Any = model.get_base_model()  # type: ignore[operator]
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=halved):
                hidden = base.model(input_ids=ids, use_cache=False).last_hidden_state[:, int(prompt) - 1 : -1]
            targets, weight = ids[:, int(prompt) :], base.get_output_embeddings().weight
            logprobs, _ = target_logprobs(hidden.flatten(0, 1).to(weight.dtype), weight, targets.flatten(), none, none)
            ratio = (logprobs - logprobs.detach()).exp().view(targets.shape)
            (-(ratio * advantages[:, None]).mean(dim=1).sum() / count).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def measure(step: Callable[[], None], device: str) -> tuple[float, float]:
    """Return the seconds of one step, and the peak memory that it allocated on the GPU in GiB (0 elsewhere)."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter() - began, torch.cuda.max_memory_allocated() / 2**30
    return time.perf_counter() - began, 0.0


def compare_steps(shape: Shape, device: str, dtype: torch.dtype, *, runs: int, micro: int) -> dict[str, float]:
    """Return medians of both steps, alternating after one of each that is not counted."""
    model = random_policy(shape, device, dtype)
    generator = torch.Generator().manual_seed(0)
    groups = [
        random_group(
            generator,
            prompt=shape.prompt,
            lengths=[shape.completion] * shape.candidates,
            vocabulary=shape.vocabulary,
        )
        for _ in range(shape.groups)
    ]
    sides = {
        "packed": packed_step(copy.deepcopy(model), groups, micro),
        "padded": padded_step(model, groups, micro),
    }
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    memory: dict[str, float] = dict.fromkeys(sides, 0.0)
    for run in range(runs + 1):
        for side, step in sides.items():
            took, peak = measure(step, device)
            if run:
                seconds[side].append(took)
                memory[side] = max(memory[side], peak)
    parameters = sum(each.numel() for each in model.parameters())
    through = shape.groups * (shape.prompt + shape.candidates * (shape.completion - 1))
    plain = shape.groups * shape.candidates * (shape.prompt + shape.completion)
    took = {side: statistics.median(each) for side, each in seconds.items()}
    found = {
        "parameters": float(parameters),
        "packed_seconds": took["packed"],
        "padded_seconds": took["padded"],
        "ratio": took["packed"] / took["padded"],
        "tokens_through": float(through),
        "tokens_of_rows": float(plain),
        "tokens_per_second": through / took["packed"],
        "row_tokens_per_second": plain / took["packed"],
        "padded_tokens_per_second": plain / took["padded"],
        "packed_gib": memory["packed"],
        "padded_gib": memory["padded"],
    }
    if device == "cuda" and (peak := _peak(torch.cuda.get_device_name(0))):
        found["mfu"] = 6 * parameters * through / took["packed"] / peak
        found["padded_mfu"] = 6 * parameters * plain / took["padded"] / peak
    return found


def compare_heads(shape: Shape, device: str) -> dict[str, dict[str, float]]:
    """Return the loss head and plain torch at a vocabulary of 128k (small: the shape's)."""
    sizes = {"tokens": 4096, "vocabulary": 131_072, "hidden": 1024} if shape is LARGE else {
        "tokens": 64, "vocabulary": shape.vocabulary, "hidden": shape.hidden
    }  # fmt: skip
    sides = ("plain torch", "ours")
    if device == "cuda":
        for side in sides:
            run_side(side, device=device, **sizes)  # Kernels are loaded at their first use.
    return {side: run_side(side, device=device, **sizes) for side in sides}


def main() -> None:
    """Print what was measured, and one JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--small", action="store_true", help="Small shapes; the default without a GPU.")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--micro", type=int, default=8, help="Groups in one forward pass.")
    parser.add_argument("--out", type=Path, help="File for the JSON line.")
    given = parser.parse_args()
    device = choose_device()
    shape = SMALL if given.small or device == "cpu" else LARGE
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    print(f"{describe_device()}; {'small' if shape is SMALL else 'large'} shapes, {dtype}")
    result: dict[str, Any] = {"benchmark": "gpu", "device": describe_device(), "shape": shape._asdict()}
    result["step"] = compare_steps(shape, device, dtype, runs=given.runs, micro=given.micro)
    for name, value in result["step"].items():
        print(f"{name:>26}  {value:,.4g}")
    print(f"goals at {LARGE.layers} layers on an H100: ≥ {TOKENS_GOAL:,} tokens/s, MFU ≥ {MFU_GOAL}")
    result["head"] = compare_heads(shape, device)
    for side, values in result["head"].items():
        print(f"head, {side:>12}: {values['seconds']:.4f} s, {values['peak_mib']:,.0f} MiB")
    keep(result, given.out)
    if device == "cuda" and (ROOT / ".venv-vllm/bin/python").exists():
        release_memory()  # vLLM takes most of the memory.
        done = subprocess.run(
            [sys.executable, "tests/benchmarks/generation.py", "--runs", "1"], capture_output=True, text=True, cwd=ROOT
        )
        said = done.stdout.strip().splitlines()[-1:] if done.returncode == 0 else done.stderr.strip().splitlines()[-1:]
        result["generation"] = said
        keep(result, given.out)


def keep(result: dict[str, Any], out: Path | None) -> None:
    """Print what was measured until now as one JSON line, and write it to the file."""
    line = json.dumps(result)
    print(line, flush=True)
    if out:
        out.write_text(line + "\n")


def _peak(name: str) -> float:
    return next((flops for known, flops in PEAK_FLOPS.items() if known in name), 0.0)


if __name__ == "__main__":
    main()
