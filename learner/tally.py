"""The metrics of one update, summed over its micro-batches."""

from __future__ import annotations

import msgspec
from torch import Tensor

from learner.objectives import Objective
from learner.packing import PackedGroups


class Tally(msgspec.Struct):
    """Sums over a batch's micro-batches; `metrics` gives the figures of the whole batch before its step."""

    loss: float = 0.0
    tokens: int = 0
    completions: int = 0
    sums: dict[str, float] = {}
    maxima: dict[str, float] = {}

    def add(self, packed: PackedGroups, logprobs: Tensor, entropies: Tensor, objective: Objective) -> None:
        """Add a micro-batch after its forward. logprobs, entropies: [N, C], detached."""
        mask = packed.mask
        self.loss += float(objective.loss.detach())
        self.tokens += int(mask.sum())
        self.completions += mask.shape[0]
        log_ratios = (logprobs - packed.behaviour_logprobs)[mask].double().clamp(max=20)  # [M]
        ratios = log_ratios.exp()
        for name, values in (
            ("entropy", entropies[mask]),
            ("ratio_mean", ratios),
            ("clip_share", objective.clipped[mask]),
            ("correction_mean", objective.corrections[mask]),
            ("kl_behaviour", ratios - 1 - log_ratios),
            ("kl_reference", objective.reference_kl[mask]),
        ):
            self.sums[name] = self.sums.get(name, 0.0) + float(values.double().sum())
        self.maximum("ratio_max", float(ratios.max()))

    def include(self, other: Tally) -> None:
        """Add the sums of another share of the batch."""
        self.loss += other.loss
        self.tokens += other.tokens
        self.completions += other.completions
        for name, value in other.sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        for name, value in other.maxima.items():
            self.maximum(name, value)

    def maximum(self, name: str, value: float) -> None:
        """Keep the largest value of this name."""
        self.maxima[name] = max(value, self.maxima.get(name, value))

    def metrics(self) -> dict[str, float]:
        """Return the means over tokens, the maxima, and the batch's loss; without any forward, only the maxima.

        entropy is in nats. ratios are π/μ. kl_behaviour estimates KL(μ‖π), since the tokens are μ's: k3, r − 1 − log r
        with r = π/μ. kl_reference estimates KL(π‖π_ref); it is 0 without a reference.
        """
        if self.tokens == 0:
            return dict(self.maxima)
        return (
            {name: value / self.tokens for name, value in self.sums.items()}
            | self.maxima
            | {
                "loss": self.loss,
                "tokens": float(self.tokens),
                "completion_tokens_mean": self.tokens / self.completions,
            }
        )
