"""The check that a group's log-probabilities come from the policy version that it names, with that version's weights.

For groups that the current policy wrote, the update makes this comparison at no extra cost, since it forwards them
anyway. In a streaming run, most groups are a step or two older. For these, the checker loads the claimed version's
checkpoint into one spare model and forwards the groups once more. Checkpoints are kept as long as groups may use them.
A setting limits the check to a share of these groups.

On a CPU, the check draws no random number and changes no weights, so a repeated run gives the same bits.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import torch

from learner.checkpoints import CheckpointError
from learner.groups import reward_group
from learner.logprobs import check_policy, completion_logprobs, positions_max, vocabulary_size
from learner.objectives import ObjectiveSettings
from learner.packing import GroupError, PromptGroup, check_group, pack_groups
from learner.policy import Policy, load_policy
from learner.sampling import completion_text
from learner.versions import check_version, load_weights
from streams.descriptions import describe
from streams.errors import SearchloopError
from streams.events import Generation, PolicyRef, Reward
from streams.topics import version_name


class ClaimSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The groups that are checked against the version that they name, and the tolerance."""

    share: Annotated[
        float,
        msgspec.Meta(ge=0, le=1),
        describe("Share of the groups of older versions that are checked, chosen by their ids. 1 checks all, 0 none."),
    ] = 0.1
    logprob_difference_max: Annotated[
        float,
        msgspec.Meta(ge=0),
        describe(
            "Largest error of logged log-probabilities, in nats. A group that is further off is refused. 0: the limit "
            "of `learner.update`."
        ),
    ] = 0.0
    groups_at_once: Annotated[
        int, msgspec.Meta(ge=1, le=4096), describe("Groups in one forward pass. Fewer need less memory.")
    ] = 16


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """The result of checking one group.

    difference: largest |difference| of a token's log-probability, in nats; None if it could not be computed.
    reason: why it could not be computed; "" if it could.
    """

    difference: float | None = None
    reason: str = ""


class ClaimChecker:
    """Recomputes groups under the versions that they claim, in its own model. Not thread-safe."""

    def __init__(
        self,
        checkpoints: Path,
        settings: ClaimSettings | None = None,
        *,
        no_repeat: bool,
        device: torch.device | str = "cpu",
        difference_max: float = 0.1,
    ) -> None:
        """checkpoints: their folder in the run. no_repeat: the learner's rule; a group says if its sampler kept it.

        difference_max: the limit, in nats, if the settings name none of their own.
        The model is loaded when the first group is checked.
        """
        self._checkpoints = checkpoints
        self._settings = settings or ClaimSettings()
        self._no_repeat = no_repeat
        self._device = device
        self._difference_max = self._settings.logprob_difference_max or difference_max
        self._spare: Policy | None = None
        self._loaded: PolicyRef | None = None

    def check(self, rewards: Sequence[Reward], *, current: PolicyRef | None = None) -> dict[str, str]:
        """Return, by group id, why a group's claim is refused; the other groups that were checked hold.

        current: the version whose groups the update itself compares; they are left out here.
        A claim that cannot be checked is refused, too, since the checkpoint of every version in use is kept.
        """
        chosen = [
            reward
            for reward in rewards
            if reward.generation.policy != current and is_chosen(reward.group_id, self._settings.share)
        ]
        limit = self._difference_max
        refused = {}
        for group_id, claim in self.measure(chosen).items():
            if claim.reason:
                refused[group_id] = claim.reason
            elif claim.difference is not None and not claim.difference <= limit:
                refused[group_id] = (
                    f"expected log-probabilities within {limit} nats of those of the policy that it names, got "
                    f"{claim.difference:.4g} off; if the sampler is less exact than that, raise logprob_difference_max"
                )
        return refused

    def measure(self, rewards: Sequence[Reward]) -> dict[str, Claim]:
        """Return the claim of each group by its id; groups with fewer than two scored candidates are left out."""
        claimed: dict[PolicyRef, list[Reward]] = {}
        for reward in rewards:
            claimed.setdefault(reward.generation.policy, []).append(reward)
        found: dict[str, Claim] = {}
        # The loaded version comes first, so its weights are not read from the disk again.
        for policy, of_version in sorted(claimed.items(), key=lambda item: item[0] != self._loaded):
            try:
                spare = self._load(policy)
            except SearchloopError as error:
                reason = f"its policy {version_name(policy)[:80]!r} cannot be looked up: {error}"
                found |= {reward.group_id: Claim(reason=reason) for reward in of_version}
                continue
            found |= self._measure(of_version, spare)
        return found

    def _measure(self, rewards: Sequence[Reward], spare: Policy) -> dict[str, Claim]:
        found: dict[str, Claim] = {}
        groups: dict[str, PromptGroup] = {}
        for reward in rewards:
            try:
                self._check_text(reward.generation, spare)
                group = self._group(reward, spare)
            except GroupError as error:
                found[reward.group_id] = Claim(reason=str(error))
                continue
            if group is not None:
                groups[reward.group_id] = group
        names = list(groups)
        for start in range(0, len(names), self._settings.groups_at_once):
            some = {name: groups[name] for name in names[start : start + self._settings.groups_at_once]}
            found |= {name: Claim(difference=value) for name, value in differences(spare, some).items()}
        return found

    def _group(self, reward: Reward, spare: Policy) -> PromptGroup | None:
        """Return the group as the learner would train on it. Raises GroupError if the learner would refuse it."""
        group = reward_group(
            reward,
            objective=ObjectiveSettings(),  # Advantages play no part here.
            opener_ids=spare.opener_ids if self._no_repeat else frozenset(),
            selector=spare.selector,
        )
        if group is not None:
            check_group(group, vocabulary=vocabulary_size(spare.model), positions_max=positions_max(spare.model))
        return group

    def _check_text(self, generation: Generation, spare: Policy) -> None:
        """Raise GroupError if a completion's rewarded text is not the text of its tokens, which are trained on."""
        vocabulary = vocabulary_size(spare.model)
        for index, completion in enumerate(generation.completions):
            if not completion.token_ids or not all(0 <= token < vocabulary for token in completion.token_ids):
                raise GroupError(f"completion {index}: expected token ids in 0…{vocabulary - 1}, got others or none")
            if completion_text(spare.tokenizer, completion.token_ids, spare.stop_ids) != completion.text:
                raise GroupError(f"completion {index}: expected the text of its tokens, got another one")

    def _load(self, policy: PolicyRef) -> Policy:
        """Return the spare model with this version's weights. Raises CheckpointError or PolicyError on failure.

        The version's files are checked before they are used; see `learner.versions`.
        """
        if self._spare is not None and policy == self._loaded:
            return self._spare
        folder = self._folder(policy)
        if self._spare is not None:
            spare, self._loaded = self._spare, None  # If loading fails, the weights may be a mixture of two versions.
            load_weights(spare, folder, policy)
        else:
            check_version(folder, policy)
            with torch.random.fork_rng(devices=[]):  # PEFT draws an adapter's first weights before it reads them.
                spare = load_policy(folder)
            check_policy(spare.model)
            spare.model.to(self._device).requires_grad_(False)
            self._spare = spare
        self._loaded = policy
        return spare

    def _folder(self, policy: PolicyRef) -> Path:
        name = version_name(policy)
        if Path(name).name != name or "\0" in name or name.startswith("."):
            raise CheckpointError(f"expected the name of a version, got {name[:80]!r}")
        folder = self._checkpoints / name
        if not folder.is_dir():
            raise CheckpointError(f"no checkpoint of that name is kept in {self._checkpoints}")
        return folder


@torch.no_grad()
def differences(policy: Policy, groups: dict[str, PromptGroup]) -> dict[str, float]:
    """Return each group's largest |log π − log μ|, in nats, by its id; infinite if the policy gives no finite number.

    groups: with the rules that their sampler kept; they must have passed `check_group`. μ: the sampler's logged value.
    """
    device = next(policy.model.parameters()).device
    packed = pack_groups(list(groups.values()), pad_id=policy.pad_id, device=device)
    own, _ = completion_logprobs(policy.model, packed)  # [N, C]
    rows = iter((own - packed.behaviour_logprobs).abs().amax(dim=1).tolist())  # [N]
    largest = {name: max(next(rows) for _ in group.candidates) for name, group in groups.items()}
    return {name: value if math.isfinite(value) else math.inf for name, value in largest.items()}


def is_chosen(group_id: str, share: float) -> bool:
    """Return whether a group is among this share of all groups. It depends on the id alone, so every replay agrees."""
    number = int.from_bytes(hashlib.sha256(group_id.encode(errors="replace")).digest()[:8])
    return number < share * 2**64
