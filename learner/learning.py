"""The learner without its streams: batches in, durable policy versions out.

The worker and the loop in one process both drive this; it owns the model, the optimizer and the newest checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import torch
from safetensors.torch import load_file, save_file

from learner.batches import Batch
from learner.checkpoints import OPTIMIZER, Manifest, new_lineage, save_checkpoint
from learner.objectives import ObjectiveSettings
from learner.policy import Policy, load_policy, save_policy
from learner.tokenizer import opener_ids
from learner.updates import Updater, UpdateSettings
from streams.delivery import now_ms
from streams.events import PolicyRef, Update

RNG_STATE = "torch_rng_state"


class LearnerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Objective, optimizer, and which checkpoints stay.

    checkpoints_kept: newest ones that are never deleted (on top of the staleness limit, so that no version in use
    goes).
    keep_every: every n-th stays for good.
    """

    objective: ObjectiveSettings = ObjectiveSettings()
    update: UpdateSettings = UpdateSettings()
    checkpoints_kept: Annotated[int, msgspec.Meta(ge=2, le=1000)] = 3
    keep_every: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 50


class Learner:
    """One policy being trained: its model, its optimizer, and the manifest of its newest checkpoint."""

    def __init__(self, policy: Policy, updater: Updater, *, run: str, lineage: str, manifest: Manifest) -> None:
        self.run = run
        self.manifest = manifest
        self._policy = policy
        self._updater = updater
        self._lineage = lineage

    @classmethod
    def resume(
        cls, folder: Path, manifest: Manifest, *, run: str, settings: LearnerSettings, no_repeat: bool
    ) -> Learner:
        """Return the learner as this checkpoint left it, on a lineage of its own.

        The model takes a GPU when there is one; on a CPU in fp32 going on from a checkpoint gives the same bits as
        never having stopped.
        """
        policy = load_policy(folder)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        policy.model.to(device)
        reference = load_policy(folder).model.to(device).eval() if settings.objective.kl_weight > 0 else None
        updater = Updater(
            policy.model,
            objective=settings.objective,
            settings=settings.update,
            opener_ids=opener_ids(policy.tokenizer) if no_repeat else (),
            reference=reference,
            pad_id=policy.pad_id,
        )
        if (folder / OPTIMIZER).is_file():
            tensors = load_file(folder / OPTIMIZER)
            torch.set_rng_state(tensors.pop(RNG_STATE))
            updater.load_optimizer_tensors(tensors)
        lineage = new_lineage(manifest.policy.lineage)
        return cls(policy, updater, run=run, lineage=lineage, manifest=manifest)

    @property
    def step(self) -> int:
        """Return how many updates the weights have had since the warm-up."""
        return self.manifest.policy.step

    def learn(self, batch: Batch, checkpoints: Path, recent_groups: tuple[str, ...]) -> Path:
        """Make one update from the batch, write its checkpoint, and return the folder; then `manifest` describes it.

        A batch without a group to learn from still makes a version: it carries the stream's positions forward.
        """
        current = self.manifest.policy
        result = self._updater.update(batch.fresh, current=current)
        positions, consumed = batch.positions, batch.requests_consumed
        update = Update(
            run=self.run,
            policy=PolicyRef(lineage=self._lineage, step=current.step + 1, sha256=""),
            parent=current,
            trained=result.trained,
            flat=result.flat,
            expired=batch.expired,
            failed=(*batch.failed, *result.failed, *result.rejected),
            positions=positions,
            requests_consumed=consumed,
            metrics=result.metrics
            | {"staleness_max": max((current.step - r.generation.policy.step for r in batch.fresh), default=0.0)},
            made_at_ms=now_ms(),
        )
        manifest = Manifest(
            policy=update.policy,
            parent=current,
            positions=positions,
            requests_consumed=consumed,
            recent_groups=recent_groups,
            update=update,
        )
        folder, self.manifest = write_policy_checkpoint(checkpoints, self._policy, manifest, self._updater)
        return folder


def write_policy_checkpoint(
    checkpoints: Path, policy: Policy, manifest: Manifest, updater: Updater | None
) -> tuple[Path, Manifest]:
    """Write policy and optimizer as one checkpoint; the weights' sha256 completes the version's name.

    updater: None for a warmed-up policy, which has no optimizer state yet.
    """
    named = manifest

    def write_files(folder: Path) -> Manifest:
        nonlocal named
        saved = save_policy(policy, folder)
        if updater is not None:
            tensors = {name: tensor.contiguous() for name, tensor in updater.optimizer_tensors().items()}
            save_file(tensors | {RNG_STATE: torch.get_rng_state()}, folder / OPTIMIZER)
        reference = msgspec.structs.replace(manifest.policy, sha256=saved.sha256)
        update = msgspec.structs.replace(manifest.update, policy=reference) if manifest.update else None
        named = msgspec.structs.replace(manifest, policy=reference, update=update)
        return named

    return save_checkpoint(checkpoints, manifest.policy, write_files), named
