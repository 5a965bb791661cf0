"""Which device computes: a visible GPU, or the processor.

CUDA_VISIBLE_DEVICES hides GPUs, or picks one; an empty value makes everything run on the processor. Each function that
loads a model takes the device as an argument, so tests run the same code on the processor.
"""

from __future__ import annotations

import gc
from typing import Any


def choose_device() -> str:
    """Return "cuda" (the first visible GPU) if there is one, else "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def describe_device() -> str:
    """Return in words what models would run on."""
    import torch

    if not torch.cuda.is_available():
        bf16 = "has bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "emulates bf16"
        return f"the processor, {torch.get_num_threads()} threads, {bf16}; no GPU is visible; models compute in fp32"
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    others = torch.cuda.device_count() - 1
    more = f"; {others} more visible, unused" if others > 0 else ""
    bf16 = "has bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "has no bf16"
    return f"{torch.cuda.get_device_name(0)}, {memory:.0f} GiB, {bf16}{more}; models compute in fp32"


def release_memory() -> None:
    """Give back the GPU memory of models that nobody holds any more, so that another process can have it.

    torch keeps freed memory for itself, and a trainer's optimizer lives in a circle of references until collected.
    """
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def keep_to_one_device(arguments: Any) -> Any:
    """Return a trainer's arguments that use one GPU, however many are visible.

    transformers' Trainer otherwise wraps the model in DataParallel, which splits each batch: a loss that sums over
    answers, and logged log-probabilities, are then wrong.
    """
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments
