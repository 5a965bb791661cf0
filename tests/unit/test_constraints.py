"""The no-repeat rule, seen by the sampler token by token and by the learner all at once."""

from __future__ import annotations

import random
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from learner.constraints import banned_next, banned_positions

OPEN, NEXT, CLOSE = 1, 2, 3
OPENERS = frozenset({OPEN, NEXT})

tokens = st.lists(st.integers(0, 9), max_size=30)


@given(tokens, st.frozensets(st.integers(0, 9), max_size=3))
def test_sampler_and_learner_agree_at_every_position(token_ids: list[int], opener_ids: frozenset[int]) -> None:
    stepwise = [
        (position, token)
        for position in range(len(token_ids))
        for token in sorted(banned_next(token_ids[:position], opener_ids))
    ]
    assert banned_positions(token_ids, opener_ids) == stepwise


@given(st.integers(0, 2**32 - 1))
def test_a_sampler_that_obeys_never_begins_two_expansions_alike(seed: int) -> None:
    chance = random.Random(seed)
    written: list[int] = []
    for _ in range(30):
        allowed = sorted(set(range(10)) - banned_next(written, OPENERS))
        written.append(chance.choice(allowed))
    begun = [first for opener, first in pairwise(written) if opener in OPENERS and first not in OPENERS]
    assert len(begun) == len(set(begun))


def test_the_first_token_of_each_earlier_expansion_is_banned_after_an_opener() -> None:
    # ["5 6","7","…
    assert banned_next([OPEN, 5, 6, NEXT, 7, NEXT], OPENERS) == {5, 7}


def test_nothing_is_banned_inside_an_expansion_or_before_the_first() -> None:
    assert banned_next([OPEN, 5, 6], OPENERS) == set()
    assert banned_next([OPEN], OPENERS) == set()
    assert banned_next([], OPENERS) == set()


def test_later_tokens_of_an_expansion_may_repeat() -> None:
    assert banned_positions([OPEN, 5, 6, NEXT, 6, 5, CLOSE], OPENERS) == [(4, 5)]


@given(tokens)
def test_no_openers_turn_the_rule_off(token_ids: list[int]) -> None:
    assert banned_positions(token_ids, frozenset()) == []
    assert banned_next(token_ids, frozenset()) == set()
