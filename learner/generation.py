"""Generation: one pure step that turns requests into groups, with prompts, seeds and candidates.

The streaming generator and the loop in one process both call `generate_groups`. Its result depends only on the
requests, their places in the log, the policy and the run's seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import msgspec

from learner.sampling import Sampler
from streams.descriptions import describe
from streams.events import Generation, Position, Request, Sampling
from streams.ids import group_id, group_seed, prompt_sha256

Encode = Callable[[Any, Request], list[int]]
"""A recipe's prompt: the token ids, in this tokenizer, of the text that the policy sees for a request."""


class GenerationSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings for sampling groups during training."""

    backend: Annotated[
        Literal["transformers", "vllm"],
        describe(
            "Writer of completions: `transformers` in the generator's own process, or a `vllm` server, which "
            "needs LoRA and no_repeat off.",
            common=True,
        ),
    ] = "transformers"
    candidates: Annotated[
        int,
        msgspec.Meta(ge=2, le=64),
        describe(
            "Completions that the policy writes for each request (G). More give a better estimate of the "
            "advantages and cost more searches.",
            common=True,
        ),
    ] = 8
    temperature: Annotated[
        float,
        msgspec.Meta(gt=0, le=2),
        describe("Temperature of sampling. A larger value gives more varied completions. LESER samples at .9."),
    ] = 0.9
    tokens_max: Annotated[int, msgspec.Meta(ge=2, le=4096), describe("Largest number of tokens in a completion.")] = 24
    top_p: Annotated[
        float,
        describe(
            "Share of the distribution that is sampled from. Only 1, all of it: the learner's importance ratios need "
            "the log-probabilities of the whole distribution."
        ),
    ] = 1.0
    top_k: Annotated[
        int, describe("Number of tokens that are sampled from. Only 0, all tokens, for the same reason as top_p.")
    ] = 0
    no_repeat: Annotated[
        bool,
        describe("True forbids the policy to write an expansion twice in one answer. vLLM does not know this rule."),
    ] = True
    chunk_groups: Annotated[
        int,
        msgspec.Meta(ge=0, le=4096),
        describe(
            "Groups that are written at once. 0: the size of a batch, so that one policy version writes one batch."
        ),
    ] = 0
    linger_seconds: Annotated[
        float, msgspec.Meta(ge=0, le=60), describe("Time that the generator waits for a chunk to fill.")
    ] = 1.0

    def __post_init__(self) -> None:
        """Raise ValueError for sampling from a part of the distribution."""
        why = (
            "a cut distribution gives tokens other probabilities than the learner computes, so the importance ratios "
            "would be wrong. Lower generation.temperature instead"
        )
        if self.top_p != 1.0:
            raise ValueError(f"top_p: expected 1, got {self.top_p}: {why}")
        if self.top_k not in (0, -1):
            raise ValueError(f"top_k: expected 0 (all tokens), got {self.top_k}: {why}")

    def sampling(self) -> Sampling:
        """Return these settings in the form that the events carry."""
        return Sampling(
            candidates=self.candidates,
            temperature=self.temperature,
            tokens_max=self.tokens_max,
            no_repeat=self.no_repeat,
        )

    def greedy(self) -> Sampling:
        """Return the sampling for serving: one greedy candidate, which never writes an expansion twice.

        The no-repeat rule holds here even if vLLM, which does not know the rule, writes the training answers without
        it. Without sampling, a small model repeats its likeliest word until no room is left to end the list.
        """
        return Sampling(candidates=1, temperature=0.0, tokens_max=self.tokens_max, no_repeat=True)


def generate_groups(
    requests: Sequence[tuple[Position, Request]],
    *,
    sampler: Sampler,
    tokenizer: Any,
    tokenizer_sha256: str,
    encode_prompt: Encode,
    sampling: Sampling,
    seed: int,
    made_at_ms: int,
) -> list[Generation]:
    """Return one group for each request, in the requests' order."""
    prompt_ids = [encode_prompt(tokenizer, request) for _, request in requests]
    groups = [group_id(request.run, position) for position, request in requests]
    completions = sampler.sample(prompt_ids, sampling, [group_seed(group, seed) for group in groups])
    return [
        Generation(
            group_id=group,
            request=request,
            source=position,
            policy=sampler.policy,
            tokenizer_sha256=tokenizer_sha256,
            prompt_sha256=prompt_sha256(ids),
            sampling=sampling,
            prompt_token_ids=tuple(ids),
            completions=tuple(texts),
            made_at_ms=made_at_ms,
        )
        for (position, request), group, ids, texts in zip(requests, groups, prompt_ids, completions, strict=True)
    ]
