"""The choice of what a person sees: its probabilities are true, and none is below the floor."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_env.leser.expansion_cache import Expanded
from search_env.serving.answers import Answers
from search_env.serving.choosing import choose, probabilities

SCORES = st.dictionaries(st.text(max_size=5), st.floats(min_value=-1e6, max_value=1e6), min_size=1, max_size=8)


@given(SCORES, st.floats(min_value=0, max_value=1), st.floats(min_value=0.01, max_value=100))
def test_probabilities_sum_to_one_and_none_is_below_the_floor(
    scores: dict[str, float], epsilon: float, temperature: float
) -> None:
    found = probabilities(scores, epsilon=epsilon, temperature=temperature)
    assert set(found) == set(scores)
    assert math.isclose(sum(found.values()), 1.0, abs_tol=1e-9)
    assert min(found.values()) >= epsilon / len(scores) - 1e-12
    best = max(scores.values())
    assert all(found[name] >= max(found.values()) - 1e-12 for name in scores if scores[name] == best)


def test_probabilities_are_those_of_a_page_worked_by_hand() -> None:
    # softmax(0, ln 3) = (1/4, 3/4); with epsilon .2, each choice has a floor of .1.
    found = probabilities({"": 0.0, "v": math.log(3)}, epsilon=0.2, temperature=1.0)
    assert found == pytest.approx({"": 0.1 + 0.8 / 4, "v": 0.1 + 0.8 * 3 / 4})


@pytest.mark.parametrize(
    ("scores", "epsilon", "temperature"),
    [
        ({}, 0.1, 1.0),
        ({"a": math.nan}, 0.1, 1.0),
        ({"a": math.inf}, 0.1, 1.0),
        ({"a": 1.0}, 1.5, 1.0),
        ({"a": 1.0}, 0.1, 0.0),
    ],
)
def test_what_gives_no_probability_is_refused(scores: dict[str, float], epsilon: float, temperature: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        probabilities(scores, epsilon=epsilon, temperature=temperature)


def test_choices_fall_as_often_as_their_probability_says_and_again_the_same() -> None:
    offered = probabilities({"": 0.0, "a": 1.0, "b": -1.0}, epsilon=0.1, temperature=1.0)
    drawn = [choose(f"impression-{number}", offered) for number in range(20_000)]
    counts = Counter(each.policy for each in drawn)
    for name, probability in offered.items():
        # Five standard errors of a share of 20,000.
        assert abs(counts[name] / 20_000 - probability) < 5 * math.sqrt(probability * (1 - probability) / 20_000)
    assert all(each.propensity == offered[each.policy] for each in drawn)
    assert drawn[:50] == [choose(f"impression-{number}", offered) for number in range(50)]


def test_an_answer_is_found_by_the_words_of_its_query_and_an_invalid_one_is_none() -> None:
    def expanded(query: str, *words: str, valid: bool = True) -> Expanded:
        return Expanded(query_id="q", query=query, expansions=words, valid=valid, text="", policy="v")

    answers = Answers(
        {"v-1": [expanded("Red Mug", "cup"), expanded("lamp", valid=False)], "v-2": [expanded("red mug")]}
    )
    assert answers.of("red  mug!") == {"v-1": ("cup",), "v-2": ()}
    assert answers.of("lamp") == {}
    assert (answers.policies, len(answers)) == (("v-1", "v-2"), 1)
