"""Intervals that hold at all times: false winners under continuous peeking, power, and values outside the range."""

from __future__ import annotations

import math

import numpy as np
import pytest

from storage.errors import EvaluationError
from storage.online.sequences import Values, bounded_sequence, mean_difference
from storage.online.shares import share_p_value

TESTS = 1_000


def test_interleaving_of_equals_has_few_winners_though_somebody_looks_after_each_impression() -> None:
    random = np.random.default_rng(0)
    winners = 0
    for _ in range(TESTS):
        found = bounded_sequence(random.choice([-1.0, 0.0, 1.0], p=[0.15, 0.7, 0.15], size=1_000), low=-1, high=1)
        winners += bool(np.any((found.low > 0) | (found.high < 0)))
    assert winners <= 0.05 * TESTS


def test_two_equal_arms_have_few_winners_though_somebody_looks_often() -> None:
    random = np.random.default_rng(1)
    winners = 0
    for _ in range(TESTS):
        one, other = (random.random((2, 2_000)) < 0.3).astype(float)
        looks = range(100, 2_001, 20)
        winners += any(
            found.low > 0 or found.high < 0
            for found in (mean_difference(Values.of(one[:n]), Values.of(other[:n])) for n in looks)
        )
    assert winners <= 0.05 * TESTS


def test_a_real_difference_is_found_and_the_interval_holds_it() -> None:
    random = np.random.default_rng(2)
    found = bounded_sequence(random.choice([-1.0, 0.0, 1.0], p=[0.1, 0.6, 0.3], size=3_000), low=-1, high=1)
    estimate, low, high = found.last
    assert 0 < low <= estimate <= high
    assert low <= 0.2 <= high
    assert np.all(np.diff(found.low) >= 0) and np.all(np.diff(found.high) <= 0)
    more, less = (random.random(5_000) < rate for rate in (0.36, 0.30))
    difference = mean_difference(Values.of(more.astype(float)), Values.of(less.astype(float)))
    assert 0 < difference.low <= 0.06 <= difference.high


def test_the_first_interval_is_the_one_worked_by_hand() -> None:
    # One value 1 in [0, 1]: bet min(√(2 ln 40 / (.25 · 1 · ln 2)), .5) = .5, spent (1 - .5)² (ln 2 - .5) = .0483,
    # reach (ln 40 + .0483) / .5 = 7.47: nothing is known yet.
    found = bounded_sequence(np.array([1.0]), low=0, high=1)
    assert found.last == (1.0, 0.0, 1.0)
    # After 40 values of 1 the lower end is the centre less the reach, by the same formula in plain numbers.
    ones = bounded_sequence(np.ones(40), low=0, high=1)
    means, variances, staked, spent = [0.5], [0.25], 0.0, 0.0
    for count in range(1, 41):
        bet = min(math.sqrt(2 * math.log(40) / (variances[-1] * count * math.log(1 + count))), 0.5)
        spent += (1 - means[-1]) ** 2 * (-math.log(1 - bet) - bet)
        staked += bet
        means.append((0.5 + count) / (count + 1))
        variances.append((0.25 + sum((1 - mean) ** 2 for mean in means[1:])) / (count + 1))
    assert ones.last[1] == pytest.approx(1 - (math.log(40) + spent) / staked)


def test_an_arm_without_values_says_nothing() -> None:
    found = mean_difference(Values.of(np.array([1.0])), Values.of(np.ones(100)))
    assert (found.low, found.high) == (-math.inf, math.inf)


@pytest.mark.parametrize("values", [[0.5, 1.5], [0.5, float("nan")], []])
def test_values_outside_the_range_are_refused(values: list[float]) -> None:
    with pytest.raises(EvaluationError, match="expected"):
        bounded_sequence(np.array(values), low=0, high=1)


def test_shares_that_do_not_match_are_found_and_those_that_match_are_not() -> None:
    shares = {"raw": 0.9, "new": 0.1}
    assert share_p_value({"raw": 9_020, "new": 980}, shares) > 0.05
    assert share_p_value({"raw": 9_300, "new": 700}, shares) < 0.001
    random = np.random.default_rng(3)
    alarms = 0
    for _ in range(500):
        new = np.cumsum(random.random(2_000) < 0.1)
        looks = range(50, 2_000, 50)
        alarms += any(share_p_value({"raw": n - int(new[n - 1]), "new": int(new[n - 1])}, shares) < 0.05 for n in looks)
    assert alarms <= 0.05 * 500
    with pytest.raises(EvaluationError, match="sum to 1"):
        share_p_value({"raw": 1, "new": 1}, {"raw": 0.9, "new": 0.2})


def test_people_with_many_searches_count_once_each() -> None:
    random = np.random.default_rng(5)
    values = random.random(300)
    alone, by_value = Values.of(values), Values.of_clusters(values, np.arange(300))
    assert (alone.count, alone.mean, alone.variance) == pytest.approx(
        (by_value.count, by_value.mean, by_value.variance)
    )
    thrice = Values.of_clusters(np.repeat(values, 3), np.repeat(np.arange(300), 3))
    assert (thrice.count, thrice.mean, thrice.variance) == pytest.approx((300, alone.mean, alone.variance))
    assert Values.of_clusters(np.array([]), np.array([], dtype=np.int64)).count == 0
