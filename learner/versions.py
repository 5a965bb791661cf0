"""Policy versions: found on disk, loaded once, and refreshed in place when a newer one is announced."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from learner.checkpoints import CheckpointError, Manifest, best_name, load_current, read_manifest
from learner.policy import ADAPTER, TOKENIZER, WEIGHTS, Policy, PolicyError, load_policy, weights_sha256
from learner.sampling import Sampler, SamplerSettings, TransformersSampler
from streams.devices import choose_device
from streams.events import PolicyRef
from streams.names import is_version_name
from streams.topics import version_name
from streams.whole_file import file_sha256


class Version(Protocol):
    """A policy version that can be sampled from and replaced by a newer one."""

    tokenizer: Any
    tokenizer_sha256: str

    @property
    def sampler(self) -> Sampler:
        """Return the sampler."""
        ...

    def refresh(self, folder: Path, reference: PolicyRef) -> None:
        """Switch to the version in `folder`; on any error, the previous version stays in use."""
        ...


OpenVersion = Callable[[Path, PolicyRef], Version]
"""A function of a checkpoint's folder and its policy that opens the first version with which a generator writes."""


def find_version(checkpoints: Path, name: str) -> tuple[Path, Manifest]:
    """Return the folder and the manifest of a policy version.

    name: "latest", "best" (by the dev queries), `<lineage>-<step>`, or a step's number.

    Raises CheckpointError if there is no such version (the message lists those that exist) or if its files have
    changed.
    """
    if name == "latest":
        return load_current(checkpoints)
    if name == "best":
        name = best_name(checkpoints)
        if not is_version_name(name):
            raise CheckpointError(
                "--policy best: expected a run with versions measured on dev queries, got one without. Use latest, or "
                "train with dev.every"
            )
    kept = sorted(path for path in checkpoints.glob("*-*-*") if not path.name.startswith("."))
    if name.isdigit():
        called = [path for path in kept if path.name.endswith(f"-{int(name):06d}")]
    else:
        called = [path for path in kept if path.name == name]
    names = ", ".join(path.name for path in kept) or "none"
    if not called:
        raise CheckpointError(
            f"--policy: expected latest, best, a step or one of the versions kept ({names}), got {name!r}"
        )
    newest = max(called, key=lambda path: path.stat().st_mtime_ns)
    try:
        return newest, read_manifest(newest, verify=True)
    except CheckpointError as error:
        raise CheckpointError(f"{error}. Use another of the versions kept: {names}") from error


def check_version(folder: Path, reference: PolicyRef) -> Manifest:
    """Return the manifest of `folder` after checking that it holds this version, whole: weights, tokenizer, settings.

    Raises CheckpointError if it is another version, or if a file is missing, has changed or came from elsewhere.
    """
    manifest = read_manifest(folder, verify=True)
    check_named(folder, manifest, reference)
    weights = folder / (ADAPTER if ADAPTER in manifest.files else WEIGHTS)
    try:
        found = weights_sha256(folder)
    except (OSError, PolicyError) as error:
        raise CheckpointError(f"policy {version_name(reference)}: {error}") from error
    if found != reference.sha256:
        raise CheckpointError(
            f"policy {version_name(reference)}: expected weights with sha256 {reference.sha256[:12]}…, found "
            f"{found[:12]}… in {weights}"
        )
    return manifest


def check_named(folder: Path, manifest: Manifest, reference: PolicyRef) -> None:
    """Raise CheckpointError unless the manifest belongs to this lineage and step."""
    if (manifest.policy.lineage, manifest.policy.step) != (reference.lineage, reference.step):
        raise CheckpointError(
            f"policy {version_name(reference)}: expected its checkpoint in {folder}, found that of "
            f"{version_name(manifest.policy)}"
        )


class LoadedVersion:
    """A policy in memory that follows the newest version: the model is built once, and its weights are replaced."""

    def __init__(
        self, folder: Path, reference: PolicyRef, settings: SamplerSettings | None = None, *, device: str = ""
    ) -> None:
        """folder: the version's checkpoint. device: "" chooses a GPU if there is one.

        Raises CheckpointError if it is not the announced version or not whole; PolicyError if it cannot be read.
        """
        check_version(folder, reference)
        self._policy = load_policy(folder)
        self._policy.model.to(device or choose_device())
        self._settings = settings or SamplerSettings()
        self.tokenizer = self._policy.tokenizer
        self.tokenizer_sha256 = file_sha256(folder / TOKENIZER)
        self._sampler = TransformersSampler(self._policy, reference, self._settings)

    @property
    def sampler(self) -> TransformersSampler:
        """Return the sampler."""
        return self._sampler

    @property
    def reference(self) -> PolicyRef:
        """Return the loaded version."""
        return self.sampler.policy

    @property
    def policy(self) -> Policy:
        """Return the model and its tokenizer."""
        return self._policy

    def refresh(self, folder: Path, reference: PolicyRef) -> None:
        """Replace the weights with those in `folder`.

        Raises CheckpointError if the file's sha256 is not the announced one; the previous version then stays loaded.
        The tokenizer stays, because it is the same in every version of a run. Its file may differ: it also records the
        last batch's padding and the tokens that were declared special.
        """
        load_weights(self._policy, folder, reference)
        self.sampler.policy = reference


def load_weights(policy: Policy, folder: Path, reference: PolicyRef) -> None:
    """Replace a policy's weights with those of another of its versions, if they are the announced ones.

    Raises CheckpointError if they are not; the weights then stay as they were.
    """
    adapter = (folder / ADAPTER).is_file()
    weights = folder / (ADAPTER if adapter else WEIGHTS)
    try:
        check_named(folder, read_manifest(folder, verify=False), reference)
        if (found := file_sha256(weights)) != reference.sha256:
            raise CheckpointError(
                f"policy {version_name(reference)}: expected weights with sha256 {reference.sha256[:12]}…, "
                f"found {found[:12]}… in {weights}"
            )
        tensors = load_file(weights)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"policy {version_name(reference)}: {error}") from error
    _assign(policy, tensors, adapter=adapter)


def _assign(policy: Policy, tensors: dict[str, torch.Tensor], *, adapter: bool) -> None:
    if adapter:
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(policy.model, tensors)
        return
    missing, unexpected = policy.model.load_state_dict(tensors, strict=False)
    tied = set(getattr(policy.model, "_tied_weights_keys", None) or ())
    if unexpected or set(missing) - tied:
        raise PolicyError(f"the new weights do not fit the loaded model: missing {missing}, unexpected {unexpected}")
