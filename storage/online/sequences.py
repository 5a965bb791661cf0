"""Confidence sequences: intervals that hold at all times at once, so that looking after every impression is allowed.

`bounded_sequence` holds for any values in a known range, with no assumption on their distribution (the predictable
plug-in empirical-Bernstein sequence; Waudby-Smith and Ramdas, JRSS B 2023, theorem 2). `mean_difference` compares two
arms by their means and variances, and holds asymptotically (Robbins' normal mixture with estimated variances;
Waudby-Smith et al., Annals of Statistics 2024).
"""

from __future__ import annotations

import math

import msgspec
import numpy as np
import numpy.typing as npt

from storage.errors import EvaluationError

Floats = npt.NDArray[np.float64]

VALUES_MIN = 30
BET_MAX = 0.5  # Larger bets gain on distributions without variance alone.


class Sequence(msgspec.Struct, frozen=True, kw_only=True):
    """An estimate after each value, with its interval: all have shape [N]. The intervals only become narrower."""

    means: Floats
    low: Floats
    high: Floats

    @property
    def last(self) -> tuple[float, float, float]:
        """The last estimate, and its interval."""
        return float(self.means[-1]), float(self.low[-1]), float(self.high[-1])


class Values(msgspec.Struct, frozen=True, kw_only=True):
    """One arm: the number of its values, their mean, and their variance."""

    count: int
    mean: float
    variance: float

    @classmethod
    def of(cls, values: Floats) -> Values:
        """Return the facts of these values, [N]."""
        if not len(values):
            return cls(count=0, mean=0.0, variance=0.0)
        return cls(
            count=len(values),
            mean=float(values.mean()),
            variance=float(values.var(ddof=1)) if len(values) > 1 else 0.0,
        )

    @classmethod
    def of_clusters(cls, values: Floats, clusters: npt.NDArray[np.int64]) -> Values:
        """Return the facts of values that are independent between clusters only, such as one person's.

        values, clusters: [N]; clusters are numbers from 0. The count is that of clusters, the mean is over values, and
        variance / count is the squared error of that mean. With one value a cluster this is `of`.
        """
        if not len(values):
            return cls(count=0, mean=0.0, variance=0.0)
        numbers = np.unique(clusters, return_inverse=True)[1]
        sums, sizes = np.bincount(numbers, weights=values), np.bincount(numbers)
        return cls.of_sums(sums.astype(np.float64), sizes.astype(np.float64))

    @classmethod
    def of_sums(cls, sums: Floats, sizes: Floats) -> Values:
        """Return the facts of clusters, as `of_clusters` does. sums, sizes: [N] sum and number of values by cluster."""
        if not len(sums):
            return cls(count=0, mean=0.0, variance=0.0)
        count, total = len(sums), float(sizes.sum())
        mean = float(sums.sum()) / total
        spread = float(np.square(sums - sizes * mean).sum()) / (count - 1) if count > 1 else 0.0
        return cls(count=count, mean=mean, variance=spread * (count / total) ** 2)


class ArmMean(msgspec.Struct, frozen=True, kw_only=True):
    """The mean of one arm. low and high are infinite while it has too few values."""

    value: float
    low: float
    high: float


class ArmDifference(msgspec.Struct, frozen=True, kw_only=True):
    """The difference of two arms' means. low and high are infinite while an arm has too few values."""

    value: float
    low: float
    high: float


def bounded_sequence(values: Floats, *, low: float, high: float, alpha: float = 0.05) -> Sequence:
    """Return the confidence sequence of the mean of values in [low, high], taken in their order.

    values: [N]. alpha: probability that any of the intervals misses the mean.
    Raises EvaluationError if a value lies outside the range or is no number.
    """
    if not len(values):
        raise EvaluationError("expected at least one value, got none")
    if not (np.all(values >= low) and np.all(values <= high)):  # A NaN fails both.
        raise EvaluationError(f"expected values from {low:g} to {high:g}, got {values.min():g} to {values.max():g}")
    scaled = (values - low) / (high - low)
    counts = np.arange(1, len(scaled) + 1)
    means = (0.5 + np.cumsum(scaled)) / (counts + 1)
    variances = (0.25 + np.cumsum(np.square(scaled - means))) / (counts + 1)
    means_before = np.concatenate([[0.5], means[:-1]])
    variances_before = np.concatenate([[0.25], variances[:-1]])
    bets = np.minimum(np.sqrt(2 * math.log(2 / alpha) / (variances_before * counts * np.log1p(counts))), BET_MAX)
    spent = np.square(scaled - means_before) * (
        -np.log1p(-bets) - bets
    )  # 4 (x - μ)² ψ(λ), ψ(λ) = (-log(1 - λ) - λ) / 4
    staked = np.cumsum(bets)
    centres = np.cumsum(bets * scaled) / staked
    reach = (math.log(2 / alpha) + np.cumsum(spent)) / staked
    span = high - low
    return Sequence(
        means=low + span * np.cumsum(scaled) / counts,
        low=low + span * np.maximum.accumulate(np.maximum(centres - reach, 0.0)),
        high=low + span * np.minimum.accumulate(np.minimum(centres + reach, 1.0)),
    )


def mean_difference(treated: Values, control: Values, *, alpha: float = 0.05, expected: int = 5_000) -> ArmDifference:
    """Return the difference of means (treated - control) with an interval that holds at all times.

    expected: the number of values at which the interval should be narrowest, relative to a fixed-time one.

    A few values of one side may all be the same, and their own variance then says that nothing is uncertain. So neither
    variance counts as less than that of both sides together, and below `VALUES_MIN` values nothing is said.
    """
    value = treated.mean - control.mean
    if min(treated.count, control.count) < VALUES_MIN:
        return ArmDifference(value=value, low=-math.inf, high=math.inf)
    count = treated.count + control.count
    mean = (treated.count * treated.mean + control.count * control.mean) / count
    pooled = sum(side.count * (side.variance + (side.mean - mean) ** 2) for side in (treated, control)) / count
    squared = sum(max(side.variance, pooled) / side.count for side in (treated, control))
    reach = half_width(count, squared, alpha, expected)
    return ArmDifference(value=value, low=value - reach, high=value + reach)


def arm_mean(values: Values, *, spread: float, alpha: float = 0.05, expected: int = 5_000) -> ArmMean:
    """Return the mean of one arm with an interval that holds at all times.

    spread: the least variance to reckon with, such as that of all arms together: a few values may all be the same.
    Below `VALUES_MIN` values, and while nothing varies at all, nothing is said.
    """
    variance = max(values.variance, spread)
    if values.count < VALUES_MIN or variance <= 0:
        return ArmMean(value=values.mean, low=-math.inf, high=math.inf)
    reach = half_width(values.count, variance / values.count, alpha, expected)
    return ArmMean(value=values.mean, low=values.mean - reach, high=values.mean + reach)


def half_width(count: int, squared: float, alpha: float, expected: int = 5_000) -> float:
    """Return half the width of an interval that holds at all times, after `count` values.

    squared: squared standard error of the estimate. alpha, expected: as in `mean_difference`.
    """
    scale = mixture_scale(alpha, expected)
    grown = count * scale**2 + 1
    return math.sqrt(squared * 2 * grown / (count * scale**2) * math.log(math.sqrt(grown) / alpha))


def mixture_scale(alpha: float, expected: int) -> float:
    """Return ρ of the normal mixture that makes the interval narrowest at `expected` values."""
    return math.sqrt((-2 * math.log(alpha) + math.log(-2 * math.log(alpha) + 1)) / expected)
