"""The uncertainty of a difference: the paired bootstrap by query, and Holm's correction over measures.

The bootstrap (Efron and Tibshirani 1993, chapters 13 and 16; for retrieval: Sakai, SIGIR 2006) draws as many queries as
there are, with replacement, B times, and computes the statistic each time. Runs are compared on the same draws, query
by query. The interval is the percentile interval. The p-value is two-sided: (1 + count) / (B + 1), where count is the
number of draws at least as far from the observed difference as the observed difference is from zero. We differ from
Sakai, who divides each draw by its own standard error. A ratio of sums has no standard error at hand, and the same test
serves means and ratios here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from storage.errors import EvaluationError

Floats = NDArray[np.float64]
Statistic = Literal["mean", "difference", "gain"]

DRAWS_AT_ONCE = 4_000_000  # Indices held in memory: 32 MB.


class Interval(msgspec.Struct, frozen=True, kw_only=True):
    """An estimate with its interval. p is None if there is no comparison. None elsewhere means undefined (0 / 0)."""

    value: float | None
    low: float | None
    high: float | None
    p: float | None = None


def bootstrap_mean(
    values: Mapping[str, float], *, samples: int = 10_000, seed: int = 0, confidence: float = 0.95
) -> Interval:
    """Return the mean over queries with its percentile interval."""
    queries = sorted(values)
    observed = _array(values, queries)
    draws = _draw(observed, None, "mean", samples=samples, seed=seed)
    return interval_of(float(observed.mean()), draws, confidence, test=False)


def compare_means(
    values: Mapping[str, float],
    baseline: Mapping[str, float],
    *,
    samples: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """Return the mean difference (values - baseline) over the same queries, its interval and its p-value.

    Raises EvaluationError if the two do not cover the same queries.
    """
    queries = _paired(values, baseline)
    observed = _array(values, queries) - _array(baseline, queries)
    draws = _draw(observed, None, "difference", samples=samples, seed=seed)
    return interval_of(float(observed.mean()), draws, confidence, test=True)


def compare_gains(
    values: Mapping[str, float],
    baseline: Mapping[str, float],
    *,
    samples: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """Return the relative gain sum(values) / sum(baseline) - 1 over the same queries, its interval and its p-value.

    Draws in which the baseline's sum is 0 have no gain and are left out. If the sum is 0 over all queries, all is None.
    Raises EvaluationError if the two do not cover the same queries.
    """
    queries = _paired(values, baseline)
    after, before = _array(values, queries), _array(baseline, queries)
    if before.sum() <= 0:
        return Interval(value=None, low=None, high=None)
    draws = _draw(after, before, "gain", samples=samples, seed=seed)
    return interval_of(float(after.sum() / before.sum() - 1), draws, confidence, test=True)


def interval_of(value: float, draws: Floats, confidence: float, *, test: bool) -> Interval:
    """Return the percentile interval of draws around a value, and with `test` the p-value that it is not 0."""
    edge = (1 - confidence) / 2
    low, high = np.quantile(draws, [edge, 1 - edge])
    p = None
    if test:
        # With the tolerance, a draw that equals zero except for rounding counts as being as far away as zero is.
        beyond = int((np.abs(draws - value) >= abs(value) - 1e-12).sum())
        p = (1 + beyond) / (len(draws) + 1)
    return Interval(value=value, low=float(low), high=float(high), p=p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values corrected for multiple tests, in the given order.

    Holm (1979): the i-th smallest of m is multiplied by m - i + 1; never smaller than the previous one, never above 1.
    """
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=lambda item: p_values[item])):
        highest = max(highest, min(1.0, p_values[index] * (len(p_values) - place)))
        adjusted[index] = highest
    return adjusted


def _paired(values: Mapping[str, float], baseline: Mapping[str, float]) -> list[str]:
    if set(values) != set(baseline):
        alone = sorted(set(values) ^ set(baseline))
        raise EvaluationError(
            f"a paired comparison needs the same queries on both sides; {len(alone)} stand on one side only "
            f"('{alone[0]}' …); evaluate both runs with the same qrels"
        )
    if not values:
        raise EvaluationError("a comparison needs at least one query, got none")
    return sorted(values)


def _array(values: Mapping[str, float], queries: Sequence[str]) -> Floats:
    return np.array([values[query] for query in queries], dtype=np.float64)


def _draw(after: Floats, before: Floats | None, statistic: Statistic, *, samples: int, seed: int) -> Floats:
    """Return the statistic in each draw, [B]; the draws depend only on the seed and the number of queries."""
    count = len(after)
    random = np.random.default_rng(seed)
    drawn = []
    for start in range(0, samples, step := max(1, DRAWS_AT_ONCE // count)):
        picks = random.integers(0, count, size=(min(step, samples - start), count))  # [b, Q]
        if before is None:
            drawn.append(after[picks].mean(axis=1))
        else:
            base = before[picks].sum(axis=1)
            with np.errstate(divide="ignore", invalid="ignore"):
                gains = after[picks].sum(axis=1) / base - 1
            drawn.append(gains[base > 0])
    return np.concatenate(drawn)
