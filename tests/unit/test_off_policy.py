"""Off-policy estimators: equal to two libraries, with intervals that cover, and what cannot be evaluated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from estimators.bandits import ips, snips

from storage.errors import EvaluationError
from storage.offpolicy.estimators import NAMES, Choices, Name, estimate, support
from tests.obp_oracle import oracle

ACTIONS = 4
SWITCH, SHRINKAGE = 3.0, 5.0


def logged(seed: int, count: int = 400, rounds_a_cluster: int = 1) -> tuple[Choices, dict[str, Any], float]:
    """Return choices with a reward model of its own errors, the same as the oracle wants them, and the true value."""
    random = np.random.default_rng(seed)
    scores = random.normal(size=(count, ACTIONS))
    behaviour = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    sharper = np.exp(2 * scores[:, ::-1])
    target = sharper / sharper.sum(axis=1, keepdims=True)
    rates = 1 / (1 + np.exp(-random.normal(size=(count, ACTIONS))))
    actions = (random.random((count, 1)) > behaviour.cumsum(axis=1)).sum(axis=1).clip(max=ACTIONS - 1)
    rows = np.arange(count)
    rewards = (random.random(count) < rates[rows, actions]).astype(float)
    modelled = np.clip(rates + random.normal(scale=0.2, size=rates.shape), 0, 1)
    choices = Choices(
        rewards=rewards,
        propensities=behaviour[rows, actions],
        targets=target[rows, actions],
        modelled=modelled[rows, actions],
        expected=(target * modelled).sum(axis=1),
        clusters=rows // rounds_a_cluster,
    )
    given = {
        "reward": rewards,
        "action": actions,
        "pscore": behaviour[rows, actions],
        "action_dist": target[:, :, None],
        "position": np.zeros(count, dtype=int),
        "estimated_rewards_by_reg_model": modelled[:, :, None],
    }
    return choices, given, float((target * rates).sum(axis=1).mean())


@pytest.mark.parametrize("seed", range(5))
def test_every_estimator_equals_the_open_bandit_pipeline(seed: int) -> None:
    choices, given, _ = logged(seed)
    obp = oracle()
    others = {
        "ips": obp.InverseProbabilityWeighting(),
        "snips": obp.SelfNormalizedInverseProbabilityWeighting(),
        "dm": obp.DirectMethod(),
        "dr": obp.DoublyRobust(),
        "sndr": obp.SelfNormalizedDoublyRobust(),
        "switch": obp.SwitchDoublyRobust(tau=SWITCH),
        "shrinkage": obp.DoublyRobustWithShrinkage(lambda_=SHRINKAGE),
    }
    assert set(others) == set(NAMES)
    for name in NAMES:
        ours = estimate(choices, name, switch=SWITCH, shrinkage=SHRINKAGE).value
        assert ours == pytest.approx(others[name].estimate_policy_value(**given), abs=1e-9), name


@pytest.mark.parametrize("seed", range(5))
def test_weighted_estimators_equal_those_of_vowpal_wabbit(seed: int) -> None:
    choices, _, _ = logged(seed)
    for name, other in (("ips", ips.Estimator()), ("snips", snips.Estimator())):
        for propensity, reward, target in zip(choices.propensities, choices.rewards, choices.targets, strict=True):
            other.add_example(propensity, reward, target)
        assert estimate(choices, name).value == pytest.approx(other.get(), abs=1e-9)


@pytest.mark.parametrize("name", ["ips", "snips", "dr", "sndr"])
def test_intervals_cover_the_truth_as_often_as_they_say(name: Name) -> None:
    covered = 0
    for seed in range(300):
        choices, _, truth = logged(seed, count=600)
        found = estimate(choices, name)
        covered += found.low <= truth <= found.high
    # Of 300 intervals of 95 %, at least 271 and at most 295 cover the truth with a probability above .999.
    assert 271 <= covered <= 296


def test_impressions_of_one_cluster_count_as_one_draw() -> None:
    choices, _, _ = logged(0, count=300)
    thrice = Choices(
        **{name: np.repeat(getattr(choices, name), 3) for name in choices.__struct_fields__}  # type: ignore[arg-type]
    )
    once, cautious = estimate(choices, "dr"), estimate(thrice, "dr")
    assert cautious.value == pytest.approx(once.value)
    assert cautious.error == pytest.approx(once.error)


def test_the_same_log_gives_the_same_bytes() -> None:
    first, second = (estimate(logged(3)[0], name) for name in ("dr", "dr"))
    assert first == second


def test_a_policy_that_the_log_does_not_cover_is_not_evaluable_and_says_why() -> None:
    choices, _, _ = logged(0)
    none = Choices(
        **{name: getattr(choices, name) for name in choices.__struct_fields__ if name != "targets"},
        targets=np.zeros(len(choices.rewards)),
    )
    assert "never took an action" in support(none).trouble
    with pytest.raises(EvaluationError, match="expected a weight above 0"):
        estimate(none, "snips")
    few = np.where(np.arange(len(choices.rewards)) < 20, choices.targets, 0.0)
    rare = Choices(
        **{name: getattr(choices, name) for name in choices.__struct_fields__ if name != "targets"}, targets=few
    )
    assert support(rare).trouble.startswith("not evaluable: effective sample size")
    assert not support(choices).trouble


@pytest.mark.parametrize("bad", [0.0, 1.5, -0.1, float("nan")])
def test_a_propensity_that_is_no_probability_is_refused(bad: float) -> None:
    choices, _, _ = logged(0)
    propensities = choices.propensities.copy()
    propensities[7] = bad
    with pytest.raises(EvaluationError, match="propensities: expected values above 0 and at most 1"):
        Choices(
            **{name: getattr(choices, name) for name in choices.__struct_fields__ if name != "propensities"},
            propensities=propensities,
        )
