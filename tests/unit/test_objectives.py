"""Advantages and losses against numbers worked by hand; TRL is the oracle of the whole in test_objectives_trl."""

from __future__ import annotations

import math

import msgspec
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from learner.objectives import (
    Objective,
    ObjectiveSettings,
    check_objective,
    completion_weights,
    group_advantages,
    listwise_weights,
    off_policy_corrections,
    policy_objective,
    token_weights,
)
from streams.errors import SettingsError

NAN = float("nan")
MASK = torch.tensor([[True, True, True, True], [True, True, False, False]])  # [N, C]


def objective(
    settings: ObjectiveSettings,
    ratios: list[list[float]],
    *,
    advantages: list[float],
    behaviour: Tensor | None = None,
    reference: Tensor | None = None,
) -> tuple[Objective, Tensor]:
    """Return the objective where π/π_old are the given ratios, and its gradient by the log-probabilities."""
    old = torch.full(MASK.shape, -2.0) * MASK
    logprobs = (old + torch.tensor(ratios).log() * MASK).requires_grad_()
    entropies = torch.full(MASK.shape, 1.5) * MASK
    result = policy_objective(
        logprobs=logprobs,
        entropies=entropies,
        old_logprobs=old,
        behaviour_logprobs=old if behaviour is None else behaviour,
        reference_logprobs=reference,
        advantages=torch.tensor(advantages),
        mask=MASK,
        weights=token_weights(MASK, settings, sequences=2, tokens=6),
        settings=settings,
    )
    result.loss.backward()  # type: ignore[no-untyped-call]
    assert logprobs.grad is not None
    return result, logprobs.grad


def test_the_mean_advantage_is_the_reward_less_its_groups_mean() -> None:
    rewards = torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.0, 3.0]])
    assert group_advantages(rewards).tolist() == [[-2, -1, 3], [-1, -1, 2]]


def test_the_scaled_advantage_is_divided_by_the_samples_deviation() -> None:
    advantages = group_advantages(torch.tensor([[1.0, 2.0, 3.0]]), scale=True)
    assert advantages[0].tolist() == pytest.approx([-1, 0, 1])


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("reward", [0.0, 0.1, 0.7, -1e9])
def test_equal_rewards_give_zero_advantage(scale: bool, reward: float) -> None:
    assert group_advantages(torch.full((1, 7), reward), scale=scale).tolist() == [[0.0] * 7]


@pytest.mark.parametrize("scale", [False, True])
def test_unscored_candidates_leave_the_mean_and_stay_unscored(scale: bool) -> None:
    with_gap = group_advantages(torch.tensor([[1.0, NAN, 5.0, 3.0]]), scale=scale)[0]
    without = group_advantages(torch.tensor([[1.0, 5.0, 3.0]]), scale=scale)[0]
    assert math.isnan(with_gap[1])
    assert with_gap[[0, 2, 3]].tolist() == without.tolist()


@pytest.mark.parametrize("row", [[1.0, NAN], [NAN, NAN]])
def test_a_group_with_fewer_than_two_scored_is_an_error(row: list[float]) -> None:
    with pytest.raises(ValueError, match="at least 2 scored"):
        group_advantages(torch.tensor([[1.0, 2.0], row]))


@example([0.0, 1.8e-230], 0.0, True)  # The square of this difference is 0.
@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=9), st.floats(-100, 100), st.booleans())
def test_advantages_have_mean_zero_and_ignore_a_shift(rewards: list[float], shift: float, scale: bool) -> None:
    values = torch.tensor([rewards], dtype=torch.float64)
    advantages = group_advantages(values, scale=scale)
    assert advantages.mean().item() == pytest.approx(0, abs=1e-9 * max(1, advantages.abs().max().item()))
    if values.std() > 1e-3:
        assert torch.allclose(group_advantages(values + shift, scale=scale), advantages, atol=1e-7)


def test_on_policy_the_gradient_is_the_policy_gradient_by_sequence() -> None:
    # −A/(N·|o|) at each token.
    _, gradient = objective(ObjectiveSettings(), [[1.0] * 4, [1.0] * 4], advantages=[2.0, -1.0])
    assert gradient.tolist() == [[-0.25] * 4, [0.25, 0.25, 0, 0]]


def test_listwise_weights_are_the_softmax_of_the_rewards_worked_by_hand() -> None:
    """r/β = (ln 1, ln 2, ln 5) for β = .5 gives softmax (1, 2, 5)/8, times G = 3; a failed candidate has no weight."""
    rewards = torch.tensor([[0.0, 0.5 * math.log(2), NAN, 0.5 * math.log(5)]], dtype=torch.float64)
    weights = listwise_weights(rewards, temperature=0.5)[0]
    assert weights[[0, 1, 3]].tolist() == pytest.approx([3 / 8, 6 / 8, 15 / 8])
    assert weights[2].isnan()
    settings = ObjectiveSettings(advantage="softmax", softmax_temperature=0.5)
    assert torch.equal(completion_weights(rewards, settings)[0].nan_to_num(), weights.nan_to_num())


def test_listwise_weights_of_equal_rewards_teach_nothing() -> None:
    assert listwise_weights(torch.full((1, 5), 0.3), temperature=0.5).tolist() == [[0.0] * 5]
    with pytest.raises(ValueError, match="at least 2 scored"):
        listwise_weights(torch.tensor([[1.0, NAN]]), temperature=0.5)


def test_the_listwise_objective_has_the_gradient_of_torchs_cross_entropy_with_soft_labels() -> None:
    """One group whose candidates are a categorical policy's outcomes: the gradient by its logits is π − soft.

    The outcomes are texts of one to four tokens, which share their log-likelihood: how long one is changes nothing.
    """
    logits = torch.tensor([0.3, -1.0, 0.8, 0.1], dtype=torch.float64, requires_grad=True)
    rewards = torch.tensor([[1.0, 0.2, -0.4, 0.7]], dtype=torch.float64)
    soft = torch.softmax(rewards[0] / 0.5, dim=0)
    (expected,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits[None], soft[None]), logits)
    settings = ObjectiveSettings(
        advantage="softmax",
        surrogate="likelihood",
        softmax_temperature=0.5,
        aggregation="constant",
        constant_tokens=1,
    )
    lengths = torch.tensor([1, 4, 2, 3])
    mask = torch.arange(4)[None] < lengths[:, None]  # [N, C]
    logprobs = logits.log_softmax(0)[:, None] / lengths[:, None] * mask  # [N, C]
    result = policy_objective(
        logprobs=logprobs,
        entropies=torch.zeros_like(logprobs),
        old_logprobs=logprobs.detach(),
        behaviour_logprobs=logprobs.detach(),
        reference_logprobs=None,
        advantages=completion_weights(rewards, settings)[0],
        mask=mask,
        weights=token_weights(mask, settings, sequences=4, tokens=10),
        settings=settings,
    )
    (found,) = torch.autograd.grad(result.loss, logits)
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.allclose(found, logits.softmax(0).detach() - soft, atol=1e-6)


def test_a_likelihood_is_of_whole_texts_and_never_a_mean_by_text() -> None:
    with pytest.raises(
        SettingsError, match="aggregation: expected 'constant' or 'token' with surrogate = 'likelihood'"
    ):
        check_objective(ObjectiveSettings(surrogate="likelihood"))
    check_objective(ObjectiveSettings(surrogate="likelihood", aggregation="token"))


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("sequence", [[1 / 8] * 4, [1 / 4, 1 / 4, 0, 0]]),
        ("token", [[1 / 6] * 4, [1 / 6, 1 / 6, 0, 0]]),
        ("constant", [[1 / 20] * 4, [1 / 20, 1 / 20, 0, 0]]),
    ],
)
def test_aggregations_weigh_tokens_as_their_papers_do(aggregation: str, expected: list[list[float]]) -> None:
    settings = ObjectiveSettings(aggregation=aggregation, constant_tokens=10)  # type: ignore[arg-type]
    weights = token_weights(MASK, settings, sequences=2, tokens=6)
    assert torch.allclose(weights.loss, torch.tensor(expected))
    assert torch.allclose(weights.entropy, MASK / 6)


def test_the_clip_stops_only_what_goes_further_away() -> None:
    settings = ObjectiveSettings(clip_low=0.2, clip_high=0.5, aggregation="token")
    ratios = [[0.7, 1.4, 1.6, 1.0], [0.7, 1.6, 1.0, 1.0]]
    result, gradient = objective(settings, ratios, advantages=[1.0, -1.0])
    assert result.clipped.tolist() == [[False, False, True, False], [True, False, False, False]]
    assert (gradient == 0).tolist() == [[False, False, True, False], [True, False, True, True]]
    # min(rA, clip(r)A): 0.7 + 1.4 + 1.5 + 1 − 0.8 − 1.6
    assert result.loss.item() == pytest.approx(-(0.7 + 1.4 + 1.5 + 1.0 - 0.8 - 1.6) / 6)


def test_gspo_clips_whole_sequences_by_their_geometric_mean() -> None:
    settings = ObjectiveSettings(ratio_level="sequence", clip_low=0.1, clip_high=0.1)
    result, gradient = objective(settings, [[2.0, 2.0, 1.0, 1.0], [2.0, 0.5, 1, 1]], advantages=[1.0, 1.0])
    assert result.ratios[0].tolist() == pytest.approx([math.sqrt(2)] * 4)
    assert result.ratios[1, :2].tolist() == pytest.approx([1.0] * 2)
    assert not gradient[0].any()
    assert gradient[1, :2].tolist() == pytest.approx([-0.25, -0.25])


def test_cispo_caps_the_weight_and_keeps_the_gradient() -> None:
    settings = ObjectiveSettings(surrogate="cispo", cispo_ratio_max=3.0, aggregation="token")
    _, gradient = objective(settings, [[9.0, 2.0, 1.0, 1.0], [1.0] * 4], advantages=[1.0, 0.0])
    assert gradient[0].tolist() == pytest.approx([-3 / 6, -2 / 6, -1 / 6, -1 / 6])


def test_the_correction_weighs_by_what_has_changed_since_the_sampler_up_to_its_cap() -> None:
    old = torch.log(torch.tensor([[0.2, 0.4, 0.1, 1.0], [0.5, 0.5, 1.0, 1.0]]))
    behaviour = torch.log(torch.tensor([[0.4, 0.1, 0.1, 1.0], [0.4, 0.4, 1.0, 1.0]]))
    by_token = off_policy_corrections(old, behaviour, MASK, level="token", cap=2.0)
    assert by_token[0].tolist() == pytest.approx([0.5, 2.0, 1.0, 1.0])
    assert by_token[1, :2].tolist() == pytest.approx([1.25, 1.25])
    by_sequence = off_policy_corrections(old, behaviour, MASK, level="sequence", cap=1.9)
    assert by_sequence[:, 0].tolist() == pytest.approx([1.9, 1.25**2])


def test_without_a_correction_the_sampler_is_the_old_policy() -> None:
    behaviour = torch.full(MASK.shape, -2.0 - math.log(2)) * MASK  # Half as likely as now.
    settings = ObjectiveSettings(correction="none")
    result, gradient = objective(settings, [[1.0] * 4, [1.0] * 4], advantages=[1.0, -1.0], behaviour=behaviour)
    assert result.ratios[MASK].tolist() == pytest.approx([2.0] * 6)
    assert not gradient[0].any()  # Beyond 1.2 with a positive advantage.
    assert gradient[1, :2].tolist() == pytest.approx([0.5, 0.5])


def test_on_policy_the_unbiased_kl_has_the_reverse_kls_gradient_on_average() -> None:
    """Summed over all outcomes by probability, the gradient is that of KL(π‖π_ref); the plain k3's is not."""
    logits = torch.tensor([0.3, -1.0, 0.8], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([-0.2, 0.5, 0.1], dtype=torch.float64).log_softmax(0)
    policy = logits.log_softmax(0)
    (exact,) = torch.autograd.grad((policy.exp() * (policy - reference)).sum(), logits)
    found = {}
    for unbiased in (True, False):
        settings = ObjectiveSettings(kl_weight=1.0, kl_unbiased=unbiased, aggregation="token")
        logprobs = logits.log_softmax(0)[:, None]  # [N, 1] each outcome is a completion of one token
        mask = torch.ones_like(logprobs, dtype=torch.bool)
        weights = token_weights(mask, settings, sequences=3, tokens=3)
        weights.loss[:] = policy.detach().exp()[:, None]
        result = policy_objective(
            logprobs=logprobs,
            entropies=torch.zeros_like(logprobs),
            old_logprobs=logprobs.detach(),
            behaviour_logprobs=logprobs.detach(),
            reference_logprobs=reference[:, None],
            advantages=torch.zeros(3),
            mask=mask,
            weights=weights,
            settings=settings,
        )
        (found[unbiased],) = torch.autograd.grad(result.loss, logits)
    assert torch.allclose(found[True], exact, atol=1e-6)
    assert not torch.allclose(found[False], exact, atol=1e-2)


def test_the_entropy_bonus_is_the_mean_entropy_of_all_tokens() -> None:
    plain, _ = objective(ObjectiveSettings(), [[1.0] * 4, [1.0] * 4], advantages=[1.0, -1.0])
    bonus, _ = objective(ObjectiveSettings(entropy_weight=0.5), [[1.0] * 4, [1.0] * 4], advantages=[1.0, -1.0])
    assert (plain.loss - bonus.loss).item() == pytest.approx(0.5 * 1.5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"clip_low": 1.2},
        {"clip_high": -0.1},
        {"correction_cap": 0.5},
        {"advantage": "median"},
        {"entropy_weight": -1},
        {"clip": 0.2},
    ],
)
def test_settings_out_of_range_or_unknown_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(wrong, ObjectiveSettings)
