"""The learner without its streams: it takes batches and gives durable policy versions.

The worker and the loop in one process both use it. It owns the model, the optimizer and the newest checkpoint.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from learner.batches import Batch
from learner.checkpoints import (
    MANIFEST,
    OPTIMIZER,
    CheckpointError,
    Manifest,
    new_lineage,
    read_manifest,
    save_checkpoint,
)
from learner.claims import ClaimChecker, ClaimSettings
from learner.objectives import ObjectiveSettings
from learner.policy import Policy, load_policy, save_policy
from learner.probes import Probe, make_probes, write_probes
from learner.processes import ALONE, Processes
from learner.tokenizer import opener_ids
from learner.updates import Updater, UpdateSettings
from streams.clock import now_ms
from streams.codec import content_sha256, encode_event
from streams.descriptions import describe
from streams.devices import choose_device
from streams.events import PolicyRef, Reward, Update
from streams.refusals import RewardLimits
from streams.topics import version_name
from streams.whole_file import file_sha256

RNG_STATE = "torch_rng_state"


class LearnerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Objective, optimizer and retention of checkpoints."""

    objective: ObjectiveSettings = ObjectiveSettings()
    update: UpdateSettings = UpdateSettings()
    limits: RewardLimits = RewardLimits()
    claims: ClaimSettings = ClaimSettings()
    checkpoints_kept: Annotated[
        int,
        msgspec.Meta(ge=2, le=1000),
        describe(
            "Newest checkpoints that are never deleted. `batch.staleness_max` is added, so that no version in "
            "use is deleted."
        ),
    ] = 3
    keep_every: Annotated[
        int,
        msgspec.Meta(ge=1, le=100_000),
        describe("Every n-th checkpoint is kept forever. 1 keeps all."),
    ] = 50
    processes: Annotated[
        int,
        msgspec.Meta(ge=1, le=64),
        describe("Processes that share the work of an update. More help if each has cores or a GPU of its own."),
    ] = 1
    meeting: Annotated[
        str,
        describe(
            "Address where the processes meet, tcp://HOST:PORT of the first one's machine. Empty: the first one starts "
            "the others on its own machine."
        ),
    ] = ""


class _Task(msgspec.Struct, frozen=True, kw_only=True):
    """A batch that rank 0 hands to the other processes. current: the version that learns from it."""

    rewards: tuple[Reward, ...]
    current: PolicyRef


class Learner:
    """One policy in training: its model, its optimizer, and the manifest of its newest checkpoint.

    lineage: the lineage of its next versions. It is a new one, except when a recorded run is repeated.
    """

    def __init__(
        self,
        policy: Policy,
        updater: Updater,
        claims: ClaimChecker,
        *,
        run: str,
        lineage: str,
        manifest: Manifest,
        manifest_sha256: str,
        probes: int = 0,
        processes: Processes = ALONE,
    ) -> None:
        """probes: groups of each batch whose log-probabilities a version keeps, for servers that load it."""
        self._processes = processes
        self.run = run
        self.manifest = manifest
        self.manifest_sha256 = manifest_sha256
        self._policy = policy
        self._updater = updater
        self._claims = claims
        self._probes = probes
        self.lineage = lineage

    @classmethod
    def resume(
        cls,
        folder: Path,
        manifest: Manifest,
        *,
        run: str,
        settings: LearnerSettings,
        no_repeat: bool,
        device: str = "",
        probes: int = 0,
        processes: Processes = ALONE,
    ) -> Learner:
        """Return the learner as this checkpoint left it, on a new lineage.

        device: "" chooses a GPU if there is one. In fp32 on the processor, a resumed run gives the same bits as an
        uninterrupted one. probes: as in `Learner`. processes: this one among `settings.processes`; alone, it computes
        all shares of a batch. With a KL term, the reference is always the warmed-up policy, whatever is resumed.
        Raises CheckpointError if that policy is needed and missing.
        """
        policy = load_policy(folder)
        device = device or choose_device()
        policy.model.to(device)
        reference = None
        if settings.objective.kl_weight > 0:
            reference = load_policy(find_origin(folder, manifest)).model.to(device)
        updater = Updater(
            policy.model,
            objective=settings.objective,
            settings=settings.update,
            opener_ids=opener_ids(policy.tokenizer) if no_repeat else (),
            selector=policy.selector,
            reference=reference,
            pad_id=policy.pad_id,
            shares=settings.processes,
            processes=processes,
        )
        if (folder / OPTIMIZER).is_file():
            tensors = load_file(folder / OPTIMIZER)
            torch.set_rng_state(tensors.pop(RNG_STATE))
            updater.load_optimizer_tensors(tensors)
        lineage = new_lineage(manifest.policy.lineage)
        sha256 = file_sha256(folder / MANIFEST)
        claims = ClaimChecker(
            folder.parent,
            settings.claims,
            no_repeat=no_repeat,
            device=device,
            difference_max=settings.update.logprob_difference_max,
        )
        return cls(
            policy,
            updater,
            claims,
            run=run,
            lineage=lineage,
            manifest=manifest,
            manifest_sha256=sha256,
            probes=probes,
            processes=processes,
        )

    @property
    def step(self) -> int:
        """Return the number of updates since the warm-up."""
        return self.manifest.policy.step

    def learn(self, batch: Batch, checkpoints: Path) -> Path:
        """Make one update from the batch, write its checkpoint, and return the folder; `manifest` then describes it.

        A batch without a group to learn from still makes a version, which carries the stream's positions forward.
        """
        current = self.manifest.policy
        untrue = self._claims.check(batch.fresh, current=current)
        fresh = [reward for reward in batch.fresh if reward.group_id not in untrue]
        if self._processes.count > 1:
            # JSON holds the integers of any size that a record may have; msgpack ends at 64 bits.
            self._processes.tell(msgspec.json.encode(_Task(rewards=tuple(fresh), current=current)))
        result = self._updater.update(fresh, current=current)
        update = Update(
            run=self.run,
            policy=PolicyRef(lineage=self.lineage, step=current.step + 1, sha256=""),
            parent=current,
            trained=result.trained,
            flat=result.flat,
            expired=batch.expired,
            failed=(*batch.failed, *result.failed),
            rejected=untrue | result.rejected,
            disputed=result.disputed,
            positions=batch.positions,
            requests_consumed=batch.requests_consumed,
            parent_update_sha256=content_sha256(encode_event(self.manifest.update)) if self.manifest.update else "",
            parent_manifest_sha256=self.manifest_sha256,
            metrics=_metrics(result.metrics, [current.step - r.generation.policy.step for r in batch.fresh]),
            made_at_ms=now_ms(),
        )
        manifest = Manifest(
            policy=update.policy,
            parent=current,
            origin=self.manifest.origin or (current if current.step == 0 else None),
            positions=batch.positions,
            requests_consumed=batch.requests_consumed,
            recent_groups=batch.recent_groups,
            low_water=batch.low_water,
            update=update,
        )
        learned_from = {*result.trained, *result.flat, *result.disputed}  # Others may hold tokens that nobody knows.
        generations = [reward.generation for reward in fresh if reward.group_id in learned_from]
        probes = make_probes(self._policy, generations, count=self._probes) if self._probes else []
        folder, _ = write_policy_checkpoint(checkpoints, self._policy, manifest, self._updater, probes)
        # Read it back as it was written: an integer among the metrics returns as 1.0, and the event's bytes are hashed.
        self.manifest = read_manifest(folder, verify=False)
        self.manifest_sha256 = file_sha256(folder / MANIFEST)
        return folder

    def follow(self, stop: Callable[[], bool]) -> bool:
        """Make rank 0's next update in this process, which writes nothing; return False at the end.

        Raises LearnerProcessError if rank 0 is gone, UpdateError if the update cannot be made.
        """
        message = self._processes.hear(stop)
        if message is None:
            return False
        task = msgspec.json.decode(message, type=_Task)
        self._updater.update(task.rewards, current=task.current)
        return True


def _metrics(measured: Mapping[str, float], lags: Sequence[int]) -> dict[str, float]:
    """Return an update's metrics, all as floats.

    An integer would return from JSON as another text. The update that is announced again after a resume would then have
    another hash.
    """
    return {name: float(value) for name, value in {**measured, "staleness_max": max(lags, default=0)}.items()}


def write_first_checkpoint(checkpoints: Path, policy: Policy) -> Path:
    """Write the policy with which a run begins as checkpoint 0, on a new lineage, and return its folder."""
    first = PolicyRef(lineage=new_lineage(None), step=0, sha256="")
    return write_policy_checkpoint(checkpoints, policy, Manifest(policy=first, parent=None), None)[0]


def find_origin(folder: Path, manifest: Manifest) -> Path:
    """Return the folder of the warmed-up policy from which this checkpoint, with this manifest, came.

    Raises CheckpointError if that folder is gone or has changed.
    """
    if manifest.policy.step == 0:
        return folder
    try:
        if manifest.origin is None:
            raise CheckpointError(f"checkpoint {folder.name} does not name it")
        origin = folder.parent / version_name(manifest.origin)
        read_manifest(origin, verify=True)
    except CheckpointError as error:
        raise CheckpointError(
            f"learner.objective.kl_weight > 0 needs the warmed-up policy as its reference, expected as checkpoint 0 "
            f"in {folder.parent}: {error}. Put it back, set kl_weight to 0, or start a new run with --run NAME"
        ) from error
    return origin


def write_policy_checkpoint(
    checkpoints: Path,
    policy: Policy,
    manifest: Manifest,
    updater: Updater | None,
    probes: Sequence[Probe] = (),
) -> tuple[Path, Manifest]:
    """Write policy and optimizer as one checkpoint; the weights' sha256 completes the version's name.

    updater: None for a warmed-up policy, which has no optimizer state yet. probes: of this policy (`learner.probes`).
    Raises CheckpointError if the checkpoint cannot be written; the previous checkpoint stays CURRENT.
    """
    named = manifest

    def write_files(folder: Path) -> Manifest:
        nonlocal named
        try:
            saved = save_policy(policy, folder)
            write_probes(folder, probes)
            if updater is not None:
                tensors = {name: tensor.contiguous() for name, tensor in updater.optimizer_tensors().items()}
                save_file(tensors | {RNG_STATE: torch.get_rng_state()}, folder / OPTIMIZER)
        except SafetensorError as error:
            # safetensors 0.8 gives the operating system's error only in its text: "… (os error 28)".
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(int(number[1]) if number else errno.EIO, str(error)) from error
        reference = msgspec.structs.replace(manifest.policy, sha256=saved.sha256)
        update = msgspec.structs.replace(manifest.update, policy=reference) if manifest.update else None
        named = msgspec.structs.replace(manifest, policy=reference, update=update)
        return named

    return save_checkpoint(checkpoints, manifest.policy, write_files), named
