"""LoRA on vLLM's CPU engine: one product for each adapter, where vLLM copies the adapter once for each token.

vLLM 0.32 gathers, for every token of a step, that token's whole A and B out of the stack of adapters
(`vllm/lora/ops/torch_ops`): 97 % of SmolLM2's generation was that. The tokens of a step nearly always share one adapter
here, that of the version in use, or two while it changes. What is computed is the same.

This file runs in vLLM's process and environment, not in ours; `infra.services.vllm` names it as the worker's extension.
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
        for adapter, tokens in self._tokens_by_adapter():
            down = w_t_all[adapter].view(-1, x.shape[-1]).to(rows.dtype)  # [r, d]
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
        for adapter, tokens in self._tokens_by_adapter():
            up = w_t_all[adapter].view(-1, x.shape[-1]).to(y.dtype)  # [slice, r]
            added = x[tokens].to(y.dtype) @ up.T
            part[tokens] = part[tokens] + added if add_inputs else added

    def _tokens_by_adapter(self) -> Iterator[tuple[int, torch.Tensor | slice]]:
        """Yield each adapter of this step with its tokens; a token without one (-1) is in none."""
        indices = self.token_lora_indices
        found = torch.unique(indices).tolist()
        for adapter in found:
            if adapter >= 0:
                yield adapter, slice(None) if len(found) == 1 else indices == adapter


class Extension:
    """The class that `--worker-extension-cls` wants; importing this file has done the work."""


CpuPlatform.get_punica_wrapper = classmethod(lambda cls: f"{GroupedLora.__module__}.{GroupedLora.__qualname__}")
