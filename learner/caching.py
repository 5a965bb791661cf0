"""A key-value cache with room for the answer.

The DynamicCache of transformers copies the whole cache for every token. These copies took 70% of the time of sampling
128 short answers from the tiny policy. This cache allocates each layer's block once, when it repeats the prompts' cache
for their candidates, and writes each new token into its place.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer


class RoomyLayer(DynamicLayer):  # type: ignore[misc]  # transformers has no stubs
    """One layer's keys and values, [N, heads, P + T, width]; the first `length` tokens are filled."""

    tokens = 0
    """The number of tokens that follow the prompt."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.keys: Tensor
        self.values: Tensor
        self.length = 0
        self.room = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add the new tokens' states [N, heads, t, width] and return views of all filled tokens."""
        if self.room == 0:
            keys, values = super().update(key_states, value_states)
            self.length = keys.shape[-2]
            return keys, values
        end = self.length + key_states.shape[-2]
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        """Return the number of filled tokens."""
        return self.length

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each prompt's states for its candidates, in a block with room for their tokens."""
        self.room = self.tokens
        self.keys, self.values = self._roomy(self.keys, repeats), self._roomy(self.values, repeats)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only these rows [n]."""
        self.keys, self.values = self.keys[indices], self.values[indices]

    def _roomy(self, states: Tensor, repeats: int) -> Tensor:
        rows, heads, length, width = states.shape
        block = states.new_empty((rows, repeats, heads, length + self.room, width))
        block[:, :, :, :length] = states[:, None]
        return block.view(rows * repeats, heads, length + self.room, width)


class RoomyCache(Cache):  # type: ignore[misc]
    """A cache for one block of prompts, with room for `tokens` more tokens for each of their candidates."""

    def __init__(self, *, tokens: int) -> None:
        layer = type("RoomyLayer", (RoomyLayer,), {"tokens": tokens})
        super().__init__(layer_class_to_replicate=layer)
