"""What the drift experiment's people click, and what their clicks say about words."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from infra.experiments.markdown import with_table
from infra.simulating.world import WorldSettings
from search_env.clicks.models import PositionBased
from search_env.clicks.published import EYE_TRACKED
from tests.commands import ROOT
from tests.drift.people import Tried, drawn_clicks, expected_clicks, lessons_of
from tests.drift.table import markdown
from tests.drift.world_run import WorldResult


def test_expected_clicks_are_the_mean_of_drawn_ones_and_by_hand() -> None:
    assert isinstance(EYE_TRACKED.model, PositionBased)
    one, two, *_ = EYE_TRACKED.model.examination
    assert expected_clicks(["a", "b"], {"b": 1}) == pytest.approx(one * 0.1 + two * 1.0)
    drawn = drawn_clicks(["a", "b"], {"b": 1}, 200_000, np.random.default_rng(0))
    assert drawn == pytest.approx(one * 0.1 + two, abs=0.005)


def test_a_relevant_product_that_stands_higher_earns_more() -> None:
    assert expected_clicks(["a", "b"], {"a": 1}) > expected_clicks(["b", "a"], {"a": 1})
    assert expected_clicks([], {"a": 1}) == 0


def test_words_that_earned_clicks_are_kept_best_first_and_others_are_not() -> None:
    random = np.random.default_rng(1)
    worth = {"good": 0.4, "fair": 0.2, "useless": 0.0, "bad": -0.3}
    tried = []
    for _ in range(200):
        words = tuple(word for word in worth if random.random() < 0.5)
        tried.append(Tried("q", "query", words, sum(worth[word] for word in words) + random.normal(0, 0.1)))
    (lesson,) = lessons_of([tried], words_max=2)
    assert lesson.words == ("good", "fair")
    assert "bad" not in lessons_of([tried], words_max=8)[0].words


def test_one_lucky_search_teaches_less_than_many() -> None:
    lucky = [Tried("q", "query", ("once",), 0.5)]
    often = [Tried("q", "query", ("often",), 0.4)] * 20
    assert lessons_of([[*lucky, *often]], words_max=1)[0].words == ("often",)


def test_what_people_did_long_ago_weighs_less() -> None:
    before = [Tried("q", "query", ("old",), 0.4)] * 20
    since = [Tried("q", "query", ("old",), -0.4)] * 20
    assert lessons_of([before, since], words_max=1)[0].words == ()
    assert lessons_of([since, [], [], [], before], words_max=1)[0].words == ("old",)


def test_the_page_shows_the_table_of_the_kept_results() -> None:
    worlds = msgspec.json.decode((ROOT / "tests/drift/results.json").read_bytes(), type=dict[str, WorldResult])
    page = (ROOT / "infra/DRIFT.md").read_text()
    assert with_table(page, "drift", markdown(worlds) + "\n") == page
    assert all(len(days) == 6 for world in worlds.values() for days in world.clicks.values())


def test_a_table_by_hand() -> None:
    clicks = {"raw": [0.25, 0.25], "without pause": [0.5, 0.5], "best": [1.0, 0.5]}
    made = markdown(
        {"drift-slow-s0": WorldResult(world=WorldSettings(renamed=0.03), clicks=clicks, words_of_look_up=1)}
    )
    assert "**slow**: 3% of products" in made
    assert "| raw | 0.250 | 500 | +.250 [+.250, +.250] |" in made
    assert "| **without pause** | 0.500 | 250 |  |" in made
