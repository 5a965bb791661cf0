"""Generation: one pure step that turns requests into groups, with prompts, seeds and candidates.

The streaming generator and the loop in one process both call `generate_groups`. Its result depends only on the
requests, their places in the log, the policy and the run's seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import msgspec

from learner.sampling import Sampler
from streams.events import Generation, Position, Request, Sampling
from streams.ids import group_id, group_seed, prompt_sha256

Encode = Callable[[Any, Request], list[int]]
"""A recipe's prompt: the token ids, in this tokenizer, of the text that the policy sees for a request."""


class GenerationSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings for sampling groups during training.

    backend: the writer of completions. `transformers` runs the policy in the generator's own process. `vllm` uses a
    vLLM server over HTTP (see the tables `vllm` and `vllm_server`); it needs a policy with LoRA and `no_repeat` off.
    chunk_groups: groups written at once; 0 means the batch's size, so that one policy version writes one batch.
    linger_seconds: how long the generator waits for a chunk to fill.
    """

    backend: Literal["transformers", "vllm"] = "transformers"
    candidates: Annotated[int, msgspec.Meta(ge=2, le=64, description="G, candidates in a group")] = 8
    temperature: Annotated[float, msgspec.Meta(gt=0, le=2, description="LESER samples at .9")] = 0.9
    tokens_max: Annotated[int, msgspec.Meta(ge=2, le=4096)] = 24
    no_repeat: bool = True
    chunk_groups: Annotated[int, msgspec.Meta(ge=0, le=4096)] = 0
    linger_seconds: Annotated[float, msgspec.Meta(ge=0, le=60)] = 1.0

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
