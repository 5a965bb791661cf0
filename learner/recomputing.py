"""Gradient checkpointing of packed groups: a layer's activations are computed again in the backward pass.

transformers' own switch drops the cache, on which the completions of a packed group stand (`learner.packing`). Here a
decoder layer runs as a function of its hidden states and its prompt's keys and values, so running it twice changes no
cache. The gradients are those of the plain path, to the bit on a processor.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from learner.logprobs import PolicyUnfitError, causal_lm


class LayerCache:
    """The cache of one layer in one call: the prompt's keys and values, if any, and those that the call adds."""

    def __init__(self, keys: Tensor | None, values: Tensor | None) -> None:
        self.keys, self.values = keys, values
        self.added: tuple[Tensor, Tensor] | None = None

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Return the keys and values to attend to, as transformers' caches do."""
        self.added = keys, values
        if self.keys is None or self.values is None:
            return keys, values
        return torch.cat([self.keys, keys], dim=-2), torch.cat([self.values, values], dim=-2)


def recompute_layers(model: nn.Module) -> None:
    """Let every decoder layer of the policy compute its activations again in the backward pass, from now on.

    Raises PolicyUnfitError if the model has no list of decoder layers.
    """
    layers = getattr(causal_lm(model).base_model, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise PolicyUnfitError(
            f"learner.update.recompute: expected a model whose `layers` are its decoder layers, got "
            f"{type(causal_lm(model).base_model).__name__}. Set recompute to false, and micro_batch_groups lower"
        )
    for number, layer in enumerate(layers):
        layer.forward = _recomputed(layer, number)


def _recomputed(layer: nn.Module, number: int) -> Any:
    plain = layer.forward

    def forward(hidden: Tensor, *arguments: Any, past_key_values: Any = None, **others: Any) -> Any:
        if not torch.is_grad_enabled():
            return plain(hidden, *arguments, past_key_values=past_key_values, **others)
        if past_key_values is None:  # GPT-NeoX and its kin call it `layer_past`.
            raise PolicyUnfitError(
                f"learner.update.recompute: expected layers that take a cache as past_key_values, got "
                f"{type(layer).__name__}. Set recompute to false, and micro_batch_groups lower"
            )
        keys, values = _held(past_key_values, number)

        def run(hidden: Tensor, keys: Tensor | None, values: Tensor | None) -> tuple[Any, Tensor, Tensor]:
            cache = LayerCache(keys, values)
            result = plain(hidden, *arguments, past_key_values=cache, **others)
            if cache.added is None:
                raise PolicyUnfitError(f"learner.update.recompute: layer {number} of this model uses no cache")
            return result, *cache.added

        result, *added = checkpoint(run, hidden, keys, values, use_reentrant=False)
        if keys is None:
            past_key_values.update(*added, number)  # The prompt's; nothing reads those of the completions.
        return result

    return forward


def _held(cache: Any, number: int) -> tuple[Tensor | None, Tensor | None]:
    """Return the keys and values that a cache of transformers holds for a layer; none if it has not begun."""
    if number >= len(cache.layers) or cache.get_seq_length(number) == 0:
        return None, None
    return cache.layers[number].keys, cache.layers[number].values
