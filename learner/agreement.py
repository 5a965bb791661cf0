"""The agreement between a sampler's log-probabilities and the learner's own, checked on a few groups before training.

The importance ratios rely on this agreement, and so does the learner's check for false groups. Measured with vLLM on a
CPU: fp32 differs by up to 1e-5 nats per token; bf16 on SmolLM2 differs by 0.02 on average and by up to 0.6 for single
tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import torch

from learner.logprobs import completion_logprobs
from learner.packing import Candidate, PromptGroup, pack_groups
from learner.policy import Policy
from learner.sampling import Sampler
from streams.errors import SearchloopError
from streams.events import Sampling

MEAN_SHARE = 0.1


class AgreementError(SearchloopError, RuntimeError):
    """A sampler reports log-probabilities that do not come from the policy."""


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """The differences between a sampler's log-probabilities and the policy's, in nats, over `tokens` tokens."""

    tokens: int
    difference_mean: float
    difference_max: float

    def within(self, difference_max: float) -> bool:
        """Return whether no difference exceeds a limit in nats, and their mean a tenth of it; NaN is never within.

        Rounding is large for single tokens and small on average; other weights or another temperature cause
        differences everywhere.
        """
        return self.difference_max <= difference_max and self.difference_mean <= difference_max * MEAN_SHARE


@torch.inference_mode()
def measure_agreement(
    policy: Policy, sampler: Sampler, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int]
) -> Agreement:
    """Sample these prompts and return how much the sampler's log-probabilities differ from the learner's.

    policy: the weights that the sampler claims to use. sampling: a temperature above 0, without the no-repeat rule.
    """
    groups = [
        PromptGroup(
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
    """Raise AgreementError if the differences exceed the learner's limit; the message lists possible causes.

    difference_max: `learner.update.logprob_difference_max`, in nats.
    """
    if agreement.within(difference_max):
        return
    raise AgreementError(
        f"vLLM's log-probabilities: expected within {difference_max:g} nats of the learner's own (mean "
        f"{difference_max * MEAN_SHARE:g}), got up to {agreement.difference_max:.3g} off (mean "
        f"{agreement.difference_mean:.3g}, {agreement.tokens} tokens). If the mean is large, the server has another "
        "base, or was started without --logprobs-mode processed_logprobs; if it is small, its numbers are coarser "
        "(bf16): raise learner.update.logprob_difference_max"
    )
