"""Estimators of a target policy's value from logged choices: IPS, SNIPS, DM, and DR in four forms.

For impression i, w_i = π(a_i | x_i) / p_i is the importance weight: the target's probability of the logged action over
the logged propensity. q_i is the reward model's value of the logged action, and v_i = Σ_a π(a | x_i) q(x_i, a) is its
value of the target. Sources: IPS and DR: Dudík et al., ICML 2011; SNIPS: Swaminathan and Joachims, NeurIPS 2015;
switch: Wang et al., ICML 2017; shrinkage: Su et al., ICML 2020 (the optimistic form).

Each estimator is the mean of one value for each impression, or a ratio of such means. Its standard error comes from
these values by the delta method, and its interval from `storage/offpolicy/intervals.py`. Impressions of one cluster (a
client) count as one draw.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from storage.errors import EvaluationError
from storage.offpolicy.intervals import interval, spread

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Name = Literal["ips", "snips", "dm", "dr", "sndr", "switch", "shrinkage"]

ESS_MIN = 30.0


class Choices(msgspec.Struct, frozen=True, kw_only=True):
    """Logged choices as seen from one target policy. All arrays have shape [N].

    rewards: what the impression earned. propensities: of the logged action, in (0, 1]. targets: the target policy's
    probability of the logged action. modelled: the reward model's value of the logged action. expected: its value of
    the target policy. clusters: number of the cluster that an impression belongs to.
    """

    rewards: Floats
    propensities: Floats
    targets: Floats
    modelled: Floats
    expected: Floats
    clusters: Integers

    def __post_init__(self) -> None:
        sizes = {len(getattr(self, name)) for name in self.__struct_fields__}
        if len(sizes) != 1:
            raise EvaluationError(f"expected arrays of one length, got {sorted(sizes)}")
        if not len(self.rewards):
            raise EvaluationError("expected at least one impression, got none")
        if not (np.all(self.propensities > 0) and np.all(self.propensities <= 1)):
            raise EvaluationError(
                "propensities: expected values above 0 and at most 1, got "
                f"{self.propensities.min():g} to {self.propensities.max():g}"
            )
        for name in ("rewards", "targets", "modelled", "expected"):
            if not np.all(np.isfinite(getattr(self, name))):
                raise EvaluationError(f"{name}: expected finite numbers, got NaN or infinity")

    @property
    def weights(self) -> Floats:
        """The importance weight of each impression, [N]."""
        return self.targets / self.propensities


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """A value with its standard error and its interval."""

    value: float
    error: float
    low: float
    high: float


class Support(msgspec.Struct, frozen=True, kw_only=True):
    """The log's cover of a target policy.

    ess: effective sample size, (Σ w)² / Σ w². largest: the largest weight's share of their sum. matched: share of the
    impressions whose logged action the target could have taken. mean_weight: near 1 if the propensities are right.
    """

    impressions: int
    ess: float
    largest: float
    matched: float
    mean_weight: float

    @property
    def trouble(self) -> str:
        """Why nothing can be said about the target policy; "" if something can."""
        if self.matched == 0:
            return "not evaluable: the log never took an action of this policy"
        if self.ess < ESS_MIN:
            return f"not evaluable: effective sample size {self.ess:.1f}, expected at least {ESS_MIN:g}"
        return ""


def support(choices: Choices) -> Support:
    """Return how well the log covers the target policy."""
    weights = choices.weights
    total, squares = float(weights.sum()), float(np.square(weights).sum())
    return Support(
        impressions=len(weights),
        ess=total**2 / squares if squares else 0.0,
        largest=float(weights.max()) / total if total else 0.0,
        matched=float(np.mean(weights > 0)),
        mean_weight=float(weights.mean()),
    )


def estimate(
    choices: Choices, name: Name = "dr", *, switch: float = 10.0, shrinkage: float = 100.0, confidence: float = 0.95
) -> Estimate:
    """Return a target policy's value by one of the estimators.

    switch: weights above it are left to the reward model. shrinkage: λ of λ w / (w² + λ); infinity shrinks nothing.
    confidence: of the interval.
    Raises EvaluationError if a self-normalized estimator has no weight above 0.
    """
    value, influence = _ESTIMATORS[name](choices, switch if name == "switch" else shrinkage)
    return _with_interval(value, influence, choices.clusters, confidence)


def estimate_gain(
    choices: Choices,
    baseline: Choices,
    name: Name = "dr",
    *,
    switch: float = 10.0,
    shrinkage: float = 100.0,
    confidence: float = 0.95,
) -> Estimate:
    """Return how much more a target policy is worth than another one, on the same impressions in the same order.

    The interval takes into account that both come from one log. Raises as `estimate` does.
    """
    parameter = switch if name == "switch" else shrinkage
    value, influence = _ESTIMATORS[name](choices, parameter)
    value_before, influence_before = _ESTIMATORS[name](baseline, parameter)
    return _with_interval(value - value_before, influence - influence_before, choices.clusters, confidence)


def _with_interval(value: float, influence: Floats, clusters: Integers, confidence: float) -> Estimate:
    found = spread(influence, clusters)
    low, high = interval(value, found, confidence)
    return Estimate(value=value, error=found.error, low=low, high=high)


def _ips(choices: Choices, _: float) -> tuple[float, Floats]:
    values = choices.weights * choices.rewards
    return float(values.mean()), values


def _snips(choices: Choices, _: float) -> tuple[float, Floats]:
    return _ratio(choices.weights * choices.rewards, choices.weights)


def _dm(choices: Choices, _: float) -> tuple[float, Floats]:
    return float(choices.expected.mean()), choices.expected


def _dr(choices: Choices, _: float) -> tuple[float, Floats]:
    return _corrected(choices, choices.weights)


def _sndr(choices: Choices, _: float) -> tuple[float, Floats]:
    correction, influence = _ratio(choices.weights * (choices.rewards - choices.modelled), choices.weights)
    return float(choices.expected.mean()) + correction, choices.expected + influence


def _switch(choices: Choices, limit: float) -> tuple[float, Floats]:
    weights = choices.weights
    return _corrected(choices, np.where(weights <= limit, weights, 0.0))


def _shrinkage(choices: Choices, strength: float) -> tuple[float, Floats]:
    weights = choices.weights
    if np.isinf(strength):
        return _corrected(choices, weights)
    below = np.square(weights) + strength
    return _corrected(choices, np.divide(strength * weights, below, out=np.zeros_like(weights), where=below > 0))


def _corrected(choices: Choices, weights: Floats) -> tuple[float, Floats]:
    values = choices.expected + weights * (choices.rewards - choices.modelled)
    return float(values.mean()), values


def _ratio(above: Floats, below: Floats) -> tuple[float, Floats]:
    """Return mean(above) / mean(below), and each impression's influence on it (its mean is the ratio)."""
    mean = float(below.mean())
    if mean == 0:
        raise EvaluationError("expected a weight above 0, got none: the log never took an action of this policy")
    value = float(above.mean()) / mean
    return value, value + (above - value * below) / mean


_ESTIMATORS: dict[Name, Callable[[Choices, float], tuple[float, Floats]]] = {
    "ips": _ips,
    "snips": _snips,
    "dm": _dm,
    "dr": _dr,
    "sndr": _sndr,
    "switch": _switch,
    "shrinkage": _shrinkage,
}
NAMES: tuple[Name, ...] = tuple(_ESTIMATORS)
