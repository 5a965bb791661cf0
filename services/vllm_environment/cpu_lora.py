"""LoRA on vLLM's CPU engine: one product for each adapter, where vLLM copies the adapter once for each token.

vLLM 0.32 gathers, for every token of a step, that token's whole A and B out of the stack of adapters
(`vllm/lora/ops/torch_ops`): 97 % of SmolLM2's generation was that. The tokens of a step nearly always share one adapter
here, that of the version in use, or two while it changes. What is computed is the same.

This file runs in vLLM's process and environment, not in ours; `services.vllm` names it as the worker's extension.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.platforms.cpu import CpuPlatform


class GroupedLora(PunicaWrapperCPU):  # type: ignore[misc]  # vLLM is not in the environment that mypy sees.
    """vLLM's way of applying adapters on a CPU, with the tokens of an adapter taken together."""

    def _apply_shrink(self, y: torch.Tensor, x: torch.Tensor, w_t_all: torch.Tensor, scale: float) -> None:
        """Set y [N, r] to scale · x [N, d] Aᵀ, each token by its adapter's A out of w_t_all [adapters, 1, r, d]."""
        rows = y.view(-1, y.shape[-1])
        for adapter, tokens in by_adapter(self.token_lora_indices):
            down = matrix(w_t_all, adapter, rows.dtype)
            rows[tokens, : len(down)] = scale * (x[tokens].to(rows.dtype) @ down.T)

    def _apply_expand(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        w_t_all: torch.Tensor,
        y_offset: int,
        y_slice_size: int,
        add_inputs: bool = True,
    ) -> None:
        """Add x [N, r] Bᵀ to a slice of y's columns, each token by its adapter's B out of [adapters, 1, slice, r]."""
        part = y[:, y_offset : y_offset + y_slice_size]
        for adapter, tokens in by_adapter(self.token_lora_indices):
            added = x[tokens].to(y.dtype) @ matrix(w_t_all, adapter, y.dtype).T
            part[tokens] = part[tokens] + added if add_inputs else added

    def add_lora_logits(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        scale: float,
        **kwargs: object,
    ) -> None:
        """Add scale · x [N, d] Aᵀ Bᵀ to the logits y [N, vocabulary], one row for each text that is being written."""
        logits, hidden = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        for adapter, texts in by_adapter(self.sampler_indices):
            small = scale * (hidden[texts].float() @ matrix(lora_a_stacked, adapter, torch.float32).T)  # [n, r]
            up = matrix(lora_b_stacked, adapter, y.dtype)
            logits[texts, : len(up)] += small.to(y.dtype) @ up.T


def by_adapter(indices: torch.Tensor) -> Iterator[tuple[int, torch.Tensor | slice]]:
    """Yield each adapter that the indices [N] name, with its rows; a row without an adapter (-1) is in none."""
    found = torch.unique(indices).tolist()
    for adapter in found:
        if adapter >= 0:
            yield adapter, slice(None) if len(found) == 1 else indices == adapter


def matrix(stack: torch.Tensor, adapter: int, dtype: torch.dtype) -> torch.Tensor:
    """Return one adapter's A or B [rows, columns] out of a stack of them, [adapters, 1, rows, columns]."""
    return stack[adapter].view(stack.shape[-2:]).to(dtype)


class Extension:
    """The class that `--worker-extension-cls` wants; importing this file has done the work."""


CpuPlatform.get_punica_wrapper = classmethod(lambda cls: f"{GroupedLora.__module__}.{GroupedLora.__qualname__}")
