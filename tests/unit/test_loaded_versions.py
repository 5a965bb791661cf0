"""A policy version is its checkpoint, whole: nothing of one that has changed is ever sampled from."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest
import torch

from learner.checkpoints import CheckpointError, Manifest, load_current, read_manifest
from learner.learning import write_policy_checkpoint
from learner.policy import Policy, build_tiny, load_policy, save_policy, with_lora
from learner.policy_settings import LoraSettings, TinySettings
from learner.versions import LoadedVersion
from streams.events import PolicyRef

TINY = TinySettings(vocabulary_size=300, hidden_size=16, layers=1, heads=2, feedforward_size=32, positions_max=64)


def policies(folder: Path, kind: str) -> list[Policy]:
    """Return two policies with one tokenizer: two sets of weights, or of an adapter on one base."""
    texts = ["red patch cable"] * 4
    if kind == "weights":
        return [build_tiny(texts, msgspec.structs.replace(TINY, seed=seed)) for seed in (0, 1)]
    base = save_policy(build_tiny(texts, TINY), folder / "base")
    assert base.path is not None
    made = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        made.append(with_lora(load_policy(base.path), LoraSettings(rank=2)))
    return made


def versions(folder: Path, kind: str) -> list[tuple[Path, PolicyRef]]:
    """Write two versions of one policy, and return their folders and names."""
    written = []
    for step, policy in enumerate(policies(folder, kind)):
        manifest = Manifest(policy=PolicyRef(lineage="1-aaaaaa", step=step, sha256=""), parent=None)
        place, kept = write_policy_checkpoint(folder / "checkpoints", policy, manifest, None)
        written.append((place, kept.policy))
    return written


def flip_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x01
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("kind", "file"),
    [
        ("weights", "model.safetensors"),
        ("weights", "config.json"),
        ("weights", "generation_config.json"),
        ("weights", "tokenizer.json"),
        ("weights", "tokenizer_config.json"),
        ("weights", "manifest.json"),
        ("adapter", "adapter_model.safetensors"),
        ("adapter", "adapter_config.json"),
        ("adapter", "tokenizer.json"),
    ],
)
def test_a_first_load_refuses_a_version_of_which_a_byte_has_changed(tmp_path: Path, kind: str, file: str) -> None:
    (folder, reference), _ = versions(tmp_path, kind)
    assert LoadedVersion(folder, reference).reference == reference
    flip_byte(folder / file)
    with pytest.raises(CheckpointError, match=r"should have sha256|does not have the hash|checkpoint 1-aaaaaa"):
        LoadedVersion(folder, reference)


def test_a_first_load_refuses_weights_that_are_not_the_announced_ones(tmp_path: Path) -> None:
    (folder, reference), (other, _) = versions(tmp_path, "weights")
    with pytest.raises(CheckpointError, match="expected weights with sha256 000"):
        LoadedVersion(folder, msgspec.structs.replace(reference, sha256="0" * 64))
    with pytest.raises(CheckpointError, match=r"expected its checkpoint in .* found that of 1-aaaaaa-000001"):
        LoadedVersion(other, reference)
    with pytest.raises(CheckpointError, match="No such file"):
        LoadedVersion(tmp_path / "gone", reference)


@pytest.mark.parametrize("name", ["adapter_config.json", "added_tokens.json", "model-2.safetensors", "modeling.py"])
def test_a_file_that_a_loader_may_read_and_the_manifest_does_not_list_is_refused(tmp_path: Path, name: str) -> None:
    (folder, reference), _ = versions(tmp_path, "weights")
    (folder / "notes.md").write_text("A person may keep notes here.")
    assert LoadedVersion(folder, reference).reference == reference
    (folder / name).write_text("{}")
    with pytest.raises(CheckpointError, match=rf"holds {name}, which manifest\.json does not list"):
        LoadedVersion(folder, reference)
    assert load_current(tmp_path / "checkpoints")[0] != folder


@pytest.mark.parametrize("kind", ["weights", "adapter"])
def test_a_refresh_refuses_other_weights_and_another_versions_name_and_keeps_the_version_before(
    tmp_path: Path, kind: str
) -> None:
    (first, reference), (second, newer) = versions(tmp_path, kind)
    version = LoadedVersion(first, reference)
    before = {name: tensor.clone() for name, tensor in version.policy.model.state_dict().items()}
    for change in ("weights", "name"):
        copy = shutil.copytree(second, tmp_path / change)
        if change == "name":
            manifest = msgspec.structs.replace(read_manifest(copy, verify=True), policy=reference)
            (copy / "manifest.json").write_bytes(msgspec.json.encode(manifest))
        else:
            flip_byte(next(copy.glob("*model.safetensors")))
        with pytest.raises(CheckpointError, match="policy 1-aaaaaa-000001: expected"):
            version.refresh(copy, newer)
    assert version.reference == reference
    after = version.policy.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    version.refresh(second, newer)
    assert version.reference == newer
