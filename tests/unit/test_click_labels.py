"""Labels of clicks: positions planted in a simulated log are found again, and clicks of the first rank count less."""

from __future__ import annotations

import numpy as np
import pytest

from search_env.models.click_labels import MOVED_PAIRS_MIN, click_labels
from search_env.models.clicked_lists import ShownList

PLANTED = 1 / np.arange(1, 11)
"""The examination of ten ranks; the position-based model of ULTRA's file has the same form (1/rank^η)."""


def log(*, moved: bool, lists: int, seed: int = 0, theta: np.ndarray = PLANTED) -> tuple[list[ShownList], np.ndarray]:
    """Return simulated searches of 20 queries with 10 documents each, and the attraction of each document, [20, 10]."""
    random = np.random.default_rng(seed)
    attraction = random.uniform(0.1, 0.9, size=(20, 10))
    found = []
    for number in range(lists):
        query = number % 20
        order = random.permutation(10) if moved else np.arange(10)
        clicked = random.random(10) < theta * attraction[query, order]
        found.append(
            ShownList(
                query=f"q{query}",
                shown=[(f"d{document}", rank) for rank, document in enumerate(order.tolist(), start=1)],
                clicked=frozenset(f"d{order[place]}" for place in np.flatnonzero(clicked).tolist()),
            )
        )
    return found, attraction


def test_planted_positions_are_found_again() -> None:
    lists, attraction = log(moved=True, lists=20_000)
    found = click_labels(lists, exponent=0.0)
    assert found.estimated
    assert found.pairs_moved == 200
    assert found.theta[:10] == pytest.approx(PLANTED, rel=0.15)
    labels = np.array([[found.labels[f"q{q}"][f"d{d}"][0] for d in range(10)] for q in range(20)])
    assert np.corrcoef(labels.ravel(), attraction.ravel())[0, 1] > 0.95


def test_lists_in_one_order_cannot_tell_positions_and_take_the_table() -> None:
    lists, _ = log(moved=False, lists=2_000)
    found = click_labels(lists, exponent=1.0)
    assert (found.estimated, found.pairs_moved) == (False, 0)
    assert found.theta[:3].tolist() == pytest.approx([1, 1 / 2, 1 / 3])


def test_a_click_at_a_deep_rank_counts_more_than_one_at_the_first() -> None:
    shown = [("first", 1), ("fourth", 4), ("other", 2)]
    lists = [ShownList("q", shown, frozenset({"first", "fourth"}) if n < 10 else frozenset()) for n in range(40)]
    labels = click_labels(lists, exponent=1.0).labels["q"]
    # Σθ: first 40, fourth 10, other 20; clicks 10, 10, 0; mean 20 / 70; with 5 prior examinations at 2/7:
    # first (10 + 10/7) / 45 = .254, fourth (10 + 10/7) / 15 = .762, other (10/7) / 25 = .057.
    top = np.quantile([0.253968, 0.761905, 0.057143], 0.95)
    assert labels["first"][0] == pytest.approx(0.253968 / top, abs=1e-5)
    assert labels["fourth"][0] == 1.0
    assert labels["other"][0] == pytest.approx(0.057143 / top, abs=1e-5)
    assert [labels[name][1] for name in ("first", "fourth", "other")] == pytest.approx([40 / 45, 10 / 15, 20 / 25])


def test_without_clicks_there_are_no_labels() -> None:
    assert click_labels([], exponent=1.0).labels == {}
    assert click_labels([ShownList("q", [("d", 1)], frozenset())] * 10, exponent=1.0).labels == {}


def test_documents_that_hardly_anybody_examined_have_no_label() -> None:
    lists = [ShownList("q", [("seen", 1), ("deep", 40)], frozenset({"seen", "deep"}))] * 5
    assert set(click_labels(lists, exponent=1.0).labels["q"]) == {"seen"}


def test_a_few_moved_pairs_are_not_enough_for_an_estimate() -> None:
    lists = [ShownList(f"q{n}", [("d", rank)], frozenset({"d"})) for n in range(MOVED_PAIRS_MIN - 1) for rank in (1, 2)]
    assert not click_labels(lists, exponent=1.0).estimated
    lists += [ShownList("one more", [("d", rank)], frozenset({"d"})) for rank in (1, 2)]
    assert click_labels(lists, exponent=1.0).estimated
