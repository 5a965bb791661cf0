"""The policy's log-probabilities and entropies at a packed batch's completion tokens, with their gradients.

The ordinary forward of a transformers causal LM runs up to the hidden states: once over the prompts to fill a cache,
and once over the completions on top of it. The vocabulary is projected only at positions that predict a completion
token. One function gives log-probability and entropy together and keeps what its backward pass needs. It
needs three matrix products in all, and none for the prompt.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from learner.packing import PackedGroups
from streams.errors import SearchloopError

# exp gives exactly 0, and 0 · BANNED_LOGIT is 0; 0 · -inf would be NaN in the entropy and its gradient.
BANNED_LOGIT = -1e30
KEPT_BYTES_MAX = 1 << 28
CHUNK_ELEMENTS = 1 << 21
BLOCK_ELEMENTS = 1 << 18  # 1 MiB in fp32.
CHUNK_ROWS_MIN = 128  # Each chunk reads the whole head: 16 rows at a time took 1.8 times as long at V = 128k.


class PolicyUnfitError(SearchloopError, ValueError):
    """This model cannot be trained on packed groups. The message says what to change."""


def check_policy(model: nn.Module) -> None:
    """Raise PolicyUnfitError unless packed groups give exactly this model's plain log-probabilities and gradients.

    Refused: dropout, gradient checkpointing, attention that takes no 4-D mask, prompt-learning adapters, and output
    heads with a bias, an adapter, a scale or a soft cap.
    """
    causal, config = causal_lm(model), causal_lm(model).config
    dropouts = {name for name, module in model.named_modules() if isinstance(module, nn.Dropout) and module.p > 0}
    dropouts |= {
        f"config.{key}"
        for key, value in config.to_dict().items()
        if key.endswith(("dropout", "pdrop")) and "classifier" not in key and isinstance(value, float) and value > 0
    }
    if dropouts:
        # With dropout, the learner's log-probabilities are random and never equal those that the sampler logged.
        raise PolicyUnfitError(f"expected dropout 0, got more in {', '.join(sorted(dropouts))}. Set it to 0.")
    if getattr(causal, "is_gradient_checkpointing", False):
        raise PolicyUnfitError(
            "expected transformers' gradient checkpointing off, because it drops the prompt's cache. Call "
            "model.gradient_checkpointing_disable(), and set learner.update.recompute."
        )
    if config._attn_implementation not in ("sdpa", "eager"):
        raise PolicyUnfitError(
            f"expected attention 'sdpa' or 'eager' (they take 4-D masks), got {config._attn_implementation!r}. "
            "Load the policy with attn_implementation='sdpa'."
        )
    if any(getattr(peft, "is_prompt_learning", False) for peft in getattr(model, "peft_config", {}).values()):
        raise PolicyUnfitError("expected LoRA or full weights, got a prompt-learning adapter")
    head = causal.get_output_embeddings()
    if type(head) is not nn.Linear or head.bias is not None:
        raise PolicyUnfitError(
            f"expected a plain linear output head without bias, got {head}. Keep lm_head out of the adapter's modules."
        )
    for key in ("final_logit_softcapping", "logit_scale", "logits_scaling", "output_multiplier", "lm_head_multiplier"):
        if getattr(config, key, None) not in (None, 1.0):
            raise PolicyUnfitError(f"expected plain logits, got config.{key}={getattr(config, key)}")


def positions_max(model: nn.Module) -> int:
    """Return the longest prompt + completion, in tokens, that packed groups represent exactly.

    A 4-D mask overrides a sliding window, so no row longer than the window may be packed.
    """
    config = causal_lm(model).config
    window = getattr(config, "sliding_window", None)
    limits = [getattr(config, "max_position_embeddings", None), window]
    return min((limit for limit in limits if isinstance(limit, int)), default=1 << 30)


def vocabulary_size(model: nn.Module) -> int:
    """Return V, the number of token ids that the policy knows."""
    return int(causal_lm(model).get_input_embeddings().weight.shape[0])


def causal_lm(model: nn.Module) -> Any:
    """Return the transformers model inside its PEFT wrapper (whose adapters live inside the model's layers)."""
    unwrap = getattr(model, "get_base_model", None)
    return model if unwrap is None else unwrap()


def completion_logprobs(model: nn.Module, packed: PackedGroups) -> tuple[Tensor, Tensor]:
    """Return each completion token's log-probability and the entropy of its distribution, both [N, C], 0 at padding.

    The distribution is the sampler's: logits are divided by the group's temperature. Tokens that the no-repeat rule
    bans, and tokens that a selector never writes, are removed before the softmax. Entropy is in nats. Both results are
    float32 and differentiable.
    """
    causal = causal_lm(model)
    hidden = causal.base_model(
        input_ids=packed.input_ids,
        attention_mask=_attention_mask(causal, packed.attention),
        position_ids=packed.position_ids,
        past_key_values=_prompt_cache(causal, packed.prefix_ids),
        use_cache=True,
    ).last_hidden_state  # [B, T, D]
    hidden = hidden.flatten(0, 1).index_select(0, packed.positions)  # [M, D]
    hidden, weight = _as_products(hidden, causal.get_output_embeddings().weight)
    targets, banned_tokens = packed.targets, packed.banned_tokens
    if packed.answer_ids is not None:  # A selector's vocabulary is a few dozen of several thousand tokens.
        weight = weight.index_select(0, packed.answer_ids)
        targets, banned_tokens = (torch.searchsorted(packed.answer_ids, ids) for ids in (targets, banned_tokens))
    with torch.autocast(hidden.device.type, enabled=False):
        logprobs, entropies = target_logprobs(
            hidden / packed.temperatures[:, None].to(hidden.dtype), weight, targets, packed.banned_rows, banned_tokens
        )
    empty = torch.zeros(packed.mask.shape, dtype=logprobs.dtype, device=logprobs.device)
    return empty.masked_scatter(packed.mask, logprobs), empty.masked_scatter(packed.mask, entropies)


def _as_products(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return hidden states and head in the format of matrix products: autocast's, if it is on."""
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        return hidden.to(dtype), weight.to(dtype)
    return hidden, weight.to(hidden.dtype)


def _prompt_cache(causal: Any, prefix_ids: Tensor) -> Any:
    """Return a cache with every layer's keys and values of the prompts, differentiable.

    The last layer's other results are not used, so their backward pass costs nothing.
    """
    from transformers import DynamicCache

    cache = DynamicCache()
    if prefix_ids.shape[1] > 0:
        # No mask is needed: under causal attention, the padding after a shorter prompt changes nothing before it.
        causal.base_model(input_ids=prefix_ids, past_key_values=cache, use_cache=True)
    return cache


def _attention_mask(causal: Any, attention: Tensor) -> Tensor:
    """Return the 4-D mask in transformers' form: bool for sdpa (True = attend), added to the scores for eager."""
    mask = attention[:, None]  # [B, 1, T, P - 1 + T]
    if causal.config._attn_implementation == "sdpa":
        return mask
    return torch.zeros_like(mask, dtype=causal.dtype).masked_fill(~mask, torch.finfo(causal.dtype).min)


def target_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, banned_rows: Tensor, banned_tokens: Tensor
) -> tuple[Tensor, Tensor]:
    """Return log softmax(hidden · weightᵀ)[target] and the softmax's entropy, both [M], float32.

    hidden: [M, D], already divided by the temperature. weight: [V, D]. targets: [M].
    banned_rows, banned_tokens: [K] entries of the [M, V] logits that get probability 0; rows ascending.
    """
    logprobs, entropies = _TargetLogprobs.apply(hidden, weight, targets, banned_rows, banned_tokens)
    return logprobs, entropies


class _TargetLogprobs(torch.autograd.Function):
    """Chunked output head. With p = softmax(z): ∂log p_t/∂z = 1_t − p and ∂H/∂z = −p·(log p + H).

    log p is kept for the backward pass if it fits KEPT_BYTES_MAX, and computed again otherwise, from z and log Σ exp z.
    Matrix products go over whole chunks. All else goes over a few rows at a time, which the processor's cache holds.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, banned_rows: Tensor, banned_tokens: Tensor
    ) -> tuple[Tensor, Tensor]:
        kept: list[Tensor] = []
        keep = hidden.shape[0] * weight.shape[0] * 4 <= KEPT_BYTES_MAX
        logprobs = torch.empty(hidden.shape[0], dtype=_accumulator(hidden), device=hidden.device)
        entropies, normalizers = torch.empty_like(logprobs), torch.empty_like(logprobs)
        for start, end in _chunks(hidden.shape[0], weight.shape[0]):
            logits = _logits(hidden, weight, banned_rows, banned_tokens, start, end)  # [m, V]
            for rows, part in _blocks(logits, start):
                largest, where = part.max(dim=1)
                logs = part.log_softmax(dim=1)
                logprobs[rows] = logs.gather(1, targets[rows, None]).squeeze(1)
                normalizers[rows] = largest - logs.gather(1, where[:, None]).squeeze(1)
                entropies[rows] = -torch.linalg.vecdot(logs.exp(), logs)
                if keep:
                    part.copy_(logs)
            if keep:
                kept.append(logits)
        ctx.save_for_backward(hidden, weight, targets, banned_rows, banned_tokens, entropies, normalizers, *kept)
        ctx.set_materialize_grads(False)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, banned_rows, banned_tokens, entropies, normalizers, *kept = ctx.saved_tensors
        grad_logprobs = torch.zeros_like(entropies) if grads[0] is None else grads[0]
        grad_entropies = grads[1]
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        # Summed over the chunks in fp32: in bf16, the sum of many chunks would lose the small ones.
        grad_weight = torch.zeros_like(weight, dtype=_accumulator(hidden)) if ctx.needs_input_grad[1] else None
        for number, (start, end) in enumerate(_chunks(hidden.shape[0], weight.shape[0])):
            if kept:
                grad_logits = torch.empty_like(kept[number])
            else:
                grad_logits = _logits(hidden, weight, banned_rows, banned_tokens, start, end)
            for rows, part in _blocks(grad_logits, start):
                logs = (
                    kept[number][rows.start - start : rows.stop - start] if kept else part.sub_(normalizers[rows, None])
                )
                factor = -grad_logprobs[rows, None]
                if grad_entropies is not None:
                    of_entropy = -grad_entropies[rows, None]
                    factor = torch.addcmul(factor + of_entropy * entropies[rows, None], logs, of_entropy)
                torch.exp(logs, out=part)
                part.mul_(factor)
                part.scatter_add_(1, targets[rows, None], grad_logprobs[rows, None])
            grad_logits = grad_logits.to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(grad_logits, weight, out=grad_hidden[start:end])
            if grad_weight is not None and grad_weight.dtype == grad_logits.dtype:
                grad_weight.addmm_(grad_logits.T, hidden[start:end])
            elif grad_weight is not None:
                grad_weight += grad_logits.T @ hidden[start:end]
        return grad_hidden, grad_weight if grad_weight is None else grad_weight.to(weight.dtype), None, None, None


def _logits(hidden: Tensor, weight: Tensor, banned_rows: Tensor, banned_tokens: Tensor, start: int, end: int) -> Tensor:
    logits = (hidden[start:end] @ weight.T).to(_accumulator(hidden))
    inside = (banned_rows >= start) & (banned_rows < end)
    logits[banned_rows[inside] - start, banned_tokens[inside]] = BANNED_LOGIT
    return logits


def _blocks(chunk: Tensor, start: int) -> Iterator[tuple[slice, Tensor]]:
    """Yield a few rows of a chunk at a time: their place in the batch, and a view of them."""
    size = max(1, BLOCK_ELEMENTS // chunk.shape[1]) if chunk.device.type == "cpu" else chunk.shape[0]
    for first in range(0, chunk.shape[0], size):
        last = min(chunk.shape[0], first + size)
        yield slice(start + first, start + last), chunk[first:last]


def _accumulator(hidden: Tensor) -> torch.dtype:
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32


def _chunks(rows: int, vocabulary: int) -> list[tuple[int, int]]:
    size = max(CHUNK_ROWS_MIN, CHUNK_ELEMENTS // vocabulary)
    count = math.ceil(rows / size)
    return [(index * size, min(rows, (index + 1) * size)) for index in range(count)]
