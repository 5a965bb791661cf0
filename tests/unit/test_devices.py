"""Models run on one GPU where there is one, and on the processor elsewhere; this machine may lack a GPU."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from streams.devices import choose_device, describe_device, keep_to_one_device


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch believe that it sees two GPUs of 80 GiB."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number=0: "A GPU")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: SimpleNamespace(total_memory=80 << 30))


def test_a_visible_gpu_is_chosen_and_named_with_the_unused_ones(two_gpus: None) -> None:
    assert choose_device() == "cuda"
    assert describe_device() == "A GPU, 80 GiB, has bf16; 1 more visible, unused; models compute in fp32"


def test_without_a_gpu_the_processor_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device() == "cpu"
    said = describe_device()
    assert "no GPU is visible" in said
    assert "bf16" in said


def test_a_trainer_never_splits_a_batch_over_two_gpus() -> None:
    """transformers would wrap the model in DataParallel if its arguments counted two."""
    arguments = SimpleNamespace(n_gpu=2, _n_gpu=2)
    assert keep_to_one_device(arguments)._n_gpu == 1
    from transformers import TrainingArguments

    real = TrainingArguments(output_dir="unused", use_cpu=True)
    real._n_gpu = 2
    assert real.n_gpu == 2
    assert keep_to_one_device(real).n_gpu == 1
