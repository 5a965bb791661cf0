"""One update: a batch of rewarded groups becomes one optimizer step on the policy, in place.

The groups are packed and forwarded in micro-batches, whose losses add up to the batch's loss. One AdamW step follows.
Groups without spread count in the loss's denominators, as in the papers. They need no backward pass, except for the KL
or the entropy. Nothing is random: on a CPU in fp32, the same batch from the same state gives bit-equal weights.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, NoReturn

import msgspec
import torch
from torch import Tensor, nn

from learner.groups import SortedGroups, reward_metrics, sort_groups
from learner.logprobs import check_policy, completion_logprobs, positions_max, vocabulary_size
from learner.objectives import ObjectiveSettings, check_objective, policy_objective, token_weights
from learner.packing import PackedGroups, pack_groups
from learner.processes import ALONE, Processes
from learner.recomputing import recompute_layers
from learner.selecting import Selector
from learner.shares import (
    MicroBatch,
    ShareResult,
    cut,
    fingerprint,
    forward_tokens,
    merged,
    shares_of,
    tokens_of,
)
from streams.descriptions import describe
from streams.errors import SearchloopError
from streams.events import PolicyRef, Reward


class UpdateError(SearchloopError, RuntimeError):
    """An update could not be made; the weights did not change."""


class UpdateSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the optimizer. The defaults come from a pilot that worked, with a decoder of 1.2 M parameters."""

    learning_rate: Annotated[
        float,
        msgspec.Meta(gt=0, le=1),
        describe(
            "Peak step size of AdamW. A larger rate learns faster and is less stable; large models need a smaller one.",
            common=True,
        ),
    ] = 1e-4
    warmup_updates: Annotated[
        int, msgspec.Meta(ge=0), describe("Steps in which the rate grows linearly to learning_rate. 0 starts with it.")
    ] = 0
    decay_updates: Annotated[
        int, msgspec.Meta(ge=0), describe("Steps in which the rate falls linearly to 0. 0 keeps it constant.")
    ] = 0
    beta1: Annotated[float, msgspec.Meta(ge=0, lt=1), describe("AdamW's decay of the mean of gradients.")] = 0.9
    beta2: Annotated[float, msgspec.Meta(ge=0, lt=1), describe("AdamW's decay of the mean of squared gradients.")] = (
        0.999
    )
    weight_decay: Annotated[float, msgspec.Meta(ge=0, le=1), describe("AdamW's decoupled weight decay.")] = 0.0
    grad_norm_max: Annotated[
        float, msgspec.Meta(gt=0), describe("Largest norm of a gradient. Longer gradients are scaled down to it.")
    ] = 1.0
    inner_epochs: Annotated[int, msgspec.Meta(ge=1, le=16), describe("Optimizer steps on the same batch.")] = 1
    micro_batch_groups: Annotated[
        int,
        msgspec.Meta(ge=1, le=4096),
        describe(
            "Most groups in one forward pass. Fewer need less memory; the gradient stays the same. Groups of "
            "similar length share a pass, so that little is padding."
        ),
    ] = 16
    micro_batch_tokens: Annotated[
        int, msgspec.Meta(ge=1), describe("Most tokens in one forward pass, with padding, unless one group has more.")
    ] = 32_768
    precision: Annotated[
        Literal["fp32", "bf16"],
        describe(
            "Format of matrix products: fp32, or bf16 with trained weights, gradients and optimizer in fp32. bf16 is "
            "faster on a GPU, and halves the memory of weights that LoRA freezes."
        ),
    ] = "fp32"
    recompute: Annotated[
        bool,
        describe(
            "True computes activations again in the backward pass (gradient checkpointing). That needs less memory and "
            "more time."
        ),
    ] = False
    # The rounding of fp32 is 1e-4 nats; a bf16 sampler of a large model may reach 0.5.
    logprob_difference_max: Annotated[
        float,
        msgspec.Meta(gt=0),
        describe(
            "Largest error of logged log-probabilities, in nats. A group of the policy's own that is further "
            "off is refused. A bf16 sampler may need 0.5."
        ),
    ] = 0.1


@dataclass(frozen=True, kw_only=True)
class UpdateResult:
    """The outcome of an update: the fate of each group, by group id, and metrics.

    trained: had spread and gave a gradient. flat: without spread. failed: fewer than two scored candidates. rejected:
    malformed, with the reason. disputed: with log-probabilities that the policy does not give, with the reason; these
    keep their place in the loss's denominators. stepped: the weights moved.
    """

    trained: tuple[str, ...]
    flat: tuple[str, ...]
    failed: tuple[str, ...]
    rejected: dict[str, str] = field(default_factory=dict)
    disputed: dict[str, str] = field(default_factory=dict)
    stepped: bool
    metrics: dict[str, float] = field(default_factory=dict)


class Updater:
    """A policy model with its optimizer. `update` moves the weights in place; `step` counts optimizer steps."""

    def __init__(
        self,
        model: nn.Module,
        *,
        objective: ObjectiveSettings,
        settings: UpdateSettings,
        opener_ids: Iterable[int] = (),
        selector: Selector | None = None,
        reference: nn.Module | None = None,
        pad_id: int = 0,
        shares: int = 1,
        processes: Processes = ALONE,
    ) -> None:
        """model: a causal LM, with or without LoRA; it trains the parameters that require a gradient.

        opener_ids: see `learner.constraints`. selector: see `learner.selecting`.
        reference: the reference policy of the KL; needed if kl_weight > 0.
        shares: parts of a batch whose gradients are computed one by one and then added. processes: those that compute
        a share each, and all make the same step; alone, one process computes all shares, and gives the same bits.
        Raises PolicyUnfitError if the model cannot be trained on packed groups, UpdateError if a needed reference is
        missing, and SettingsError if parts of the objective do not fit together.
        """
        check_policy(model)
        check_objective(objective)
        if processes.count not in (1, shares):
            raise UpdateError(f"expected {shares} learner processes, one a share, got {processes.count}")
        if objective.kl_weight > 0 and reference is None:
            raise UpdateError("objective.kl_weight > 0 needs a reference policy, got none. Pass one, or set it to 0.")
        if settings.recompute:
            recompute_layers(model)
        if settings.precision == "bf16":
            halve_frozen(model)
        self.model = model
        self.step = 0
        self._reference = reference
        self._objective = objective
        self._settings = settings
        self._opener_ids = frozenset(opener_ids)
        self._selector = selector
        self._pad_id = pad_id
        self._share_count = shares
        self._processes = processes
        self._named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._parameters = list(self._named.values())
        # fused: one pass over each tensor instead of about ten; it is elementwise, so it stays deterministic.
        self._optimizer = torch.optim.AdamW(
            self._parameters,
            lr=settings.learning_rate,
            betas=(settings.beta1, settings.beta2),
            weight_decay=settings.weight_decay,
            fused=True,
        )

    def update(self, rewards: Sequence[Reward], *, current: PolicyRef | None = None) -> UpdateResult:
        """Learn from one batch and return the fate of each group.

        rewards: admitted groups (fresh enough, training split), in log order. current: the version of the weights. A
        group that this version wrote must carry its log-probabilities; if they are further off than
        `logprob_difference_max`, the group gives no gradient. Stale groups cannot be checked this way.
        Raises UpdateError if the loss or the gradient is not finite. That step is not made; with inner_epochs > 1, the
        steps before it are.
        """
        groups = sort_groups(
            rewards,
            objective=self._objective,
            opener_ids=self._opener_ids,
            vocabulary=vocabulary_size(self.model),
            positions_max=positions_max(self.model),
            selector=self._selector,
        )
        own = {reward.group_id for reward in rewards if reward.generation.policy == current}
        refused: dict[str, str] = {}
        shares = self._shares(groups)
        metrics: dict[str, float] = {}
        for epoch in range(self._settings.inner_epochs):
            found = self._gradients(shares, own)
            if epoch == 0:
                metrics, refused = found.tally.metrics(), found.refused
            if not found.learned:
                break
            norm = self._apply()
            if epoch == 0:
                metrics |= {"grad_norm": norm, "learning_rate": self._optimizer.param_groups[0]["lr"]}
        stepped = "grad_norm" in metrics
        return UpdateResult(
            trained=tuple(group_id for group_id in groups.spread if group_id not in refused and stepped),
            flat=tuple(group_id for group_id in groups.flat if group_id not in refused),
            failed=groups.failed,
            rejected=groups.rejected,
            disputed=refused,
            stepped=stepped,
            metrics=metrics
            | reward_metrics([outcome for reward in rewards for outcome in reward.outcomes])
            | {
                "groups": float(len(rewards)),
                "flat_share": len(groups.flat) / max(1, len(groups.flat) + len(groups.spread)),
                "rejected_share": (len(groups.rejected) + len(refused)) / max(1, len(rewards)),
            },
        )

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """Return the optimizer's whole state and the step count as named tensors for safetensors, not copied."""
        tensors = {"step": torch.tensor(self.step)}
        for name, parameter in self._named.items():
            for key, value in self._optimizer.state.get(parameter, {}).items():
                tensors[f"{name}/{key}"] = value
        return tensors

    def load_optimizer_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Load a state that `optimizer_tensors` returned. Raises UpdateError if it belongs to another policy."""
        strangers = {key.rpartition("/")[0] for key in tensors if key != "step"} - self._named.keys()
        if strangers or "step" not in tensors:
            raise UpdateError(
                f"optimizer state: expected a step count and states of this policy's {len(self._named)} parameters, "
                f"got {len(strangers)} unknown (such as {min(strangers, default='none')}). Use the checkpoint's policy."
            )
        states: dict[Tensor, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key == "step":
                continue
            name, _, part = key.rpartition("/")
            parameter = self._named[name]
            if part != "step" and value.shape != parameter.shape:
                raise UpdateError(f"optimizer state {key}: expected shape {[*parameter.shape]}, got {[*value.shape]}")
            states.setdefault(parameter, {})[part] = value.to(parameter.device, copy=True)
        self.step = int(tensors["step"])
        self._optimizer.state.clear()
        self._optimizer.state.update(states)

    def _shares(self, groups: SortedGroups) -> list[list[MicroBatch]]:
        """Return the micro-batches of each share that this process computes: of all shares, if it is alone."""
        regularised = self._objective.kl_weight > 0 or self._objective.entropy_weight > 0
        usable = [*groups.spread.values(), *groups.flat.values()]
        lengths = [len(candidate.token_ids) for group in usable for candidate in group.candidates]
        shares: list[list[MicroBatch]] = [[] for _ in range(self._share_count)]
        device = self._parameters[0].device
        size, most = self._settings.micro_batch_groups, self._settings.micro_batch_tokens
        for part, learns in ((groups.spread, True), (groups.flat, regularised)):
            items = list(part.items())
            for number, chosen in enumerate(shares_of([sum(tokens_of(each)) for _, each in items], self._share_count)):
                if self._processes.count > 1 and number != self._processes.rank:
                    continue
                mine, passes = [items[item] for item in chosen], forward_tokens(device.type)
                for some in cut(mine, size, tokens_max=most, forward_tokens=passes):
                    packed = pack_groups(list(some.values()), pad_id=self._pad_id, device=device)
                    weights = token_weights(packed.mask, self._objective, sequences=len(lengths), tokens=sum(lengths))
                    shares[number].append(MicroBatch(groups=some, packed=packed, weights=weights, learns=learns))
        return shares if self._processes.count == 1 else [shares[self._processes.rank]]

    def _gradients(self, shares: Sequence[Sequence[MicroBatch]], own: Collection[str]) -> ShareResult:
        """Leave the batch's gradient on the parameters, summed over all shares; return what the shares found.

        Raises UpdateError if a share's loss is not finite, in every process.
        """
        found: list[ShareResult] = []
        sums: list[Tensor] = []
        for micro_batches in shares:
            self._optimizer.zero_grad(set_to_none=True)
            found.append(self._share(micro_batches, own))
            if self._share_count > 1:
                gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in self._parameters]
                if sums:
                    torch._foreach_add_(sums, gradients)
                else:
                    sums = gradients
        if self._processes.count > 1:
            found[0].weights = fingerprint(self._parameters)
            gathered = self._processes.gather(msgspec.msgpack.encode(found[0]))
            found = [msgspec.msgpack.decode(each, type=ShareResult) for each in gathered]
        whole = merged(found)
        if whole.trouble:
            self._give_up(whole.trouble)
        if self._share_count > 1 and whole.learned:
            self._processes.add(sums)
            for parameter, gradient in zip(self._parameters, sums, strict=True):
                parameter.grad = gradient
        return whole

    def _share(self, micro_batches: Sequence[MicroBatch], own: Collection[str]) -> ShareResult:
        """Add up the gradients of one share's micro-batches on the parameters; stop at the first trouble."""
        result = ShareResult()
        for micro in micro_batches:
            packed = micro.packed
            with torch.set_grad_enabled(micro.learns), self._autocast():
                logprobs, entropies = completion_logprobs(self.model, packed)
            if not bool(logprobs.isfinite().all()):
                result.trouble = "log-probabilities are not finite; look for damaged weights in the newest checkpoint"
                break
            if micro.old_logprobs is None:
                micro.old_logprobs = logprobs.detach()
                self._refuse_liars(micro, own, result)
            with torch.set_grad_enabled(micro.learns):
                objective = policy_objective(
                    logprobs=logprobs,
                    entropies=entropies,
                    old_logprobs=micro.old_logprobs,
                    behaviour_logprobs=packed.behaviour_logprobs,
                    reference_logprobs=self._reference_logprobs(packed),
                    advantages=packed.advantages,
                    mask=packed.mask,
                    weights=micro.weights,
                    settings=self._objective,
                )
            result.tally.add(packed, logprobs.detach(), entropies.detach(), objective)
            if not math.isfinite(result.tally.loss):
                result.trouble = f"the loss is {result.tally.loss}; lower learning_rate"
                break
            if micro.learns and bool(micro.weights.loss.any()):
                objective.loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
                result.learned = True
        return result

    def _refuse_liars(self, micro: MicroBatch, own: Collection[str], result: ShareResult) -> None:
        """Remove the gradient of the policy's own groups if it does not reproduce their logged log-probabilities."""
        assert micro.old_logprobs is not None
        limit = self._settings.logprob_difference_max
        for group_id, difference in micro.differences(micro.old_logprobs).items():
            if group_id not in own:
                continue
            result.tally.maximum("logprob_difference_max", difference)
            if difference > limit:
                result.refused[group_id] = (
                    f"expected log-probabilities within {limit} nats of the policy's own, got {difference:.4g} off; "
                    "if the sampler is less exact than that, raise logprob_difference_max"
                )
        micro.refuse(result.refused)

    def _give_up(self, reason: str) -> NoReturn:
        self._optimizer.zero_grad(set_to_none=True)
        raise UpdateError(f"update {self.step + 1}: {reason}. The weights did not move.")

    def _apply(self) -> float:
        """Clip the gradient, set the learning rate and step; return the norm before clipping."""
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        if not math.isfinite(norm):
            self._give_up(f"the gradient's norm is {norm}; lower learning_rate")
        if norm > self._settings.grad_norm_max:
            for gradient in gradients:
                gradient.mul_(self._settings.grad_norm_max / norm)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate_at(self.step, self._settings)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return norm

    def _reference_logprobs(self, packed: PackedGroups) -> Tensor | None:
        if self._objective.kl_weight == 0 or self._reference is None:
            return None
        with torch.no_grad(), self._autocast():
            return completion_logprobs(self._reference, packed)[0]

    def _autocast(self) -> torch.autocast:
        device = self._parameters[0].device.type
        return torch.autocast(device, dtype=torch.bfloat16, enabled=self._settings.precision == "bf16")


def halve_frozen(model: nn.Module) -> None:
    """Turn the weights that are not trained into bf16, in place; trained ones stay in fp32."""
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)


def learning_rate_at(step: int, settings: UpdateSettings) -> float:
    """Return the learning rate of the next step after `step` steps: linear growth, then constant or linear decay."""
    rate = settings.learning_rate
    if step < settings.warmup_updates:
        return rate * (step + 1) / settings.warmup_updates
    if settings.decay_updates == 0:
        return rate
    return rate * max(0.0, 1 - (step - settings.warmup_updates) / settings.decay_updates)
