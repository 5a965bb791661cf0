"""One update: a batch of rewarded groups becomes one optimizer step on the policy, in place.

A group's scored candidates get advantages relative to each other; failed ones leave the group's mean. The groups are
packed, forwarded in micro-batches whose losses add up to the batch's loss, and one AdamW step follows. Nothing is
random: on CPU in fp32 the same batch from the same state gives bit-equal weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec
import torch
from torch import Tensor, nn

from learner.logprobs import check_policy, completion_logprobs, positions_max
from learner.objectives import (
    Objective,
    ObjectiveSettings,
    group_advantages,
    policy_objective,
    token_weights,
)
from learner.packing import Candidate, Group, GroupError, PackedGroups, check_group, pack_groups
from streams.errors import SearchloopError
from streams.events import Outcome, PolicyRef, Reward


class UpdateError(SearchloopError, RuntimeError):
    """An update could not be made; the weights are those from before it."""


class UpdateSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How gradients become steps. The defaults are those of the pilot that worked (a decoder of 1.2 M parameters)."""

    learning_rate: Annotated[float, msgspec.Meta(gt=0, le=1, description="AdamW's peak step size")] = 1e-4
    warmup_updates: Annotated[int, msgspec.Meta(ge=0, description="updates of linear growth to learning_rate")] = 0
    decay_updates: Annotated[int, msgspec.Meta(ge=0, description="updates of linear decay to 0; 0 = constant")] = 0
    beta1: Annotated[float, msgspec.Meta(ge=0, lt=1, description="AdamW's decay of the mean")] = 0.9
    beta2: Annotated[float, msgspec.Meta(ge=0, lt=1, description="AdamW's decay of the square")] = 0.999
    weight_decay: Annotated[float, msgspec.Meta(ge=0, le=1, description="AdamW's decoupled decay")] = 0.0
    grad_norm_max: Annotated[float, msgspec.Meta(gt=0, description="longer gradients are scaled down to this")] = 1.0
    inner_epochs: Annotated[int, msgspec.Meta(ge=1, le=16, description="optimizer steps on the same batch")] = 1
    micro_batch_groups: Annotated[
        int,
        msgspec.Meta(ge=1, le=4096, description="groups forwarded at once: memory, not the gradient, depends on it"),
    ] = 16


@dataclass(frozen=True, kw_only=True)
class UpdateResult:
    """What became of a batch's groups, by group id, and what was measured.

    trained: gave a gradient. flat: without spread. failed: fewer than two scored candidates. rejected: malformed, with
    the reason. stepped: whether the weights changed; they do not if no group was trained.
    """

    trained: tuple[str, ...]
    flat: tuple[str, ...]
    failed: tuple[str, ...]
    rejected: dict[str, str] = field(default_factory=dict)
    stepped: bool = True
    metrics: dict[str, float] = field(default_factory=dict)


class Updater:
    """A policy model with its optimizer; `update` moves the weights in place, `step` counts optimizer steps."""

    def __init__(
        self,
        model: nn.Module,
        *,
        objective: ObjectiveSettings,
        settings: UpdateSettings,
        opener_ids: Iterable[int] = (),
        reference: nn.Module | None = None,
        pad_id: int = 0,
    ) -> None:
        """model: a causal LM, with or without LoRA; its trainable parameters are those that require a gradient.

        opener_ids: see `learner.constraints`. reference: the policy that the KL holds to; needed if kl_weight > 0.
        Raises PolicyUnfitError if the model cannot be trained on packed groups, ValueError without a needed reference.
        """
        check_policy(model)
        if objective.kl_weight > 0 and reference is None:
            raise UpdateError("objective.kl_weight > 0 needs a reference policy, got none. Pass one, or set it to 0.")
        self.model = model
        self.step = 0
        self._reference = reference
        self._objective = objective
        self._settings = settings
        self._opener_ids = frozenset(opener_ids)
        self._pad_id = pad_id
        self._named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        self._parameters = [parameter for _, parameter in self._named]
        # fused: one pass over each tensor instead of about ten; elementwise, so still deterministic.
        self._optimizer = torch.optim.AdamW(
            self._parameters,
            lr=settings.learning_rate,
            betas=(settings.beta1, settings.beta2),
            weight_decay=settings.weight_decay,
            fused=True,
        )

    def update(self, rewards: Sequence[Reward], *, current: PolicyRef | None = None) -> UpdateResult:
        """Learn from one batch and return what became of each group.

        rewards: admitted groups (fresh enough, training split), in log order. current: the policy that the weights are
        now; groups that it wrote itself give `logprob_difference_max`, which is rounding unless something lied.
        Raises UpdateError if the loss or the gradient is not finite; weights and optimizer are then as before.
        """
        sorting = _sort(rewards, self.model, self._objective, self._opener_ids)
        metrics = reward_metrics([outcome for reward in rewards for outcome in reward.outcomes])
        metrics |= {
            "groups": float(len(rewards)),
            "flat_share": len(sorting.flat) / max(1, len(sorting.flat) + len(sorting.trained)),
        }
        if not sorting.trained:
            return sorting.result(metrics, stepped=False)
        device = self._parameters[0].device
        size = self._settings.micro_batch_groups
        micro_batches = [
            pack_groups(sorting.groups[start : start + size], pad_id=self._pad_id, device=device)
            for start in range(0, len(sorting.groups), size)
        ]
        old_logprobs: list[Tensor] = []
        for epoch in range(self._settings.inner_epochs):
            tally = _Tally()
            self._gradients(micro_batches, old_logprobs, tally)
            norm = self._apply()
            if epoch == 0:
                metrics |= tally.metrics() | {"grad_norm": norm}
                metrics |= _difference_metrics(rewards, sorting, micro_batches, old_logprobs, current)
        metrics["learning_rate"] = self._optimizer.param_groups[0]["lr"]
        return sorting.result(metrics, stepped=True)

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """Return the optimizer's whole state and the step count as named tensors, for safetensors; not copies."""
        tensors = {"step": torch.tensor(self.step)}
        for name, parameter in self._named:
            for key, value in self._optimizer.state.get(parameter, {}).items():
                tensors[f"{name}/{key}"] = value
        return tensors

    def load_optimizer_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from a state that `optimizer_tensors` returned. Raises UpdateError if it belongs to another policy."""
        known = dict(self._named)
        strangers = {key.rpartition("/")[0] for key in tensors if key != "step"} - known.keys()
        if strangers or "step" not in tensors:
            raise UpdateError(
                f"optimizer state: expected a step count and states of this policy's {len(known)} parameters, got "
                f"{len(strangers)} unknown (such as {min(strangers, default='none')}). Use the checkpoint's own policy."
            )
        self.step = int(tensors["step"])
        self._optimizer.state.clear()
        for key, value in tensors.items():
            name, _, part = key.rpartition("/")
            if name:
                if part != "step" and value.shape != known[name].shape:
                    raise UpdateError(
                        f"optimizer state {key}: expected shape {list(known[name].shape)}, got {list(value.shape)}"
                    )
                self._optimizer.state[known[name]][part] = value.clone()

    def _gradients(self, micro_batches: list[PackedGroups], old_logprobs: list[Tensor], tally: _Tally) -> None:
        """Add up the micro-batches' gradients; on the first epoch, remember the log-probabilities as π_old."""
        sequences = sum(packed.mask.shape[0] for packed in micro_batches)
        tokens = sum(int(packed.mask.sum()) for packed in micro_batches)
        self._optimizer.zero_grad(set_to_none=True)
        first_epoch = not old_logprobs
        for index, packed in enumerate(micro_batches):
            logprobs, entropies = completion_logprobs(self.model, packed)
            if first_epoch:
                old_logprobs.append(logprobs.detach())
            objective = policy_objective(
                logprobs=logprobs,
                entropies=entropies,
                old_logprobs=old_logprobs[index],
                behaviour_logprobs=packed.behaviour_logprobs,
                reference_logprobs=self._reference_logprobs(packed),
                advantages=packed.advantages,
                mask=packed.mask,
                weights=token_weights(packed.mask, self._objective, sequences=sequences, tokens=tokens),
                settings=self._objective,
            )
            loss = float(objective.loss.detach())
            if not math.isfinite(loss):
                self._optimizer.zero_grad(set_to_none=True)
                raise UpdateError(
                    f"update {self.step + 1}: the loss is {loss}; weights unchanged. Lower learning_rate, or look for "
                    "damaged weights in the newest checkpoint."
                )
            objective.loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            tally.add(packed, logprobs.detach(), entropies.detach(), objective, loss)

    def _apply(self) -> float:
        """Clip the gradient, set the learning rate and step; return the norm before clipping."""
        norm = float(
            torch.nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None], norm_type=2.0)
        )
        if not math.isfinite(norm):
            self._optimizer.zero_grad(set_to_none=True)
            raise UpdateError(f"update {self.step + 1}: the gradient's norm is {norm}; weights unchanged.")
        scale = min(1.0, self._settings.grad_norm_max / (norm + 1e-6))
        if scale < 1:
            for parameter in self._parameters:
                if parameter.grad is not None:
                    parameter.grad.mul_(scale)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate_at(self.step, self._settings)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return norm

    def _reference_logprobs(self, packed: PackedGroups) -> Tensor | None:
        if self._objective.kl_weight == 0 or self._reference is None:
            return None
        with torch.no_grad():
            return completion_logprobs(self._reference, packed)[0]


def learning_rate_at(step: int, settings: UpdateSettings) -> float:
    """Return the learning rate of the step after `step` steps: linear growth, then constant or linear decay."""
    rate = settings.learning_rate
    if step < settings.warmup_updates:
        return rate * (step + 1) / settings.warmup_updates
    if settings.decay_updates == 0:
        return rate
    return rate * max(0.0, 1 - (step - settings.warmup_updates) / settings.decay_updates)


def reward_group(reward: Reward, settings: ObjectiveSettings, opener_ids: frozenset[int]) -> Group | None:
    """Return a reward event's scored candidates with their advantages; None if fewer than two were scored.

    Raises GroupError if the event does not have one outcome per completion, or a reward that is not finite.
    """
    generation = reward.generation
    if len(reward.outcomes) != len(generation.completions):
        raise GroupError(
            f"expected {len(generation.completions)} outcomes, one a completion, got {len(reward.outcomes)}"
        )
    scored = [
        (completion, outcome.reward)
        for completion, outcome in zip(generation.completions, reward.outcomes, strict=True)
        if outcome.reward is not None
    ]
    if not all(math.isfinite(value) for _, value in scored):
        raise GroupError(f"expected finite rewards, got {[value for _, value in scored]}")
    if len(scored) < 2:
        return None
    rewards = torch.tensor([[value for _, value in scored]], dtype=torch.float64)  # [1, G]
    advantages = group_advantages(rewards, scale=settings.advantage == "mean_std")[0].tolist()
    return Group(
        prompt_ids=generation.prompt_token_ids,
        candidates=tuple(
            Candidate(token_ids=completion.token_ids, logprobs=completion.logprobs, advantage=advantage)
            for (completion, _), advantage in zip(scored, advantages, strict=True)
        ),
        temperature=generation.sampling.temperature,
        opener_ids=opener_ids if generation.sampling.no_repeat else frozenset(),
    )


def reward_metrics(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Return mean and standard deviation of the rewards, and how the candidates look: validity, expansions, words.

    validity: share of valid candidates among the scored. expansions_mean: per valid candidate; words: per expansion.
    failed_share: candidates without a reward.
    """
    scored = [outcome for outcome in outcomes if outcome.reward is not None]
    valid = [outcome for outcome in scored if outcome.valid]
    expansions = [expansion for outcome in valid for expansion in outcome.expansions]
    rewards = torch.tensor([outcome.reward for outcome in scored], dtype=torch.float64)
    return {
        "reward_mean": float(rewards.mean()) if scored else 0.0,
        "reward_std": float(rewards.std(correction=0)) if scored else 0.0,
        "validity": len(valid) / max(1, len(scored)),
        "failed_share": (len(outcomes) - len(scored)) / max(1, len(outcomes)),
        "expansions_mean": len(expansions) / max(1, len(valid)),
        "expansion_words_mean": sum(len(expansion.split()) for expansion in expansions) / max(1, len(expansions)),
    }


@dataclass(frozen=True, kw_only=True)
class _Sorting:
    """A batch's groups by what can be done with them; `groups` are those to forward, `ids` theirs."""

    groups: list[Group]
    ids: list[str]
    trained: tuple[str, ...]
    flat: tuple[str, ...]
    failed: tuple[str, ...]
    rejected: dict[str, str]

    def result(self, metrics: dict[str, float], *, stepped: bool) -> UpdateResult:
        return UpdateResult(
            trained=self.trained,
            flat=self.flat,
            failed=self.failed,
            rejected=self.rejected,
            stepped=stepped,
            metrics=metrics,
        )


def _sort(
    rewards: Sequence[Reward], model: nn.Module, settings: ObjectiveSettings, opener_ids: frozenset[int]
) -> _Sorting:
    vocabulary, longest = _vocabulary(model), positions_max(model)
    groups: list[Group] = []
    ids: list[str] = []
    trained: list[str] = []
    flat: list[str] = []
    failed: list[str] = []
    rejected: dict[str, str] = {}
    for reward in rewards:
        try:
            group = reward_group(reward, settings, opener_ids)
            if group is None:
                failed.append(reward.group_id)
                continue
            check_group(group, vocabulary=vocabulary, positions_max=longest)
        except GroupError as error:
            rejected[reward.group_id] = str(error)
            continue
        groups.append(group)
        ids.append(reward.group_id)
        spread = any(candidate.advantage != 0 for candidate in group.candidates)
        (trained if spread else flat).append(reward.group_id)
    return _Sorting(
        groups=groups, ids=ids, trained=tuple(trained), flat=tuple(flat), failed=tuple(failed), rejected=rejected
    )


def _vocabulary(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[0])


class _Tally:
    """Sums over a batch's micro-batches, and the metrics that they give."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._ratio_max = 0.0
        self._completions = 0

    def add(self, packed: PackedGroups, logprobs: Tensor, entropies: Tensor, objective: Objective, loss: float) -> None:
        mask = packed.mask
        log_ratios = (logprobs - packed.behaviour_logprobs)[mask].double().clamp(max=20)  # [M]
        ratios = log_ratios.exp()
        for name, value in (
            ("loss", loss),
            ("tokens", float(mask.sum())),
            ("entropy", float(entropies[mask].double().sum())),
            ("ratio_mean", float(ratios.sum())),
            ("clip_share", float(objective.clipped[mask].sum())),
            ("correction_mean", float(objective.corrections[mask].double().sum())),
            ("kl_behaviour", float((ratios - 1 - log_ratios).sum())),
            ("kl_reference", float(objective.reference_kl[mask].double().sum())),
        ):
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._ratio_max = max(self._ratio_max, float(ratios.max()))
        self._completions += mask.shape[0]

    def metrics(self) -> dict[str, float]:
        """Return means over tokens; loss is the batch's, ratios are π/μ.

        kl_behaviour estimates KL(μ‖π), since the tokens are μ's: k3, r − 1 − log r with r = π/μ.
        """
        tokens = self._sums["tokens"]
        means = {name: value / tokens for name, value in self._sums.items() if name not in ("loss", "tokens")}
        return means | {
            "loss": self._sums["loss"],
            "tokens": tokens,
            "ratio_max": self._ratio_max,
            "completion_tokens_mean": tokens / self._completions,
        }


def _difference_metrics(
    rewards: Sequence[Reward],
    sorting: _Sorting,
    micro_batches: list[PackedGroups],
    logprobs: list[Tensor],
    current: PolicyRef | None,
) -> dict[str, float]:
    """Return the largest |log π − log μ| over the groups that the current policy wrote; {} if there is none."""
    own = {reward.group_id for reward in rewards if current is not None and reward.generation.policy == current}
    rows = torch.tensor(
        [group_id in own for group_id, group in zip(sorting.ids, sorting.groups, strict=True) for _ in group.candidates]
    )
    differences = torch.cat(
        [
            ((new - packed.behaviour_logprobs) * packed.mask).abs().amax(dim=1).cpu()
            for new, packed in zip(logprobs, micro_batches, strict=True)
        ]
    )  # [N]
    return {"logprob_difference_max": float(differences[rows].max())} if bool(rows.any()) else {}
