"""A copy of an adapter finds its base, wherever a run's first version or a replay puts it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch

from infra.app.home import Home
from infra.replaying.reproduction import scratch_of
from infra.runs.training_runs import copy_warmed_up
from learner.checkpoints import copy_checkpoint, load_current
from learner.learning import write_first_checkpoint
from learner.policy import Policy, build_tiny, load_policy, save_policy, with_lora
from learner.policy_settings import LoraSettings, TinySettings

TINY = TinySettings(vocabulary_size=300, hidden_size=16, layers=1, feedforward_size=32)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """Give a home with a run whose first version is an adapter on the policy that its own warm-up has taught."""
    made = Home(tmp_path / "home")
    taught = save_policy(build_tiny(["red shoes", "blue bags"], TINY), made.run("a").taught)
    write_first_checkpoint(made.run("a").checkpoints, with_lora(taught, LoraSettings(rank=2)))
    return made


def answers(policy: Policy) -> torch.Tensor:
    with torch.no_grad():
        return policy.model(torch.tensor([[1, 2, 3]])).logits  # type: ignore[no-any-return]


def test_a_run_that_begins_with_anothers_adapter_has_its_base_too(home: Home) -> None:
    copy_warmed_up(home.run("a"), home.run("b"), carried=())
    first, copied = (load_current(home.run(name).checkpoints)[0] for name in ("a", "b"))
    assert torch.equal(answers(load_policy(copied)), answers(load_policy(first)))
    assert sorted(path.name for path in home.run("b").warmup.iterdir()) == ["taught"]


def test_a_reproduction_loads_an_adapter(home: Home) -> None:
    folder, manifest = load_current(home.run("a").checkpoints)
    with scratch_of(home.run("a")) as scratch:
        copied = copy_checkpoint(folder, manifest, scratch)
        assert torch.equal(answers(load_policy(copied)), answers(load_policy(folder)))
    assert not [path for path in home.run("a").iterdir() if path.name.startswith(".")]
    with tempfile.TemporaryDirectory() as elsewhere, pytest.raises(Exception, match="its base model is missing"):
        load_policy(copy_checkpoint(folder, manifest, Path(elsewhere)))
