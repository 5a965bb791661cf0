"""Candidates from the policy: the samplers' interface, and the sampler that runs in this process.

A group's prompt is forwarded once, and its cache is repeated for the G candidates; finished rows leave the batch. For a
selector, only the logits of its few dozen answer tokens are computed, out of several thousand. All randomness is drawn
before the first token, from the group's own seed, and used by inverse transform. A group's candidates depend only on
its seed and its prompt, except for the last float bits if the batch has another shape; the same batch gives the same
bits. The log-probabilities are those of exactly the distribution that was sampled from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Protocol

import msgspec
import torch
from torch import Tensor

from learner.constraints import banned_next
from learner.logprobs import causal_lm
from learner.policy import Policy
from learner.selecting import banned_pointers
from streams.errors import SearchloopError
from streams.events import Completion, PolicyRef, Sampling


class SamplingError(SearchloopError, RuntimeError):
    """The policy cannot be sampled from: a prompt is too long, or numbers are not finite."""


class PromptError(SamplingError):
    """Some prompts are empty or leave no room for an answer, which is their requests' fault. prompts: their places."""

    def __init__(self, message: str, prompts: Sequence[int]) -> None:
        super().__init__(message)
        self.prompts = tuple(prompts)


class SamplerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The in-process sampler's use of the machine. It does not change the candidates, except for last float bits."""

    rows_max: Annotated[int, msgspec.Meta(ge=1, description="candidates decoded at once; bounds memory")] = 256


class Sampler(Protocol):
    """The interface of objects that write candidates for prompts."""

    policy: PolicyRef

    def sample(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int]
    ) -> list[list[Completion]]:
        """Return `sampling.candidates` completions for each prompt (token ids); there is one seed per prompt."""
        ...


class TransformersSampler:
    """Samples from a policy in this process, on the device that holds its weights."""

    def __init__(self, policy: Policy, reference: PolicyRef, settings: SamplerSettings | None = None) -> None:
        self.policy = reference
        self._model = policy.model
        self._tokenizer = policy.tokenizer
        self._stop_ids = policy.stop_ids
        self._pad_id = policy.pad_id
        self._opener_ids = policy.opener_ids
        self._selector = policy.selector
        answers = policy.selector.answer_ids if policy.selector else None
        self._answer_ids = torch.tensor(answers, device=policy.model.device) if answers else None  # [A]
        self._settings = settings or SamplerSettings()

    @torch.inference_mode()
    def sample(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int]
    ) -> list[list[Completion]]:
        """Return the completions, [B][G]. Temperature 0 decodes greedily, and every log-probability is then 0.

        Raises PromptError if a prompt is empty or too long, and SamplingError if counts disagree or a logit is not
        finite.
        """
        if len(prompts) != len(seeds):
            raise SamplingError(f"sampling: expected one seed for each of {len(prompts)} prompts, got {len(seeds)}")
        room = getattr(self._model.config, "max_position_embeddings", None)
        unfit = [
            place
            for place, prompt in enumerate(prompts)
            if not prompt or (room is not None and len(prompt) + sampling.tokens_max > room)
        ]
        if unfit:
            raise PromptError(
                f"sampling: expected a prompt of 1 to {(room or 0) - sampling.tokens_max} tokens, got "
                f"{len(prompts[unfit[0]])}",
                unfit,
            )
        self._model.eval()
        # Greedy candidates are identical: write one and repeat it.
        drawn = sampling.candidates if sampling.temperature > 0 else 1
        groups = max(1, self._settings.rows_max // drawn)
        completions: list[list[Completion]] = []
        for start in range(0, len(prompts), groups):
            completions += self._sample_block(
                prompts[start : start + groups], sampling, seeds[start : start + groups], drawn
            )
        return [group * (sampling.candidates // drawn) for group in completions]

    def _sample_block(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int], drawn: int
    ) -> list[list[Completion]]:
        device = next(self._model.parameters()).device
        rows = len(prompts) * drawn  # N
        uniforms = draw_uniforms(seeds, candidates=drawn, tokens=sampling.tokens_max).to(device)  # [N, T]
        logits, cache, mask, position = self._forward_prompts(
            prompts, drawn, sampling.tokens_max, device
        )  # [N, V] or [N, A], …, [N, P], [N]
        allowed = self._allowed(prompts, drawn, device)  # [N, A] for a selector
        tokens = torch.full((rows, sampling.tokens_max), -1, dtype=torch.long, device=device)  # [N, T]
        logprobs = torch.zeros((rows, sampling.tokens_max), dtype=torch.float32, device=device)  # [N, T]
        stops = torch.tensor(self._stop_ids, device=device)
        active = torch.arange(rows, device=device)
        for step in range(sampling.tokens_max):
            if allowed is not None:
                logits = logits.masked_fill(~allowed[active], -torch.inf)
            elif sampling.no_repeat:
                self._ban_repeats(logits, tokens[active, :step])
            chosen, logprob = choose(logits, temperature=sampling.temperature, uniforms=uniforms[active, step])
            if allowed is not None and self._answer_ids is not None:
                allowed[active, chosen] = False
                chosen = self._answer_ids[chosen]
            tokens[active, step], logprobs[active, step] = chosen, logprob
            going = (~torch.isin(chosen, stops)).nonzero().squeeze(1)
            if len(going) == 0 or step + 1 == sampling.tokens_max:
                break
            if len(going) < len(active):
                active, chosen, mask, position = active[going], chosen[going], mask[going], position[going]
                cache.batch_select_indices(going)
            mask = torch.cat([mask, mask.new_ones(len(active), 1)], dim=1)
            logits = self._next_logits(chosen[:, None], mask, position[:, None], cache)
            position = position + 1
        return self._completions(tokens, logprobs, drawn)

    def _forward_prompts(
        self, prompts: Sequence[Sequence[int]], drawn: int, tokens: int, device: torch.device
    ) -> tuple[Tensor, Any, Tensor, Tensor]:
        """Forward each prompt once, padded on the left, and repeat the results for its candidates."""
        from learner.caching import RoomyCache

        longest = max(map(len, prompts))
        ids = torch.tensor([[self._pad_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts])  # [B, P]
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])  # [B, P]
        ids, mask = ids.to(device), mask.to(device)
        cache = RoomyCache(tokens=tokens)
        logits = self._next_logits(ids, mask, (mask.cumsum(1) - 1).clamp(min=0), cache)
        cache.batch_repeat_interleave(drawn)
        return (
            logits.repeat_interleave(drawn, dim=0),
            cache,
            mask.repeat_interleave(drawn, dim=0),
            mask.sum(1).repeat_interleave(drawn),
        )

    def _next_logits(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Tensor:
        """Forward `ids` [N, t] on top of the cache; return the last logits, [N, V], or [N, A] for a selector."""
        inputs = {
            "input_ids": ids,
            "attention_mask": mask,
            "position_ids": positions,
            "past_key_values": cache,
            "use_cache": True,
        }
        if self._answer_ids is None:
            logits: Tensor = self._model(**inputs, logits_to_keep=1).logits[:, -1]
        else:
            causal = causal_lm(self._model)
            hidden = causal.base_model(**inputs).last_hidden_state[:, -1]  # [N, D]
            logits = hidden @ causal.get_output_embeddings().weight[self._answer_ids].T
        return logits.float()

    def _ban_repeats(self, logits: Tensor, prefixes: Tensor) -> None:
        """Set the tokens that may not follow each prefix [N, t] to -inf in `logits` [N, V]."""
        for row, prefix in enumerate(prefixes.tolist()):
            if banned := banned_next(prefix, self._opener_ids):
                logits[row, list(banned)] = -torch.inf

    def _allowed(self, prompts: Sequence[Sequence[int]], drawn: int, device: torch.device) -> Tensor | None:
        """Return [N, A]: the answer tokens with which a selector's row may begin; None for other policies."""
        if self._selector is None:
            return None
        banned = [banned_pointers(prompt, (), self._selector) for prompt in prompts]
        answers = self._selector.answer_ids
        allowed = torch.tensor([[answer not in each for answer in answers] for each in banned], device=device)
        return allowed.repeat_interleave(drawn, dim=0)

    def _completions(self, tokens: Tensor, logprobs: Tensor, drawn: int) -> list[list[Completion]]:
        completions = []
        for row, values in zip(tokens.tolist(), logprobs.tolist(), strict=True):
            ids = [token for token in row if token >= 0]
            completions.append(
                Completion(
                    text=completion_text(self._tokenizer, ids, self._stop_ids),
                    token_ids=tuple(ids),
                    logprobs=tuple(values[: len(ids)]),
                    finish="stop" if ids[-1] in self._stop_ids else "length",
                )
            )
        return [completions[start : start + drawn] for start in range(0, len(completions), drawn)]


def completion_text(tokenizer: Any, ids: Sequence[int], stop_ids: Sequence[int]) -> str:
    """Return the text, without an end token that is not part of the answer (`<|im_end|>`, but not `"]</answer>`).

    It does not use skip_special_tokens: TRL makes the tokenizer's end token special, and the tiny policy's end token is
    part of the answer.
    """
    if ids and ids[-1] in stop_ids and not tokenizer.decode(ids[-1:]).endswith("</answer>"):
        ids = ids[:-1]
    text: str = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


def draw_uniforms(seeds: Sequence[int], *, candidates: int, tokens: int) -> Tensor:
    """Return [B·G, T] numbers in [0, 1) on the CPU; each group's numbers come from its own seed."""
    blocks = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed % 2**63)
        blocks.append(torch.rand((candidates, tokens), generator=generator, dtype=torch.float64))
    return torch.cat(blocks)


def choose(logits: Tensor, *, temperature: float, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Return one token for each row, and the log-probability with which it was drawn.

    logits: [N, V], -inf where banned. uniforms: [N] in [0, 1). Returns [N] and [N].
    Inverse transform: the first token whose cumulative probability exceeds u. u is scaled to the row's own sum, so that
    rounding never chooses a token past the last possible one. Raises SamplingError if a row has no finite logit.
    """
    if not torch.isfinite(logits.amax(-1)).all():
        raise SamplingError("sampling: the policy's logits are not finite; its weights are damaged")
    if temperature == 0:
        chosen = logits.argmax(-1)
        return chosen, torch.zeros_like(chosen, dtype=torch.float32)
    logprobs = torch.log_softmax(logits / temperature, dim=-1)  # [N, V]
    cumulative = logprobs.exp().cumsum(-1)  # [N, V]
    total = cumulative[:, -1]  # [N]
    below = torch.minimum(uniforms.float() * total, torch.nextafter(total, torch.zeros_like(total)))
    chosen = torch.searchsorted(cumulative, below[:, None], right=True).squeeze(1)  # [N]
    return chosen, logprobs.gather(1, chosen[:, None]).squeeze(1)
