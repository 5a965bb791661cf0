"""The LESER reward against a page worked by hand."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_env.leser.reward import LeserSettings, SetMeasurements, invalid_reward, leser_reward

PAPER = LeserSettings(relevance_depth=4, rank_discount=False, relevance_floor=0.1, format_bonus=0.0)


def test_a_page_worked_by_hand() -> None:
    # Raw top-4: relevance .8 .4 0 0 → mean .3. Union: .8 .8 .4 .4 → mean .6. r_rel = (.6 − .3) / .3 = 1.
    # Sizes 100 → 150: r_size = .5. r = 1 + .1 · .5 = 1.05.
    reward, parts = leser_reward(SetMeasurements([0.8, 0.4, 0.0, 0.0], [0.8, 0.8, 0.4, 0.4], 100, 150, 3), PAPER)
    assert reward == pytest.approx(1.05)
    assert parts == pytest.approx(
        {
            "relevance": 1.0,
            "size": 0.5,
            "raw_relevance": 0.3,
            "union_relevance": 0.6,
            "raw_size": 100.0,
            "union_size": 150.0,
            "terms": 3.0,
            "valid": 1.0,
        }
    )


def test_the_bonus_and_the_cost_of_terms_are_added_after_the_parts() -> None:
    settings = msgspec.structs.replace(PAPER, format_bonus=0.2, term_cost=0.01)
    measured = SetMeasurements([0.8, 0.4, 0.0, 0.0], [0.8, 0.8, 0.4, 0.4], 100, 150, 3)
    assert leser_reward(measured, settings)[0] == pytest.approx(1.05 + 0.2 - 0.03)


def test_the_discounted_mean_pays_more_for_the_first_ranks() -> None:
    settings = msgspec.structs.replace(PAPER, relevance_depth=3, rank_discount=True)
    # Discounts 1, 1/log2(3) = .63093, 1/log2(4) = .5; sum 2.13093. Raw .3 at rank 1, union .3 at ranks 1 and 3.
    _, parts = leser_reward(SetMeasurements([0.3, 0.0, 0.0], [0.3, 0.0, 0.3], 3, 3, 1), settings)
    assert parts["raw_relevance"] == pytest.approx(0.3 / 2.13093, rel=1e-5)
    assert parts["union_relevance"] == pytest.approx(0.45 / 2.13093, rel=1e-5)
    assert parts["relevance"] == pytest.approx(0.5, rel=1e-5)


def test_expansions_that_change_nothing_are_worth_the_bonus_alone() -> None:
    reward, parts = leser_reward(SetMeasurements([0.5, 0.5], [0.5, 0.5], 2, 2, 0), LeserSettings())
    assert reward == LeserSettings().format_bonus
    assert parts["relevance"] == parts["size"] == 0.0


def test_a_raw_query_that_finds_nothing_is_measured_against_the_floor() -> None:
    reward, parts = leser_reward(SetMeasurements([], [0.2, 0.2], 0, 2, 1), PAPER)
    # mean .1 over k = 4, (.1 − 0) / .1 = 1; size (2 − 0) / max(0, 1) = 2.
    assert parts["relevance"] == pytest.approx(1.0)
    assert parts["size"] == pytest.approx(2.0)
    assert reward == pytest.approx(1.2)


def test_a_shorter_list_is_not_better_than_a_longer_one() -> None:
    _, longer = leser_reward(SetMeasurements([0.5], [0.9, 0.1], 1, 2, 1), PAPER)
    _, shorter = leser_reward(SetMeasurements([0.5], [0.9], 1, 1, 1), PAPER)
    assert longer["relevance"] > shorter["relevance"]


def test_both_parts_are_clipped() -> None:
    _, high = leser_reward(SetMeasurements([0.1] * 4, [1.0] * 4, 10, 1000, 1), PAPER)
    _, low = leser_reward(SetMeasurements([1.0] * 4, [0.0] * 4, 10, 0, 1), PAPER)
    assert (high["relevance"], high["size"]) == (2.0, 2.0)
    assert (low["relevance"], low["size"]) == (-1.0, -1.0)


def test_an_invalid_text_is_worth_nothing() -> None:
    assert invalid_reward() == (0.0, {"valid": 0.0})


UNIT = st.floats(min_value=0, max_value=1, allow_nan=False)


@given(st.lists(UNIT, max_size=30), st.lists(UNIT, max_size=30), st.integers(0, 100), st.integers(0, 200))
def test_the_reward_is_bounded(raw: list[float], union: list[float], raw_size: int, union_size: int) -> None:
    reward, _ = leser_reward(SetMeasurements(raw, union, raw_size, union_size, 0), LeserSettings())
    assert 0.2 - 1 - 0.1 <= reward <= 0.2 + 2 + 0.2


def test_documents_of_little_relevance_count_as_none_if_the_settings_say_so() -> None:
    # A raw list of doubts (.06) against one relevant document among no others: doubts alone would make it a loss.
    measured = SetMeasurements([0.06] * 100, [0.5] + [0.0] * 99, 100, 100, 1)
    every, sure = LeserSettings(), LeserSettings(relevance_min=0.1)
    assert leser_reward(measured, every)[1]["relevance"] < 0
    _, parts = leser_reward(measured, sure)
    assert parts["raw_relevance"] == 0
    assert parts["union_relevance"] == pytest.approx(0.5 / sum(1 / math.log2(1 + rank) for rank in range(1, 101)))
    assert leser_reward(SetMeasurements([0.1], [0.1], 1, 1, 0), sure)[1]["raw_relevance"] > 0, "the bound itself counts"
