"""The gate: what closes a kind of query, the reason, and that a run keeps its verdict."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import msgspec
import numpy as np
import pytest

from infra.app.home import Home
from infra.app.settings import Settings
from infra.recipes.leser.closed_kinds import closed_kinds, read_verdict
from infra.recipes.leser.gate import is_open, judge_run, keep_check, read_check, verdict_of
from infra.recipes.leser.judging import JUDGED, PAIRS, TITLES, Judge, JudgeCheck, JudgedSet, KindCheck
from search_env.catalogue.corpora import Document, Query, Ranking
from search_env.catalogue.term_matrices import Catalogue
from search_env.engine.searching import Searcher
from search_env.models.relevance import Gate, RelevanceModel
from search_env.models.reliability import reliability
from storage.evaluation.comparison import Interval
from streams.errors import SettingsError


def checked(kind: str, value: float, low: float, high: float) -> KindCheck:
    return KindCheck(
        kind=kind,
        queries=50,
        raw={"nDCG@10": 0.5},
        reranked={"nDCG@10": 0.5 + value},
        differences={"nDCG@10": Interval(value=value, low=low, high=high, p=0.5)},
        believed="nDCG@10",
        line="",
        reliability=None,
    )


@pytest.mark.parametrize(
    ("value", "low", "high", "point", "interval"),
    [
        (0.02, -0.01, 0.05, True, True),
        (0.0, 0.0, 0.0, True, True),
        (-0.01, -0.04, 0.02, False, True),
        (-0.03, -0.05, -0.01, False, False),
    ],
)
def test_the_point_closes_a_kind_and_the_interval_only_if_all_of_it_is_below(
    value: float, low: float, high: float, point: bool, interval: bool
) -> None:
    check = checked(PAIRS, value, low, high)
    assert is_open(check, "point") == point
    assert is_open(check, "interval") == interval
    assert is_open(check, "off")


def test_a_verdict_says_figures_and_what_was_not_checked() -> None:
    check = JudgeCheck(model="m", index="i", kinds=(checked(PAIRS, -0.03, -0.05, -0.01),))
    verdict = verdict_of(check, [(PAIRS, 900), (JUDGED, 70)], "point")
    assert [each.trains for each in verdict.kinds] == [False, True]
    assert verdict.line == (
        "rewards do not train attribute pairs: reranking the raw top 100 by the relevance model changes nDCG@10 by "
        "-0.030 [-0.050, -0.010] on 50 queries"
    )
    assert "searchloop relevance --queries" in verdict.kinds[1].reason


class FakeSearcher:
    """Finds the same three documents, in the same order, for every query."""

    index = "shop-1"

    def search_many(self, texts: list[str], *, size: int) -> list[Ranking]:
        return [Ranking(["a", "b", "c"], [3.0, 2.0, 1.0]) for _ in texts]


class FakeModel:
    """Gives fixed scores."""

    def __init__(self, scores: dict[str, float]) -> None:
        self.name = f"fake-{scores['a']}"
        self.scores = scores

    def score_many(self, pairs: list[tuple[str, list[str]]]) -> list[np.ndarray]:
        return [np.array([self.scores[name] for name in ids], dtype=np.float32) for _, ids in pairs]


def judge(scores: dict[str, float]) -> Judge:
    catalogue = Catalogue([Document(id=name, title=f"{name} thing", text="") for name in ("a", "b", "c")])
    return Judge(cast(Searcher, FakeSearcher()), cast(RelevanceModel, FakeModel(scores)), catalogue)


def test_a_check_equals_a_page_worked_by_hand() -> None:
    queries = [Query(id="q", text="thing"), Query(id="none", text="other")]
    asked = JudgedSet(JUDGED, queries, {"q": {"b": 1, "a": 0}, "none": {"a": 0}})
    (found,) = judge({"a": 0.1, "b": 0.9, "c": 0.95}).check([asked], samples=100, report=lambda *_: None)
    assert found.queries == 1  # No order of "none" is better than another one: nothing is relevant.
    # raw: a b c, reranked: c b a; b is the only relevant document, and c is unjudged.
    assert found.raw["nDCG@10"] == found.reranked["nDCG@10"] == pytest.approx(1 / np.log2(3))
    assert found.raw["judged-nDCG@10"] == pytest.approx(1 / np.log2(3))
    assert found.reranked["judged-nDCG@10"] == 1.0
    assert found.raw["Judged@10"] == pytest.approx(2 / 3)
    assert found.believed == "judged-nDCG@10"
    assert found.gain.value == pytest.approx(1 - 1 / np.log2(3))
    assert found.reliability is not None
    assert found.reliability.pairs == 2
    assert found.reliability.error == pytest.approx((0.1 + 0.1) / 2)


def test_bins_say_how_far_probabilities_are_met() -> None:
    found = reliability(np.array([0.05, 0.15, 0.19, 1.0]), np.array([0.0, 1.0, 0.0, 1.0]))
    assert found is not None
    assert [(each.pairs, each.label) for each in found.bins] == [(1, 0.0), (2, 0.5), (1, 1.0)]
    assert found.error == pytest.approx((0.05 * 1 + 0.33 * 2 + 0) / 4)
    assert reliability(np.array([]), np.array([])) is None


def test_a_run_keeps_its_verdict_and_status_says_it(tmp_path: Path) -> None:
    home = Home(tmp_path)
    folder, run_dir = home.index("shop"), home.run("r")
    worse = judge({"a": 0.9, "b": 0.2, "c": 0.1})
    bad = (checked(PAIRS, -0.2, -0.3, -0.1), checked(TITLES, 0.1, 0.0, 0.2))
    keep_check(folder, JudgeCheck(model=worse.relevance.name, index="shop-1", kinds=bad))

    def verdict(gate: Gate, run: str = "r"):  # type: ignore[no-untyped-def]
        settings = Settings(relevance=msgspec.structs.replace(Settings().relevance, gate=gate))
        return judge_run(
            home.run(run), folder, worse, settings, [(PAIRS, 9), (TITLES, 3)], report=lambda *said: told.append(said[0])
        )

    told: list[str] = []
    first = verdict("point")
    assert [each.kind for each in first.closed] == [PAIRS]
    assert told == [first.line]
    assert closed_kinds(run_dir) == first.line
    assert verdict("off") == first  # The run goes on as it began.
    assert not verdict("off", "another").closed
    assert read_verdict(home.run("another")) is None


def test_a_run_that_began_without_a_verdict_trains_everything(tmp_path: Path) -> None:
    home = Home(tmp_path)
    old = home.run("old")
    old.mkdir(parents=True)
    old.settings_file.write_text("{}")
    worse = judge({"a": 0.9, "b": 0.2, "c": 0.1})
    keep_check(
        home.index("shop"),
        JudgeCheck(model=worse.relevance.name, index="shop-1", kinds=(checked(PAIRS, -0.2, -0.3, -0.1),)),
    )
    found = judge_run(old, home.index("shop"), worse, Settings(), [(PAIRS, 9)], report=lambda *_: None)
    assert not found.closed


def test_a_run_without_any_kind_left_says_what_to_do(tmp_path: Path) -> None:
    home = Home(tmp_path)
    worse = judge({"a": 0.9, "b": 0.2, "c": 0.1})
    closed = (checked(PAIRS, -0.2, -0.3, -0.1), checked(TITLES, -0.1, -0.2, 0.1))
    keep_check(home.index("shop"), JudgeCheck(model=worse.relevance.name, index="shop-1", kinds=closed))
    with pytest.raises(SettingsError, match=r"no training query is left: rewards do not train attribute pairs.*gate"):
        judge_run(
            home.run("r"), home.index("shop"), worse, Settings(), [(PAIRS, 9), (TITLES, 3)], report=lambda *_: None
        )


def test_a_check_of_another_model_or_a_damaged_one_is_none(tmp_path: Path) -> None:
    folder = Home(tmp_path).index("shop")
    check = JudgeCheck(model="m", index="shop-1", kinds=(checked(PAIRS, 0.1, 0.0, 0.2),))
    keep_check(folder, check)
    assert read_check(folder, model="m", index="shop-1") == check
    assert read_check(folder, model="n", index="shop-1") is None
    assert read_check(folder, model="m", index="shop-2") is None
    next((folder.relevance / "checks").iterdir()).write_text("{")
    assert read_check(folder, model="m", index="shop-1") is None
