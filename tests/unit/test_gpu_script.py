"""The prepared script for a GPU runs on the processor in small: whoever has a GPU for ten minutes must not debug it."""

from __future__ import annotations

import torch

from tests.benchmarks.gpu import SMALL, compare_heads, compare_steps


def test_the_steps_and_heads_of_the_gpu_script_run_in_small_on_the_processor() -> None:
    found = compare_steps(SMALL, "cpu", torch.float32, runs=1, micro=2)
    assert found["tokens_through"] == 2 * (48 + 4 * 7)
    assert found["tokens_of_rows"] == 2 * 4 * 56
    assert found["packed_seconds"] > 0 and found["padded_seconds"] > 0
    heads = compare_heads(SMALL, "cpu")
    ours, theirs = heads["ours"], heads["plain torch"]
    for name in ("loss", "states", "weight"):
        assert abs(ours[name] - theirs[name]) <= 1e-4 * abs(theirs[name]), name


def test_a_step_of_a_policy_in_bf16_moves_its_adapters() -> None:
    """LoRA's weights are trained on a base in bf16, as on a GPU."""
    from tests.benchmarks.gpu import packed_step, random_policy
    from tests.trl_oracle import random_group

    model = random_policy(SMALL, "cpu", torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    group = random_group(generator, prompt=16, lengths=[4, 4], vocabulary=SMALL.vocabulary)
    before = {name: each.clone() for name, each in model.named_parameters() if each.requires_grad}
    packed_step(model, [group], 1)()
    moved = [name for name, each in model.named_parameters() if name in before and not torch.equal(each, before[name])]
    assert any("lora_B" in name for name in moved)
    assert all("lora" in name for name in before)
