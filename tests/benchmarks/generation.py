"""Tokens a second of SmolLM2-135M-Instruct: vLLM over HTTP, as the recipe starts it, against sampling in this process.

One update's worth of prompts of the recipe's length is sampled by either side in turn: the recipe's groups, candidates
and tokens. vLLM has the recipe's precision, this process fp32, either one thread; neither ends a text early but by its
end token, and tokens that were written count. The adapters are fresh ones, which change nothing. Beside the tokens
stands the swap: the time from a version's checkpoint on the disk until the server writes with its adapter.

Run: python tests/benchmarks/generation.py [--prompt-tokens 300] [--runs 5]; `make smollm2 vllm` first.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import msgspec

from infra.app.layers import combine, read_toml
from infra.app.settings import Settings
from infra.recipes.files import recipe_path
from learner.checkpoints import Manifest
from learner.learning import write_policy_checkpoint
from learner.policy import Policy, load_policy, unpack_smollm2, with_lora
from learner.policy_settings import LoraSettings
from learner.sampling import Sampler, TransformersSampler
from learner.serving import ServedVersion
from search_env.catalogue.generated import DemoSettings, demo_catalogue
from services.policy_server import PolicyServer
from services.vllm import VllmModel
from streams.events import PolicyRef

RECIPE = "leser-smollm2"
SWAPS = 5


def main() -> None:
    """Start the server, time both sides in turn, print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prompt-tokens", type=int, default=300)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()

    settings = combine(Settings, [(RECIPE, read_toml(recipe_path(RECIPE)))])
    with tempfile.TemporaryDirectory(prefix="searchloop-bench-", ignore_cleanup_errors=True) as home:
        base = unpack_smollm2(Path(home) / "smollm2")
        first, *others = written_versions(base, settings.policy.lora, Path(home) / "checkpoints", count=1 + SWAPS)
        text = " ".join(each.title for each in demo_catalogue(DemoSettings()))
        words = base.tokenizer(text)["input_ids"]
        length, groups = options.prompt_tokens, settings.batch.groups
        server = PolicyServer(home, settings.vllm_server)
        begun = time.perf_counter()
        try:
            model = VllmModel(
                folder=str(base.path),
                rank=settings.policy.lora.rank,
                adapters_max=settings.batch.staleness_max + 2,
            )
            url = server.start(model)
            start_seconds = time.perf_counter() - begun
            served = ServedVersion(
                *first,
                url=url,
                settings=msgspec.structs.replace(settings.vllm, api_key=server.key(), allow_insecure=True),
                directory=Path(home),
                staleness_max=settings.batch.staleness_max,
                difference_max=settings.learner.update.logprob_difference_max,
            )
            in_process = TransformersSampler(load_policy(first[0]), first[1])
            samplers: dict[str, Sampler] = {"vLLM": served.sampler, "in process": in_process}
            speeds: dict[str, list[float]] = {name: [] for name in samplers}
            seconds: dict[str, list[float]] = {name: [] for name in samplers}
            for run in range(options.runs + 1):
                # Other prompts each time, so that no server's memory of them helps.
                starts = [(run * groups + group) * length for group in range(groups)]
                prompts = [words[start : start + length] for start in starts]
                for name in samplers if run % 2 else reversed(samplers):
                    began = time.perf_counter()
                    written = samplers[name].sample(prompts, settings.generation.sampling(), range(groups))
                    took = time.perf_counter() - began
                    if run:  # The first one warms both.
                        speeds[name].append(sum(len(each.token_ids) for group in written for each in group) / took)
                        seconds[name].append(took)
            swaps = swap_seconds(served, others)
            served.close()
        finally:
            server.stop()
    result = {
        "benchmark": "generation",
        "model": "SmolLM2-135M-Instruct",
        "groups": groups,
        "candidates": settings.generation.candidates,
        "tokens_max": settings.generation.tokens_max,
        "prompt_tokens": length,
        "runs": options.runs,
        "tokens_per_second": {name: round(statistics.median(each), 1) for name, each in speeds.items()},
        "seconds_an_update": {name: round(statistics.median(each), 2) for name, each in seconds.items()},
        "start_seconds": round(start_seconds, 1),
        "swap_seconds": round(statistics.median(swaps), 4),
        "load_average": round(os.getloadavg()[0], 1),
    }
    print(
        f"{groups} groups of {result['candidates']}, prompts of {length} tokens, median of {options.runs} runs in turn"
    )
    for name in speeds:
        print(
            f"  {name:<12} {statistics.median(speeds[name]):7.1f} tokens/s  {statistics.median(seconds[name]):6.2f} s"
        )
    print(f"  a swap of the adapter takes {statistics.median(swaps):.3f} s")
    print(json.dumps(result))


def written_versions(
    base: Policy, lora: LoraSettings, checkpoints: Path, *, count: int
) -> list[tuple[Path, PolicyRef]]:
    """Write versions of a policy with fresh adapters, as the learner writes them."""
    found = []
    for step in range(count):
        assert base.path is not None
        policy = with_lora(load_policy(base.path), lora)
        manifest = Manifest(policy=PolicyRef(lineage="1-bench", step=step, sha256=""), parent=None)
        folder, written = write_policy_checkpoint(checkpoints, policy, manifest, None)
        found.append((folder, written.policy))
    return found


def swap_seconds(served: ServedVersion, versions: Sequence[tuple[Path, PolicyRef]]) -> list[float]:
    """Return how long each of these versions takes from the disk to the server."""
    seconds = []
    for folder, reference in versions:
        began = time.perf_counter()
        served.refresh(folder, reference)
        seconds.append(time.perf_counter() - began)
    return seconds


if __name__ == "__main__":
    main()
