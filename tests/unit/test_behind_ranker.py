"""A ranker behind the search: its order, the tables, and the reward for what it lacks, each against a page by hand."""

from __future__ import annotations

import hashlib
from typing import cast

import msgspec
import numpy as np
import pytest

from infra.commands.score import ordered_by_ranker
from infra.experiments.plan import read_plan
from infra.recipes.files import WINGS
from infra.recipes.held_out import HeldOut
from infra.recipes.leser.behind import sets_behind
from search_env.catalogue.corpora import Query, Ranking
from search_env.engine.ranker import behind_ranker
from search_env.engine.searching import RetrievalSettings, Searcher
from search_env.leser.environment import LeserEnvironmentSettings, reward_sha256
from search_env.leser.reward import LeserSettings, Reach, SetMeasurements, leser_reward, reach_gain
from search_env.models.relevance import RelevanceModel

SCORES = {"a": 0.2, "b": 0.9, "c": 0.9, "d": 1.0, "e": 0.0}
REACH = LeserSettings(reach_weight=2.0, reach_depth=3, reach_relevance_min=0.5)


class FakeModel:
    """Gives each document a fixed score."""

    def score_many(self, pairs: list[tuple[str, list[str]]]) -> list[np.ndarray]:
        return [np.array([SCORES[name] for name in ids], dtype=np.float32) for _, ids in pairs]


MODEL = cast(RelevanceModel, FakeModel())


def test_a_ranker_orders_its_reach_and_leaves_the_rest_behind_it() -> None:
    (found,) = behind_ranker(["q"], [Ranking(["a", "c", "b", "d", "e"], [9.0, 8.0, 7.0, 6.0, 5.0])], MODEL, depth=3)
    assert found.ids == ["b", "c", "a", "d", "e"]  # b and c are tied: by id. d is better, and out of reach.
    assert found.scores == sorted(found.scores, reverse=True)
    assert min(found.scores[:3]) >= 1 > max(found.scores[3:])


def test_a_ranker_takes_short_and_empty_rankings() -> None:
    first, second = behind_ranker(["q", "r"], [Ranking([], []), Ranking(["a", "b"], [2.0, 1.0])], MODEL, depth=100)
    assert first.ids == []
    assert second.ids == ["b", "a"]


def test_every_set_follows_once_more_behind_the_ranker_with_the_same_judgments() -> None:
    asked = HeldOut(
        name="held-out", queries=[Query(id="q", text="q"), Query(id="none", text="n")], qrels={"q": {"b": 1}}
    )
    sets = sets_behind([(asked, {"q": Ranking(["a", "b"], [2.0, 1.0])})], MODEL, depth=10)
    assert [each.name for each in sets] == ["held-out", "held-out behind the ranker"]
    assert sets[0].qrels == sets[1].qrels == {"q": {"b": 1}}
    assert list(sets[0].run["q"]) == ["a", "b"]
    assert list(sets[1].run["q"]) == ["b", "a"]


@pytest.mark.parametrize(
    ("found", "lost", "raw", "reach"),
    [
        # The raw top 3 has .9 and .6 (and .2, below the bound): 1.5. Found .8, lost nothing: .8 / 1.5.
        ([0.8], [0.2], [0.9, 0.6, 0.2], 0.8 / 1.5),
        # Found .8 and lost .9: (.8 − .9) / 1.5.
        ([0.8], [0.9], [0.9, 0.6, 0.2], -0.1 / 1.5),
        # Many documents of little relevance are nothing.
        ([0.4, 0.4, 0.4], [], [0.9, 0.6, 0.2], 0.0),
        # The raw query finds nothing relevant: the divisor is one document.
        ([0.5], [], [0.1, 0.1, 0.1], 0.5),
        ([0.5], [], [], 0.5),
        # Both ends are clipped: 3 / 1, and −2.7 / 2.7.
        ([1.0, 1.0, 1.0], [], [], 2.0),
        ([], [0.9, 0.9, 0.9], [0.9, 0.9, 0.9], -1.0),
        # The same documents in another order are worth nothing: a ranker orders them.
        ([], [], [0.9, 0.6, 0.2], 0.0),
    ],
)
def test_the_reward_for_what_the_ranker_lacks_equals_a_page_worked_by_hand(
    found: list[float], lost: list[float], raw: list[float], reach: float
) -> None:
    assert reach_gain(Reach(found, lost, raw), REACH)["reach"] == pytest.approx(reach)
    # With weight 2 beside the bonus of .2; nothing else changes.
    reward, parts = leser_reward(SetMeasurements([0.5], [0.5], 3, 3, 1, Reach(found, lost, raw)), REACH)
    assert reward == pytest.approx(0.2 + 2 * reach)
    assert parts["reach"] == pytest.approx(reach)
    assert parts["found"] == pytest.approx(sum(value for value in found if value >= 0.5))
    assert parts["lost"] == pytest.approx(sum(value for value in lost if value >= 0.5))


def test_without_a_weight_neither_the_reward_nor_its_parts_nor_its_hash_change() -> None:
    measured = SetMeasurements([0.5], [0.9], 3, 4, 1)
    reach = measured._replace(reach=Reach([0.9], [], [0.5]))
    assert leser_reward(reach, LeserSettings()) == leser_reward(measured, LeserSettings())
    assert "reach" not in leser_reward(reach, LeserSettings())[1]

    class FakeSearcher:
        settings = RetrievalSettings()

    def digest(reward: LeserSettings) -> str:
        return reward_sha256(LeserEnvironmentSettings(reward=reward), cast(Searcher, FakeSearcher()))

    # The hash of version 0.5.0, which had no such settings.
    newer = ("reach_weight", "reach_depth", "reach_relevance_min", "relevance_min")
    old = {n: v for n, v in msgspec.structs.asdict(LeserSettings()).items() if n not in newer}
    shaping = ("mode", "weight", "rank_discount", "whole_boost", "fusion_k")
    searched = {name: getattr(RetrievalSettings(), name) for name in sorted(shaping)}
    parts = b"[" + b",".join(map(msgspec.json.encode, (old, LeserEnvironmentSettings().expansions, searched))) + b"]"
    assert digest(LeserSettings()) == hashlib.sha256(parts).hexdigest()
    assert len({digest(LeserSettings()), digest(REACH), digest(msgspec.structs.replace(REACH, reach_depth=4))}) == 3
    assert digest(LeserSettings(relevance_min=0.1)) != digest(LeserSettings())


def test_the_plan_has_every_arm_with_and_without_the_ranker() -> None:
    plan = read_plan(WINGS / "leser" / "plans" / "leser-behind-ranker.toml")
    assert plan.ranked_with == ("ranker.depth=100",)
    paid = plan.arm("LESER for the ranker").train
    assert paid is not None
    assert "leser.reward.reach_weight=1" in paid.change
    control = plan.arm("shuffled reward").train
    assert control is not None
    assert {*paid.change} < {*control.change}
    assert read_plan(WINGS / "leser" / "plans" / "leser.toml").ranked_with == ()


def test_evaluate_shows_the_runs_behind_the_ranker_too() -> None:
    run = {"q": {"a": 3.0, "b": 2.0, "d": 1.0}}
    found = ordered_by_ranker(run, {"q": SCORES}, 2)
    assert sorted(found["q"], key=lambda name: -found["q"][name]) == ["b", "a", "d"]
