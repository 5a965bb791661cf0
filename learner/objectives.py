"""Group advantages and the losses that turn them into gradients, each with its paper and equation.

One loss, assembled from parts that the papers vary one at a time:

advantage    mean: r − mean(r)            LESER (arXiv:2509.05570), as in Dr. GRPO (arXiv:2503.20783)
             mean_std: (r − mean)/std     GRPO, DeepSeekMath (arXiv:2402.03300), outcome supervision
             softmax: G·softmax(r/β)      the listwise weights of ReSuMe (doi:10.1145/3774904.3792959), eq. 1
ratio        token: π/π_old               GRPO, eq. 3
             sequence: (π/π_old)^(1/|o|)  GSPO (arXiv:2507.18071), eq. 7
surrogate    clip                         PPO (arXiv:1707.06347), eq. 7; two bounds: DAPO (arXiv:2503.14476), eq. 10
             cispo                        MiniMax-M1 (arXiv:2506.13585), eq. 4
             likelihood                   log π, as ReSuMe's eq. 1 needs it; with softmax: weighted log-likelihood of
                                          whole texts, so that no aggregation by sequence means goes with it
correction   min(π_old/μ, cap)            truncated importance sampling on top of a proximal policy: IMPALA's ρ̄
                                          (arXiv:1802.01561) in the decoupled objective of AReaL (arXiv:2505.24298)
aggregation  sequence, token, constant    GRPO eq. 3; DAPO eq. 8; Dr. GRPO

π is the policy now, π_old the policy when the update began, μ the behaviour policy that wrote the completions (older by
the staleness). Every loss is compared with TRL's GRPOTrainer on the same tensors in the tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
import torch
from torch import Tensor

from streams.errors import SettingsError

LOG_RATIO_MAX = 20.0


class ObjectiveSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the learner maximises. The defaults are LESER's advantage in GRPO's clipped objective."""

    advantage: Annotated[
        Literal["mean", "mean_std", "softmax"],
        msgspec.Meta(description="r − mean(r) (LESER), or that by std(r) (GRPO), or G·softmax(r/β) (ReSuMe eq. 1)"),
    ] = "mean"
    softmax_temperature: Annotated[
        float, msgspec.Meta(gt=0, le=100, description="softmax: β, smaller listens to the best candidate alone")
    ] = 0.5
    surrogate: Annotated[
        Literal["clip", "cispo", "likelihood"],
        msgspec.Meta(description="clipped ratio (GRPO), weighted log-likelihood (CISPO), or the log-likelihood itself"),
    ] = "clip"
    ratio_level: Annotated[
        Literal["token", "sequence"], msgspec.Meta(description="importance ratio per token, or per sequence (GSPO)")
    ] = "token"
    clip_low: Annotated[float, msgspec.Meta(gt=0, lt=1, description="the ratio's lower bound is 1 − clip_low")] = 0.2
    clip_high: Annotated[float, msgspec.Meta(gt=0, le=10, description="the ratio's upper bound is 1 + clip_high")] = 0.2
    cispo_ratio_max: Annotated[float, msgspec.Meta(ge=1, le=100, description="cispo: the largest weight")] = 5.0
    correction: Annotated[
        Literal["token", "sequence", "none"],
        msgspec.Meta(description="off-policy weight min(π_old/μ, cap) per token or per sequence; none: π_old := μ"),
    ] = "token"
    correction_cap: Annotated[float, msgspec.Meta(ge=1, le=100, description="the largest off-policy weight")] = 2.0
    kl_weight: Annotated[float, msgspec.Meta(ge=0, le=10, description="β, weight of the KL to the reference")] = 0.0
    kl_unbiased: Annotated[
        bool, msgspec.Meta(description="weight the KL by π/π_old, so that its gradient is the reverse KL's own")
    ] = True
    entropy_weight: Annotated[
        float, msgspec.Meta(ge=0, le=1, description="weight of the mean entropy in nats; 0.01 cost validity in a pilot")
    ] = 0.0
    aggregation: Annotated[
        Literal["sequence", "token", "constant"],
        msgspec.Meta(
            description="mean of sequence means (GRPO), of all tokens (DAPO), or over constant_tokens (Dr. GRPO)"
        ),
    ] = "sequence"
    constant_tokens: Annotated[int, msgspec.Meta(ge=1, description="constant: the divisor per sequence, in tokens")] = (
        32
    )


def check_objective(settings: ObjectiveSettings) -> None:
    """Raise SettingsError for parts that do not go together.

    A likelihood pushes every sampled text up. Sums over its tokens cancel but for the rewards, since the score's mean
    under the policy is 0; means by text push the tokens of short ones harder (16 kept tokens became 1 in 15 updates).
    """
    if settings.surrogate == "likelihood" and settings.aggregation == "sequence":
        raise SettingsError(
            "learner.objective.aggregation: expected 'constant' or 'token' with surrogate = 'likelihood', got "
            "'sequence': means by text would teach the policy to be short"
        )


def group_advantages(rewards: Tensor, *, scale: bool = False) -> Tensor:
    """Return each completion's reward relative to its own group, in float64.

    rewards: [B, G] one row per request; NaN = not scored (failed, or the group is smaller), and stays NaN.
    scale: False gives r − mean(r) (LESER, Dr. GRPO); True divides by the standard deviation too (GRPO).
    Returns [B, G]; a group whose rewards are all equal gets zeros, and teaches nothing.
    Raises ValueError if a group has fewer than two scored completions.

    GRPO, DeepSeekMath (arXiv:2402.03300), outcome supervision: A_i = (r_i − mean(r))/std(r). We differ: std is the
    sample's (n − 1), as in TRL and veRL, where the paper does not say; where std(r) = 0 the paper leaves 0/0 and TRL
    adds 1e-4 to every std, we return 0 and add nothing.
    """
    rewards = rewards.double()
    scored = ~rewards.isnan()
    counts = scored.sum(dim=1, keepdim=True)
    if bool((counts < 2).any()):
        raise ValueError(f"expected at least 2 scored completions in every group, got {counts.flatten().tolist()}")
    centred = rewards - rewards.nanmean(dim=1, keepdim=True)
    lowest = rewards.masked_fill(~scored, torch.inf).amin(dim=1, keepdim=True)
    highest = rewards.masked_fill(~scored, -torch.inf).amax(dim=1, keepdim=True)
    if scale:
        # In units of the largest: squares of the smallest differences that a float holds would be 0.
        largest = centred.nan_to_num().abs().amax(dim=1, keepdim=True)
        centred = centred / largest.where(largest > 0, 1.0)
        deviation = (centred.square().nansum(dim=1, keepdim=True) / (counts - 1)).sqrt()
        centred = centred / deviation
    # Compared by value: the mean of equal numbers may differ from them in the last bit.
    return torch.where((lowest == highest) & scored, torch.zeros_like(centred), centred)


def listwise_weights(rewards: Tensor, *, temperature: float) -> Tensor:
    """Return G·softmax(r/β) within each group, in float64: what its candidates' log-likelihoods are weighted by.

    rewards: [B, G]; NaN = not scored, and stays NaN; G counts the scored. temperature: β.
    Returns [B, G]; a group whose rewards are all equal gets zeros, and teaches nothing.
    Raises ValueError if a group has fewer than two scored completions.

    ReSuMe (doi:10.1145/3774904.3792959), eq. 1, is −log softmax(r(s_i)/β): no policy stands in it, so it has no
    gradient. We read it as the cross-entropy of softmax(r/β) and the policy, −Σ_i softmax(r/β)_i · log π(s_i), with the
    surrogate "likelihood" and an aggregation that sums over a text's tokens. The factor G makes the loss's mean over
    candidates that sum. We differ on equal rewards: the weights 1/G would only repeat what was sampled.
    """
    rewards = rewards.double()
    scored = ~rewards.isnan()
    counts = scored.sum(dim=1, keepdim=True)
    if bool((counts < 2).any()):
        raise ValueError(f"expected at least 2 scored completions in every group, got {counts.flatten().tolist()}")
    weights = counts * torch.softmax((rewards / temperature).masked_fill(~scored, -torch.inf), dim=1)
    lowest = rewards.masked_fill(~scored, torch.inf).amin(dim=1, keepdim=True)
    highest = rewards.masked_fill(~scored, -torch.inf).amax(dim=1, keepdim=True)
    weights = torch.where(lowest == highest, torch.zeros_like(weights), weights)
    return weights.masked_fill(~scored, torch.nan)


def completion_weights(rewards: Tensor, settings: ObjectiveSettings) -> Tensor:
    """Return the advantages that the settings ask for, [B, G] as the two functions above."""
    if settings.advantage == "softmax":
        return listwise_weights(rewards, temperature=settings.softmax_temperature)
    return group_advantages(rewards, scale=settings.advantage == "mean_std")


@dataclass(frozen=True, kw_only=True)
class TokenWeights:
    """The share of each token in the loss and in the mean entropy, [N, C], 0 at padding.

    They hold the denominators of the whole batch, so that the losses of its micro-batches add up to the batch's loss.
    """

    loss: Tensor
    entropy: Tensor


def token_weights(mask: Tensor, settings: ObjectiveSettings, *, sequences: int, tokens: int) -> TokenWeights:
    """Return the weights of a micro-batch, which has this mask, in a batch of `sequences` completions, `tokens` tokens.

    sequence: GRPO eq. 3, (1/N) Σ_i (1/|o_i|) Σ_t. token: DAPO eq. 8, (1/Σ|o_i|) Σ_i Σ_t. constant: Dr. GRPO, (1/N) Σ_i
    (1/L) Σ_t with a constant L. The mean entropy is always over all tokens, as in TRL.
    """
    present = mask.float()
    if settings.aggregation == "sequence":
        loss = present / present.sum(dim=1, keepdim=True).clamp(min=1) / sequences
    elif settings.aggregation == "token":
        loss = present / tokens
    else:
        loss = present / (sequences * settings.constant_tokens)
    return TokenWeights(loss=loss, entropy=present / tokens)


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A loss with what it was made of, the parts detached: [N, C] unless said otherwise.

    loss: scalar. ratios: π/π_old. clipped: bool, where the bound cut the gradient. corrections: off-policy weights.
    reference_kl: the estimator per token; zeros without a reference.
    """

    loss: Tensor
    ratios: Tensor
    clipped: Tensor
    corrections: Tensor
    reference_kl: Tensor


def policy_objective(
    *,
    logprobs: Tensor,
    entropies: Tensor,
    old_logprobs: Tensor,
    behaviour_logprobs: Tensor,
    reference_logprobs: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    weights: TokenWeights,
    settings: ObjectiveSettings,
) -> Objective:
    """Return the loss to minimise over one micro-batch.

    logprobs, entropies: [N, C] of the policy, differentiable. old_logprobs: of the policy when the update began.
    behaviour_logprobs: as logged by the sampler. reference_logprobs: needed if kl_weight > 0. advantages: [N].

    −(surrogate · correction − β·KL) per token, weighted by `weights.loss`, less the entropy bonus.
    KL: k3 of Schulman (joschu.net/blog/kl-approx.html), GRPO eq. 4: π_ref/π − log(π_ref/π) − 1. We differ: its gradient
    is not that of KL(π‖π_ref) even on-policy, so it is weighted by π/π_old as in DeepSeek-V3.2 (arXiv:2512.02556).
    Raises ValueError for a KL weight without the reference's log-probabilities.
    """
    advantage = advantages[:, None].to(logprobs.dtype)  # [N, 1]
    if settings.correction == "none":
        old_logprobs, corrections = behaviour_logprobs, torch.ones_like(behaviour_logprobs)
    else:
        corrections = off_policy_corrections(
            old_logprobs, behaviour_logprobs, mask, level=settings.correction, cap=settings.correction_cap
        )
    log_ratios = _at_level(logprobs - old_logprobs.detach(), mask, settings.ratio_level)
    ratios = log_ratios.exp()  # [N, C]
    if settings.surrogate == "cispo":
        # CISPO eq. 4: the weight is constant, so tokens beyond the bound keep a gradient. No lower bound, as there.
        surrogate = ratios.detach().clamp(max=settings.cispo_ratio_max) * advantage * logprobs
        clipped = (ratios > settings.cispo_ratio_max) & (advantage > 0)
    elif settings.surrogate == "likelihood":
        surrogate = advantage * logprobs
        clipped = torch.zeros_like(mask)
    else:
        bounded = ratios.clamp(1 - settings.clip_low, 1 + settings.clip_high)
        surrogate = torch.minimum(ratios * advantage, bounded * advantage)
        clipped = ((ratios < 1 - settings.clip_low) & (advantage < 0)) | (
            (ratios > 1 + settings.clip_high) & (advantage > 0)
        )
    per_token = -surrogate * corrections
    reference_kl = torch.zeros_like(logprobs)
    if settings.kl_weight > 0:
        if reference_logprobs is None:
            raise ValueError("kl_weight > 0 needs the reference policy's log-probabilities, got None")
        difference = reference_logprobs.detach() - logprobs
        reference_kl = difference.exp() - difference - 1
        weighted_kl = reference_kl * ratios if settings.kl_unbiased else reference_kl
        per_token = per_token + settings.kl_weight * weighted_kl
    loss = (per_token * weights.loss).sum()
    if settings.entropy_weight > 0:
        loss = loss - settings.entropy_weight * (entropies * weights.entropy).sum()
    return Objective(
        loss=loss,
        ratios=ratios.detach(),
        clipped=clipped & mask,
        corrections=corrections,
        reference_kl=reference_kl.detach(),
    )


def off_policy_corrections(
    old_logprobs: Tensor, behaviour_logprobs: Tensor, mask: Tensor, *, level: str, cap: float
) -> Tensor:
    """Return min(π_old/μ, cap) per token [N, C], constant for the gradient; 1 where the behaviour is the policy itself.

    level "token": each token's own ratio. "sequence": the product of the completion's ratios at each of its tokens.
    Truncation bounds the variance at the price of a bias towards μ: Espeholt et al. 2018 (arXiv:1802.01561), eq. 1.
    """
    log_ratios = (old_logprobs - behaviour_logprobs).detach() * mask
    if level == "sequence":
        log_ratios = log_ratios.sum(dim=1, keepdim=True).expand_as(mask)
    return log_ratios.clamp(max=LOG_RATIO_MAX).exp().clamp(max=cap)


def _at_level(log_ratios: Tensor, mask: Tensor, level: str) -> Tensor:
    """GSPO eq. 7: the sequence's ratio is the geometric mean of its tokens'; the same value at each token."""
    # Clamped before exp, so that a poisoned log-probability gives a large ratio to clip and no infinity.
    log_ratios = (log_ratios * mask).clamp(max=LOG_RATIO_MAX)
    if level == "token":
        return log_ratios
    return (log_ratios.sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp(min=1)).expand_as(log_ratios)
