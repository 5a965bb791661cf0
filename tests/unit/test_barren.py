"""How many requests may end without a reward."""

from __future__ import annotations

from infra.runs.barren import BARREN_MAX, BarrenCount


def test_one_epoch_without_a_reward_is_enough_and_a_large_one_is_cut() -> None:
    for asked, limit in ((3, 24), (200, 200), (100_000, BARREN_MAX)):
        count = BarrenCount(published=50, asked=asked, ahead=24)
        assert not count.over(50 + limit - 1)
        assert count.over(50 + limit)


def test_an_update_begins_the_count_anew_and_what_was_published_before_does_not_count() -> None:
    count = BarrenCount(published=500, asked=100, ahead=24)
    assert not count.over(500)
    count.updated(400)  # An update of an earlier call, read again from the log.
    assert not count.over(599)
    count.updated(590)
    assert not count.over(689)
    assert count.over(690)
