"""Group advantages, and the losses that turn them into gradients, each with its paper and equation.

One loss is assembled from parts, which the papers vary one at a time:

advantage    mean: r − mean(r)            LESER (arXiv:2509.05570), as in Dr. GRPO (arXiv:2503.20783)
             mean_std: (r − mean)/std     GRPO, DeepSeekMath (arXiv:2402.03300), outcome supervision
             softmax: G·softmax(r/β)      the listwise weights of ReSuMe (doi:10.1145/3774904.3792959), eq. 1
ratio        token: π/π_old               GRPO, eq. 3
             sequence: (π/π_old)^(1/|o|)  GSPO (arXiv:2507.18071), eq. 7
surrogate    clip                         PPO (arXiv:1707.06347), eq. 7; two bounds: DAPO (arXiv:2503.14476), eq. 10
             cispo                        MiniMax-M1 (arXiv:2506.13585), eq. 4
             likelihood                   log π, as ReSuMe's eq. 1 needs it; with softmax: weighted log-likelihood of
                                          whole texts, so it excludes the aggregation by sequence means
correction   min(π_old/μ, cap)            truncated importance sampling on top of a proximal policy: IMPALA's ρ̄
                                          (arXiv:1802.01561) in the decoupled objective of AReaL (arXiv:2505.24298)
aggregation  sequence, token, constant    GRPO eq. 3; DAPO eq. 8; Dr. GRPO

π is the current policy and π_old the policy at the start of the update. μ is the behavior policy that wrote the
completions; it is older than π_old by the staleness. The tests compare every loss with TRL's GRPOTrainer on the same
tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
import torch
from torch import Tensor

from streams.descriptions import describe
from streams.errors import SettingsError

LOG_RATIO_MAX = 20.0


class ObjectiveSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The objective that the learner maximizes. By default: LESER's advantage in GRPO's clipped objective."""

    advantage: Annotated[
        Literal["mean", "mean_std", "softmax"],
        describe(
            'Formula of the advantage: "mean", r − mean(r) (LESER); "mean_std", that divided by std(r) (GRPO); '
            '"softmax", G·softmax(r/β) (ReSuMe eq. 1).'
        ),
    ] = "mean"
    softmax_temperature: Annotated[
        float,
        msgspec.Meta(gt=0, le=100),
        describe('Temperature β of the advantage "softmax". A smaller β favors the best candidate alone.'),
    ] = 0.5
    surrogate: Annotated[
        Literal["clip", "cispo", "likelihood"],
        describe(
            'Formula of the gain: "clip", the clipped ratio (GRPO); "cispo", a weighted log-likelihood; '
            '"likelihood", the log-likelihood itself.'
        ),
    ] = "clip"
    ratio_level: Annotated[
        Literal["token", "sequence"], describe('Importance ratio per "token", or one per "sequence" (GSPO).')
    ] = "token"
    clip_low: Annotated[
        float,
        msgspec.Meta(gt=0, lt=1),
        describe("Distance of the ratio's lower bound from 1. A smaller value makes smaller steps."),
    ] = 0.2
    clip_high: Annotated[
        float,
        msgspec.Meta(gt=0, le=10),
        describe("Distance of the ratio's upper bound from 1. A smaller value makes smaller steps."),
    ] = 0.2
    cispo_ratio_max: Annotated[
        float, msgspec.Meta(ge=1, le=100), describe('Largest weight of the surrogate "cispo".')
    ] = 5.0
    correction: Annotated[
        Literal["token", "sequence", "none"],
        describe(
            'Off-policy weight min(π_old/μ, cap) per "token" or per "sequence". "none" takes the sampler\'s '
            "probabilities μ for π_old."
        ),
    ] = "token"
    correction_cap: Annotated[float, msgspec.Meta(ge=1, le=100), describe("Largest off-policy weight (cap).")] = 2.0
    kl_weight: Annotated[
        float,
        msgspec.Meta(ge=0, le=10),
        describe(
            "Weight of the KL to the reference policy (β). A larger value keeps the policy closer to it; 0 "
            "loads no reference."
        ),
    ] = 0.0
    kl_unbiased: Annotated[
        bool, describe("True weighs the KL by π/π_old, so that its gradient is the reverse KL's own.")
    ] = True
    # 0.01 cost validity in a pilot.
    entropy_weight: Annotated[
        float,
        msgspec.Meta(ge=0, le=1),
        describe(
            "Weight of the mean entropy, in nats. A larger value keeps the answers more varied, and may make "
            "more of them invalid."
        ),
    ] = 0.0
    aggregation: Annotated[
        Literal["sequence", "token", "constant"],
        describe(
            'Way to average over tokens: each "sequence" first (GRPO), every "token" alike (DAPO), or with the '
            'divisor constant_tokens, "constant" (Dr. GRPO).'
        ),
    ] = "sequence"
    constant_tokens: Annotated[
        int, msgspec.Meta(ge=1), describe('Divisor per sequence for the aggregation "constant", in tokens.')
    ] = 32


def check_objective(settings: ObjectiveSettings) -> None:
    """Raise SettingsError for settings that do not fit together.

    A likelihood pushes up every sampled text. Sums over a text's tokens cancel except for the rewards, since the
    score's mean under the policy is 0. Means per text push the tokens of short texts harder: 16 kept
    tokens shrank to 1 in 15 updates.
    """
    if settings.surrogate == "likelihood" and settings.aggregation == "sequence":
        raise SettingsError(
            "learner.objective.aggregation: expected 'constant' or 'token' with surrogate = 'likelihood', got "
            "'sequence': means per text would teach the policy to write short texts"
        )


def group_advantages(rewards: Tensor, *, scale: bool = False) -> Tensor:
    """Return each completion's reward relative to its own group, in float64.

    rewards: [B, G], one row per request; NaN = not scored (failed, or the group is smaller), and stays NaN.
    scale: False gives r − mean(r) (LESER, Dr. GRPO); True also divides by the standard deviation (GRPO).
    Returns [B, G]; a group whose rewards are all equal gets zeros and teaches nothing.
    Raises ValueError if a group has fewer than two scored completions.

    GRPO, DeepSeekMath (arXiv:2402.03300), outcome supervision: A_i = (r_i − mean(r))/std(r). We differ: std is the
    sample's (n − 1), as in TRL and veRL; the paper does not say. If std(r) = 0, the paper leaves 0/0 and we return 0.
    TRL adds 1e-4 to every std; we add nothing.
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
        # Divide by the largest first: a float cannot hold the squares of the smallest differences.
        largest = centred.nan_to_num().abs().amax(dim=1, keepdim=True)
        centred = centred / largest.where(largest > 0, 1.0)
        deviation = (centred.square().nansum(dim=1, keepdim=True) / (counts - 1)).sqrt()
        centred = centred / deviation
    # Compare by value: the mean of equal numbers may differ from them in the last bit.
    return torch.where((lowest == highest) & scored, torch.zeros_like(centred), centred)


def listwise_weights(rewards: Tensor, *, temperature: float) -> Tensor:
    """Return G·softmax(r/β) within each group, in float64: the weights of its candidates' log-likelihoods.

    rewards: [B, G]; NaN = not scored, and stays NaN; G counts the scored candidates. temperature: β.
    Returns [B, G]; a group whose rewards are all equal gets zeros and teaches nothing.
    Raises ValueError if a group has fewer than two scored completions.

    ReSuMe (doi:10.1145/3774904.3792959), eq. 1, is −log softmax(r(s_i)/β). No policy appears in it, so it has no
    gradient. We read it as the cross-entropy of softmax(r/β) and the policy, −Σ_i softmax(r/β)_i · log π(s_i), with the
    surrogate "likelihood" and an aggregation that sums over a text's tokens. The factor G turns the loss's mean over
    candidates into that sum. We differ on equal rewards: the weights 1/G would only reinforce the sampled texts.
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
    """Return the advantages that the settings select, [B, G] as in the two functions above."""
    if settings.advantage == "softmax":
        return listwise_weights(rewards, temperature=settings.softmax_temperature)
    return group_advantages(rewards, scale=settings.advantage == "mean_std")


@dataclass(frozen=True, kw_only=True)
class TokenWeights:
    """The share of each token in the loss and in the mean entropy, [N, C], 0 at padding.

    The shares are divided by the whole batch's counts, so that the losses of its micro-batches add up to its loss.
    """

    loss: Tensor
    entropy: Tensor


def token_weights(mask: Tensor, settings: ObjectiveSettings, *, sequences: int, tokens: int) -> TokenWeights:
    """Return the weights of a micro-batch with this mask, in a batch of `sequences` completions and `tokens` tokens.

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
    """A loss and its parts, the parts detached: [N, C] unless stated otherwise.

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
    """Return the loss to minimize over one micro-batch.

    logprobs, entropies: [N, C] from the policy, differentiable. old_logprobs: from the policy at the update's start.
    behaviour_logprobs: as the sampler logged them. reference_logprobs: needed if kl_weight > 0. advantages: [N].

    The loss per token is −(surrogate · correction − β·KL), weighted by `weights.loss`, minus the entropy bonus.
    KL: k3 of Schulman (joschu.net/blog/kl-approx.html), GRPO eq. 4: π_ref/π − log(π_ref/π) − 1. We differ: its gradient
    is not that of KL(π‖π_ref) even on-policy, so it is weighted by π/π_old as in DeepSeek-V3.2 (arXiv:2512.02556).
    Raises ValueError if the KL has a weight but the reference's log-probabilities are missing.
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
        # CISPO eq. 4: the weight is constant, so tokens beyond the bound keep a gradient. No lower bound, as in eq. 4.
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
    """Return min(π_old/μ, cap) per token [N, C], constant for the gradient; 1 if the behavior policy is π_old itself.

    level "token": each token's own ratio. "sequence": the product of the completion's ratios, at each of its tokens.
    Truncation bounds the variance at the price of a bias towards μ: Espeholt et al. 2018 (arXiv:1802.01561), eq. 1.
    """
    log_ratios = (old_logprobs - behaviour_logprobs).detach() * mask
    if level == "sequence":
        log_ratios = log_ratios.sum(dim=1, keepdim=True).expand_as(mask)
    return log_ratios.clamp(max=LOG_RATIO_MAX).exp().clamp(max=cap)


def _at_level(log_ratios: Tensor, mask: Tensor, level: str) -> Tensor:
    """Return the log-ratios at the token or at the sequence level.

    GSPO eq. 7: the sequence's ratio is the geometric mean of its tokens' ratios, the same value at each token.
    """
    # Clamp before exp, so that a poisoned log-probability gives a large ratio to clip instead of infinity.
    log_ratios = (log_ratios * mask).clamp(max=LOG_RATIO_MAX)
    if level == "token":
        return log_ratios
    return (log_ratios.sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp(min=1)).expand_as(log_ratios)
