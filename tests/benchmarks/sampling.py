"""Tokens a second of a selector: our sampler against transformers' `generate`, which samples the same distribution.

The policy has the recipe's shape and untaught weights, the prompts the length that the LESER recipe's have, each with
every pointer in it. `generate` gets a logits processor that lets through what a selector may write; both sides sample
the recipe's candidates at its temperature, one thread, in turn, and tokens that were written count. Greedy decoding
of one answer a prompt, as a policy serves, is timed beside it, and there both sides must write the same tokens.

Run: python tests/benchmarks/sampling.py [--prompt-tokens 128] [--runs 5]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from infra.app.layers import combine, read_toml
from infra.app.settings import Settings
from infra.recipes.files import recipe_path
from learner.policy import Policy, build_tiny
from learner.sampling import TransformersSampler
from learner.selecting import banned_pointers
from search_env.catalogue.generated import DemoSettings, demo_catalogue
from streams.events import PolicyRef, Sampling


class SelectorOnly(LogitsProcessor):  # type: ignore[misc]  # transformers has no stubs
    """Bans, row by row, what `learner.selecting` says that a selector may not write."""

    def __init__(self, policy: Policy, prompt_tokens: int) -> None:
        assert policy.selector is not None
        self._selector, self._prompt_tokens = policy.selector, prompt_tokens

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return `scores` [N, V] with what is banned at -inf; input_ids: [N, P + t]."""
        kept = torch.full_like(scores, -torch.inf)
        answers = list(self._selector.answer_ids)
        kept[:, answers] = scores[:, answers]
        for row, ids in enumerate(input_ids.tolist()):
            banned = banned_pointers(ids[: self._prompt_tokens], ids[self._prompt_tokens :], self._selector)
            kept[row, list(banned)] = -torch.inf
        return kept


def main() -> None:
    """Time both sides in turn, print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()

    torch.set_num_threads(1)
    settings = combine(Settings, [("leser", read_toml(recipe_path("leser")))])
    texts = [f"{each.title} {each.text}" for each in demo_catalogue(DemoSettings())]
    policy = build_tiny(texts, settings.policy.tiny, pointers=settings.prompts.pointers)
    assert policy.selector is not None
    pointers, groups = list(policy.selector.pointer_ids), settings.batch.groups
    chance = random.Random(0)
    words = [token for token in range(len(policy.tokenizer)) if token not in policy.selector.answer_ids]
    fill = options.prompt_tokens - len(pointers)
    ours = TransformersSampler(policy, PolicyRef(lineage="bench", step=0, sha256="0" * 64))

    def theirs(prompts: list[list[int]], sampling: Sampling) -> list[list[int]]:
        drawn: dict[str, Any] = {"do_sample": False}
        if sampling.temperature > 0:
            drawn = {"do_sample": True, "temperature": sampling.temperature, "top_k": 0, "top_p": 1.0}
        found = policy.model.generate(
            torch.tensor(prompts),
            attention_mask=torch.ones(len(prompts), options.prompt_tokens, dtype=torch.long),
            max_new_tokens=sampling.tokens_max,
            num_return_sequences=sampling.candidates,
            logits_processor=LogitsProcessorList([SelectorOnly(policy, options.prompt_tokens)]),
            pad_token_id=policy.pad_id,
            **drawn,
        )
        return [_until_end(row, policy) for row in found[:, options.prompt_tokens :].tolist()]

    def by_us(prompts: list[list[int]], sampling: Sampling) -> list[list[int]]:
        found = ours.sample(prompts, sampling, list(range(len(prompts))))
        return [list(each.token_ids) for group in found for each in group]

    report: dict[str, dict[str, float]] = {}
    values: dict[str, list[float]] = {}
    ways = {"sampled": settings.generation.sampling(), "greedy": settings.generation.greedy()}
    for way, sampling in ways.items():
        speeds: dict[str, list[float]] = {"ours": [], "generate": []}
        for run in range(options.runs + 1):
            prompts = [chance.sample(words, fill) + chance.sample(pointers, len(pointers)) for _ in range(groups)]
            written: dict[str, list[list[int]]] = {}
            for name in speeds if run % 2 else reversed(speeds):
                begun = time.perf_counter()
                written[name] = (by_us if name == "ours" else theirs)(prompts, sampling)
                speed = sum(map(len, written[name])) / (time.perf_counter() - begun)
                if run > 0:  # The first warms both up.
                    speeds[name].append(speed)
            if sampling.temperature == 0 and written["ours"] != written["generate"]:
                raise SystemExit("greedy decoding: both sides should write the same tokens, and do not")
        medians = {name: statistics.median(values) for name, values in speeds.items()}
        values[way] = [a / b for a, b in zip(speeds["ours"], speeds["generate"], strict=True)]
        ratio = statistics.median(values[way])
        report[way] = medians | {"ratio": ratio}
        print(
            f"{way}: {groups} prompts of {options.prompt_tokens} tokens, {sampling.candidates} answers each: ours "
            f"{medians['ours']:,.0f} tokens/s, generate {medians['generate']:,.0f}, ratio {ratio:.2f}"
        )
    said = {"values": {"sampling": values["sampled"]}, "sides": {"sampling": report["sampled"]}}
    print(json.dumps({"load": os.getloadavg()[0], "runs": options.runs} | report | said))


def _until_end(ids: list[int], policy: Policy) -> list[int]:
    ends = [place for place, token in enumerate(ids) if token in policy.stop_ids]
    return ids[: ends[0] + 1] if ends else ids


if __name__ == "__main__":
    main()
