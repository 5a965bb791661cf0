"""Grants bound staleness, and nothing that ends without a reward can stop the stream."""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from learner.admission import Admission
from learner.batches import BatchSettings
from tests.simulated_stream import SCORED, UPDATES, Stream, draw, simulate

PLAIN = Stream(
    batch=BatchSettings(groups=8, staleness_max=1, wait_seconds=5.0),
    chunk=8,
    generators=1,
    generate_seconds=(0.5,),
    score_seconds=(0.05, 0.05),
    publish_seconds=0.0,
    shares=(1.0, 1.0),
    update_seconds=0.5,
)


def test_only_published_requests_are_granted_and_never_more_than_there_is_room_for() -> None:
    admission = Admission(used={})
    assert admission.grant({0: 3, 1: 1}, groups_max=16)
    assert admission.granted == {0: 3, 1: 1}
    assert not admission.grant({0: 3, 1: 1}, groups_max=16)
    assert admission.grant({0: 99, 1: 99}, groups_max=6)
    assert admission.granted == {0: 3, 1: 3}
    assert admission.owed == 6


def test_the_partition_with_the_fewest_open_requests_is_granted_first() -> None:
    admission = Admission(used={0: 10, 1: 40})
    admission.grant({0: 99, 1: 99}, groups_max=5)
    assert admission.granted == {0: 13, 1: 42}
    admission.end(1, 42)
    admission.grant({0: 99, 1: 99}, groups_max=5)
    assert admission.granted == {0: 13, 1: 44}


def test_a_round_is_known_again_after_a_resume() -> None:
    first = Admission(used={})
    said = []
    for end in (2, 3, 7):
        first.grant({0: end}, groups_max=100)
        said.append(first.granted)
    again = Admission(used={0: 1}, announced=said)
    assert [again.round_of(0, offset) for offset in (1, 2, 3, 6)] == [1, 2, 3, 3]
    assert [first.round_of(0, offset) for offset in (1, 2, 3, 6)] == [1, 2, 3, 3]
    assert again.granted == {0: 7}
    assert again.round_owed() == 1
    again.end(0, 3)
    assert again.round_owed() == 3
    again.end(0, 7)
    assert again.round_owed() is None


def test_requests_that_ended_without_a_reward_make_room_for_others() -> None:
    admission = Admission(used={})
    admission.grant({0: 99}, groups_max=8)
    admission.end(0, 8)
    assert admission.owed == 0
    assert admission.grant({0: 99}, groups_max=8)
    assert admission.granted == {0: 16}


@settings(max_examples=60)
@given(st.integers(0, 10**9))
@example(1)
@example(2)
def test_no_group_is_trained_beyond_the_limit_and_hardly_any_expires(seed: int) -> None:
    stream = draw(random.Random(seed))
    outcomes = simulate(stream, random.Random(seed + 1))
    assert all(0 <= lag <= stream.batch.staleness_max for lag in outcomes.staleness)
    assert len(set(outcomes.trained)) == len(outcomes.trained)
    taken = len(outcomes.trained) + len(outcomes.expired) + len(outcomes.failed)
    assert len(outcomes.expired) <= 0.02 * taken
    assert outcomes.updates == UPDATES or outcomes.unanswered == 0


@pytest.mark.parametrize("buried", [1.0, 0.9])
def test_a_stream_whose_requests_are_nearly_all_given_up_goes_on(buried: float) -> None:
    outcomes = simulate(msgspec.structs.replace(PLAIN, buried=buried), random.Random(3))
    assert outcomes.unanswered == 0 or outcomes.updates == UPDATES


def test_a_stream_of_other_splits_alone_is_answered_whole() -> None:
    outcomes = simulate(msgspec.structs.replace(PLAIN, other=1.0), random.Random(3))
    assert outcomes.updates == 0
    assert outcomes.unanswered == 0


def test_a_full_stream_makes_no_short_batch_and_loses_no_group() -> None:
    outcomes = simulate(PLAIN, random.Random(3))
    assert outcomes.updates == UPDATES
    assert outcomes.short == 0
    assert len(outcomes.trained) == UPDATES * PLAIN.batch.groups
    assert SCORED[0].reward != SCORED[1].reward
