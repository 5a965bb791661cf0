"""Do a sampler's log-probabilities agree with the learner's own? Asked on a few groups before anything is learned.

Importance ratios and the learner's refusal of groups that lie both stand on it. Measured with vLLM on a CPU: fp32 is
off by up to 1e-5 nats a token, bf16 on SmolLM2 by 0.02 in the mean and by up to 0.6 for single tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import torch

from learner.logprobs import completion_logprobs
from learner.packing import Candidate, Group, pack_groups
from learner.policy import Policy
from learner.sampling import Sampler
from streams.errors import SearchloopError
from streams.events import Sampling

MEAN_SHARE = 0.1


class AgreementError(SearchloopError, RuntimeError):
    """A sampler reports log-probabilities that the policy does not give."""


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """How far a sampler's log-probabilities are from the policy's own, in nats, over so many tokens."""

    tokens: int
    difference_mean: float
    difference_max: float


@torch.inference_mode()
def measure_agreement(
    policy: Policy, sampler: Sampler, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int]
) -> Agreement:
    """Sample these prompts and return how far the log-probabilities are from those that the learner computes.

    policy: the weights that the sampler is said to use. sampling: at a temperature above 0, without the no-repeat rule.
    """
    groups = [
        Group(
            prompt_ids=tuple(prompt),
            candidates=tuple(
                Candidate(token_ids=completion.token_ids, logprobs=completion.logprobs, advantage=0.0)
                for completion in completions
            ),
            temperature=sampling.temperature,
        )
        for prompt, completions in zip(prompts, sampler.sample(prompts, sampling, seeds), strict=True)
    ]
    device = next(policy.model.parameters()).device
    packed = pack_groups(groups, pad_id=policy.pad_id, device=device)
    own, _ = completion_logprobs(policy.model, packed)  # [N, C]
    differences = (own - packed.behaviour_logprobs).abs()[packed.mask]  # [M]
    return Agreement(
        tokens=len(differences),
        difference_mean=float(differences.mean()),
        difference_max=float(differences.max()),
    )


def require_agreement(agreement: Agreement, *, difference_max: float) -> None:
    """Raise AgreementError if the differences are above what the learner accepts; the message says why they may be.

    difference_max: `learner.update.logprob_difference_max`, in nats. The mean must be within a tenth of it: rounding is
    large for single tokens and small on average, other weights or another temperature are off everywhere.
    """
    if agreement.difference_max <= difference_max and agreement.difference_mean <= difference_max * MEAN_SHARE:
        return
    raise AgreementError(
        f"vLLM's log-probabilities: expected within {difference_max:g} nats of the learner's own (mean "
        f"{difference_max * MEAN_SHARE:g}), got up to {agreement.difference_max:.3g} off (mean "
        f"{agreement.difference_mean:.3g}, {agreement.tokens} tokens). If the mean is large, the server has another "
        "base, or was started without --logprobs-mode processed_logprobs; if it is small, its numbers are coarser "
        "(bf16): raise learner.update.logprob_difference_max"
    )
