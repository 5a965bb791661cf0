"""The ReSuMe reward, against a page worked by hand from the paper's equations 2 to 4."""

from __future__ import annotations

import math

import pytest

from search_env.resume.reward import (
    ResumeSettings,
    resume_reward,
    retrieval_reward,
    retrieval_score,
    spread_scale,
    structure_reward,
    unformatted_reward,
)

PAPER = ResumeSettings(edge_scale=1.0, tokens_low=64, tokens_high=128, tokens_over=160)


def test_a_summary_worked_by_hand() -> None:
    """q⁺ has cosines .8 and .6 with s, .2 and .4 with d; q⁻ has −.2 and .4 with s, 0 and .4 with d.

    S is (1 + cos)/2: s has .9 + .8 = 1.7 against .4 + .7 = 1.1, so 1.7/2.8; d has .6 + .7 = 1.3 against .5 + .7 = 1.2,
    so 1.3/2.5 = .52. Δ = .607142… − .52 = .087142…, which lies in [0, .1) and pays .3. 70 tokens pay 1.
    """
    reward, parts = resume_reward(
        positives=[0.8, 0.6],
        negatives=[-0.2, 0.4],
        document_positives=[0.2, 0.4],
        document_negatives=[0.0, 0.4],
        tokens=70,
        settings=PAPER,
    )
    assert parts["summary_score"] == pytest.approx(17 / 28)
    assert parts["document_score"] == pytest.approx(0.52)
    assert parts["delta"] == pytest.approx(17 / 28 - 0.52)
    assert (parts["structure"], parts["retrieval"]) == (1.0, 0.3)
    assert reward == pytest.approx(1.3)


@pytest.mark.parametrize(
    ("delta", "expected"),
    [
        *[(-1.0, -1.0), (-0.51, -1.0), (-0.5, -0.8), (-0.21, -0.8), (-0.2, -0.6), (-0.1, -0.3), (-1e-9, -0.3)],
        *[(0.0, 0.3), (0.099, 0.3), (0.1, 0.6), (0.2, 0.8), (0.499, 0.8), (0.5, 1.0), (1.0, 1.0)],
    ],
)
def test_the_papers_bins_are_closed_below(delta: float, expected: float) -> None:
    assert retrieval_reward(delta, PAPER) == expected


def test_scaled_edges_tell_small_differences_apart() -> None:
    scaled = ResumeSettings(edge_scale=0.1)
    assert [retrieval_reward(delta, scaled) for delta in (-0.03, -0.005, 0.005, 0.015, 0.03, 0.06)] == [
        *(-0.8, -0.3, 0.3, 0.6, 0.8, 1.0)
    ]


def test_a_measured_spread_puts_one_deviation_on_the_middle_edge() -> None:
    assert spread_scale([[-0.04, 0.04], [0.56, 0.64]]) == pytest.approx(0.2)
    assert spread_scale([[0.1, 0.1]]) == 0.001
    assert spread_scale([]) == 0.001


@pytest.mark.parametrize(
    ("tokens", "expected"), [(0, 0.3), (63, 0.3), (64, 1.0), (128, 1.0), (129, 0.9), (160, 0.9), (161, 0.3)]
)
def test_the_papers_lengths(tokens: int, expected: float) -> None:
    assert structure_reward(tokens, PAPER) == expected


def test_a_missing_format_is_minus_one_twice() -> None:
    reward, parts = unformatted_reward(PAPER)
    assert reward == -2.0
    assert parts == {"structure": -1.0, "retrieval": -1.0, "delta": -1.0, "valid": 0.0}


def test_opposite_vectors_do_not_divide_by_zero() -> None:
    assert retrieval_score([-1.0], [-1.0], PAPER) == 0.5
    assert 0 <= retrieval_score([-1.0, 1.0000001], [-0.9], PAPER) <= 1


def test_without_negatives_the_score_is_a_mean_and_not_always_one() -> None:
    alone = ResumeSettings(negatives=False)
    assert retrieval_score([0.8, 0.6], [], alone) == pytest.approx(0.85)


def test_no_queries_or_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="positive and negative queries, got 0 and 1"):
        retrieval_score([], [0.5], PAPER)
    with pytest.raises(ValueError, match="finite"):
        retrieval_score([math.nan], [0.5], PAPER)


def test_a_continuous_reward_is_the_scaled_delta() -> None:
    continuous = ResumeSettings(discrete=False, edge_scale=0.1)
    assert retrieval_reward(0.05, continuous) == pytest.approx(0.5)
    assert retrieval_reward(-0.3, continuous) == -1.0
