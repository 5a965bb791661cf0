"""The prepared script for a GPU runs on the processor in small: whoever has a GPU for ten minutes must not debug it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from learner.policy import build_tiny, save_policy
from learner.policy_settings import LoraSettings, TinySettings
from learner.serving import ServedVersion
from learner.vllm import VllmSettings
from tests.benchmarks.generation import swap_seconds, written_versions
from tests.benchmarks.gpu import SMALL, compare_heads, compare_steps, packed_step, padded_step, random_policy
from tests.benchmarks.loss_head import begin_mib, peak_mib
from tests.fake_vllm import FakeVllm
from tests.trl_oracle import random_group


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
    model = random_policy(SMALL, "cpu", torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    group = random_group(generator, prompt=16, lengths=[4, 4], vocabulary=SMALL.vocabulary)
    before = {name: each.clone() for name, each in model.named_parameters() if each.requires_grad}
    packed_step(model, [group], 1)()
    moved = [name for name, each in model.named_parameters() if name in before and not torch.equal(each, before[name])]
    assert any("lora_B" in name for name in moved)
    assert all("lora" in name for name in before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_script_trains_as_the_learners_setting_for_such_a_base_does(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU, the learner's setting for a base in bf16 is `learner.update.precision = "bf16"`."""
    begun: list[bool] = []
    plain = torch.autocast.__enter__

    def enter(self: torch.autocast) -> object:
        begun.append(self._enabled)
        return plain(self)

    monkeypatch.setattr(torch.autocast, "__enter__", enter)
    model = random_policy(SMALL, "cpu", dtype)
    group = random_group(torch.Generator().manual_seed(0), prompt=16, lengths=[4, 4], vocabulary=SMALL.vocabulary)
    for step in (packed_step, padded_step):
        begun.clear()
        step(model, [group], 1)()
        assert any(begun) == (dtype == torch.bfloat16), step


def test_the_peak_of_a_head_on_a_gpu_forgets_what_came_before(monkeypatch: pytest.MonkeyPatch) -> None:
    used, peak = 100 << 20, [40 << 30]  # Of a step that was measured before.
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: used)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: peak.append(used))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: peak[-1])
    before = begin_mib("cuda")
    peak.append(used + (7 << 20))
    assert peak_mib("cuda") - before == 7


def test_the_versions_that_are_swapped_are_taken_by_a_server(tmp_path: Path) -> None:
    shape = TinySettings(vocabulary_size=300, hidden_size=16, layers=1, heads=2, feedforward_size=32, positions_max=64)
    base = save_policy(build_tiny(["red patch cable"] * 4, shape), tmp_path / "base")
    first, *others = written_versions(base, LoraSettings(rank=2), tmp_path / "checkpoints", count=3)
    with FakeVllm() as server:
        served = ServedVersion(
            *first,
            url=server.url,
            settings=VllmSettings(),
            directory=tmp_path,
            staleness_max=1,
            difference_max=0.1,
        )
        assert len(swap_seconds(served, others)) == 2
        served.close()
    assert sorted(server.adapters) == [f"policy-v1-bench-{step:06d}" for step in range(3)]
