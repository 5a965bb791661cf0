"""The metrics of one update, summed over its micro-batches."""

from __future__ import annotations

from torch import Tensor

from learner.objectives import Objective
from learner.packing import PackedGroups


class Tally:
    """Sums over a batch's micro-batches; `metrics` gives the figures of the whole batch before its step."""

    def __init__(self) -> None:
        self.loss = 0.0
        self._tokens = 0
        self._completions = 0
        self._sums: dict[str, float] = {}
        self._maxima: dict[str, float] = {}

    def add(self, packed: PackedGroups, logprobs: Tensor, entropies: Tensor, objective: Objective) -> None:
        """Add a micro-batch after its forward. logprobs, entropies: [N, C], detached."""
        mask = packed.mask
        self.loss += float(objective.loss.detach())
        self._tokens += int(mask.sum())
        self._completions += mask.shape[0]
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
            self._sums[name] = self._sums.get(name, 0.0) + float(values.double().sum())
        self.maximum("ratio_max", float(ratios.max()))

    def maximum(self, name: str, value: float) -> None:
        """Keep the largest value of this name."""
        self._maxima[name] = max(value, self._maxima.get(name, value))

    def metrics(self) -> dict[str, float]:
        """Return the means over tokens, the maxima, and the batch's loss; without any forward, only the maxima.

        entropy is in nats. ratios are π/μ. kl_behaviour estimates KL(μ‖π), since the tokens are μ's: k3, r − 1 − log r
        with r = π/μ. kl_reference estimates KL(π‖π_ref); it is 0 without a reference.
        """
        if self._tokens == 0:
            return dict(self._maxima)
        return (
            {name: value / self._tokens for name, value in self._sums.items()}
            | self._maxima
            | {
                "loss": self.loss,
                "tokens": float(self._tokens),
                "completion_tokens_mean": self._tokens / self._completions,
            }
        )
