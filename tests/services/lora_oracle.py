"""Adapters as `cpu_lora.py` of `services/vllm_environment` applies them, beside vLLM's own way.

Run by vLLM's Python; prints one JSON line.

A step of several requests with two adapters between them, and three slices of unlike widths, as a merged query, key and
value projection has them; and the logits.
"""

import json

import torch
from cpu_lora import GroupedLora
from vllm.lora.layers import LoRAMapping
from vllm.lora.punica_wrapper import get_punica_wrapper
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

WIDTH, ROOM, SLICES, VOCABULARY = 24, 8, (24, 6, 6), 40
IDS = [7, 9, None]  # The server's room is for three, and two are loaded.
STEPS = {
    "one adapter": [7] * 11,
    "two adapters": [7] * 4 + [9] * 3 + [7] * 2 + [9] * 2,
    "two adapters, one token each": [9, 7, 9, 9],
}


def added(wrapper: PunicaWrapperCPU, ids: list[int], *, prefill: bool, dtype: torch.dtype) -> torch.Tensor:
    """Return a layer's output and the logits after their adapters, from the same random numbers each time."""
    wrapper.update_metadata(
        LoRAMapping(index_mapping=tuple(ids), prompt_mapping=tuple(ids), is_prefill=prefill), IDS, 3, VOCABULARY
    )
    torch.manual_seed(0)
    x, y = torch.randn(len(ids), WIDTH, dtype=dtype), torch.randn(len(ids), sum(SLICES), dtype=dtype)
    down = tuple(torch.randn(3, 1, ROOM, WIDTH, dtype=dtype) for _ in SLICES)
    up = tuple(torch.randn(3, 1, width, ROOM, dtype=dtype) for width in SLICES)
    wrapper.add_lora_linear(y, x, down, up, 2.0, SLICES)
    logits = torch.randn(len(ids), VOCABULARY, dtype=dtype)
    wrapper.add_lora_logits(logits, x, down[0], torch.randn(3, 1, VOCABULARY, ROOM, dtype=dtype), 2.0)
    return torch.cat([y, logits], -1)


def main() -> None:
    """Print the largest difference of each case, relative to the largest output, and what an unserved token gets."""
    ours, theirs = (kind(64, 16, "cpu") for kind in (GroupedLora, PunicaWrapperCPU))
    differences = {}
    for name, ids in STEPS.items():
        for prefill in (True, False):
            for dtype in (torch.float32, torch.bfloat16):
                expected = added(theirs, ids, prefill=prefill, dtype=dtype)
                found = added(ours, ids, prefill=prefill, dtype=dtype)
                case = f"{name}, {'prompt' if prefill else 'answer'}, {dtype}"
                differences[case] = float((found - expected).abs().max() / expected.abs().max())
    torch.manual_seed(0)
    torch.randn(3, WIDTH)
    untouched = torch.randn(3, sum(SLICES))
    mixed = added(ours, [0, 7, 0], prefill=True, dtype=torch.float32)  # 0: a request of the base model.
    print(
        json.dumps(
            {
                "chosen": type(get_punica_wrapper(64, 16, "cpu")).__name__,
                "differences": differences,
                "base_untouched": [bool((mixed[row, : sum(SLICES)] == untouched[row]).all()) for row in range(3)],
            }
        )
    )


if __name__ == "__main__":
    main()
