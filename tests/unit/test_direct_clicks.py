"""The people of the experiment with clicks as rewards: enough come, they examine ranks, and a fraud moves little."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from infra.experiments.markdown import with_table
from search_env.engine.searching import ExpandedQuery
from search_env.leser.expansions import ExpansionSettings
from search_env.models.click_labels import click_labels
from search_env.serving.candidates import OpenGroup
from streams.click_rewards import RAW, ClickRewardSettings, ClickTally, SeenGroup, click_reward
from streams.traffic_events import ImpressionOutcome
from streams.utility import UtilitySettings
from tests.direct_clicks.certain import CertainEnvironment, worth_by_rank
from tests.direct_clicks.crowd import FRAUD, Crowd
from tests.direct_clicks.seed_run import SeedResult
from tests.direct_clicks.table import KEPT, NAME, PAGE, Summary, markdown, summary_of

WORDS = {RAW: (), "good": ("lamp",), "bad": ("cup",)}
IDS = tuple(f"d{number}" for number in range(10))
LISTS = {(): IDS, ("lamp",): (*IDS[5:], *IDS[:5]), ("cup",): IDS[::-1]}
GRADES = {"oak": {"d5": 1, "d6": 1}}
SOLD = frozenset({"d9"})  # It stands first in the bad list.
GROUP = OpenGroup(
    group_id="g",
    run="r",
    query="oak",
    index="shop-1",
    choices={name: words for name, words in WORDS.items() if name},
    since_ms=0,
    until_ms=0,
)


class FakeLists:
    """Lists by their words, without an engine."""

    searcher = SimpleNamespace(index="shop-1")

    def of(self, wanted: Sequence[ExpandedQuery]) -> list[tuple[str, ...]]:
        return [LISTS[each.expansions] for each in wanted]


def crowd(*, people: int = 200, sold: frozenset[str] | None = None, seed: int = 0) -> Crowd:
    return Crowd(Path("none"), FakeLists(), GRADES, people=people, seed=seed, sold=sold)  # type: ignore[arg-type]


def seen(outcomes: Iterable[ImpressionOutcome], settings: ClickRewardSettings) -> SeenGroup:
    """Return what the product's tally makes of these outcomes."""
    tally = ClickTally(GROUP.choices, index="shop-1", settings=settings, utility=UtilitySettings())
    for outcome in outcomes:
        assert tally.add(outcome)
    return tally.seen()


def visit(people: Crowd) -> list[ImpressionOutcome]:
    return [outcome for _, outcome in people.visit([GROUP])]


def rewards(found: SeenGroup, settings: ClickRewardSettings) -> dict[str, float]:
    return {name: click_reward(found.by_choice[name], found.by_choice[RAW], settings)[0] for name in GROUP.choices}


@pytest.mark.parametrize("position", ["dcg", "seen"])
def test_one_visit_closes_a_group_and_the_better_list_has_the_larger_reward(position: str) -> None:
    settings = ClickRewardSettings(impressions_min=200, position=position)  # type: ignore[arg-type]
    found = seen(visit(crowd()), settings)
    assert found.is_closed(settings)
    assert all(each.clients >= 200 for each in found.by_choice.values())
    values = rewards(found, settings)
    assert values["good"] > values["bad"] + 0.1


def test_a_fraud_client_counts_as_one_person_and_moves_a_reward_little() -> None:
    settings = ClickRewardSettings(impressions_min=200, position="dcg")
    visits = visit(crowd(sold=SOLD))
    clients = Counter(outcome.impression.client for outcome in visits)
    assert 0.02 * len(visits) < clients[FRAUD] < 0.1 * len(visits)
    assert set(clients.values()) == {1, clients[FRAUD]}, "everybody else comes once"
    assert all(
        {action.document_id for action in outcome.actions} == SOLD
        for outcome in visits
        if outcome.impression.client == FRAUD
    )
    cheated = seen(visits, settings)
    honest = seen([outcome for outcome in visits if outcome.impression.client != FRAUD], settings)
    for name in GROUP.choices:
        assert cheated.by_choice[name].clients <= honest.by_choice[name].clients + 1
        assert rewards(cheated, settings)[name] == pytest.approx(rewards(honest, settings)[name], abs=0.03)


@pytest.mark.parametrize("position", ["dcg", "seen"])
def test_rewards_without_chance_are_the_mean_of_many_peoples(position: str) -> None:
    settings = ClickRewardSettings(impressions_min=2, position=position)  # type: ignore[arg-type]
    lists = FakeLists()
    certain = CertainEnvironment(
        lists,  # type: ignore[arg-type]
        GRADES,
        settings=settings,
        utility=UtilitySettings(),
        expansions=ExpansionSettings(),
    )
    many = seen(visit(crowd(people=6_000)), settings)
    for name, words in WORDS.items():
        utility = certain.seen("oak", LISTS[words]).utility
        assert utility == pytest.approx(many.by_choice[name].utility, abs=0.03)


def test_a_click_is_worth_what_the_formula_says() -> None:
    settings = ClickRewardSettings(position="dcg", examination=(1.0, 0.5))
    found = worth_by_rank(settings, UtilitySettings())
    assert found[:3].tolist() == pytest.approx([1.0, 2 / np.log2(3), 2 / np.log2(4)])
    assert worth_by_rank(ClickRewardSettings(), UtilitySettings()).tolist() == [1.0] * 10


def test_the_log_of_the_people_tells_how_they_examine_ranks() -> None:
    people = crowd(people=4_000)
    for _ in range(2):
        people.visit([GROUP])
    shown = [each._replace(query=f"{each.query} {number % 50}") for number, each in enumerate(people.shown)]
    found = click_labels(shown, exponent=1.0, model="pbm")
    assert found.estimated
    assert found.theta[:3].tolist() == pytest.approx([1.0, 0.61 / 0.68, 0.48 / 0.68], abs=0.12)


def test_the_page_shows_the_table_of_the_kept_results() -> None:
    kept = msgspec.json.decode(KEPT.read_bytes(), type=Summary)
    page = PAGE.read_text()
    assert with_table(page, NAME, markdown(kept)) == page


def test_a_table_by_hand() -> None:
    def values(nDCG: float, recall: float) -> dict[str, dict[str, dict[str, float]]]:
        return {"held-out values": {"nDCG@10": {"a": nDCG, "b": nDCG}, "R@100": {"a": recall, "b": recall}}}

    arms = {"raw": values(0.25, 0.5), "clicks, corrected": values(0.5, 0.25)}
    result = SeedResult(arms=arms, rewards={"clicks, corrected": [0.1] * 10 + [0.3] * 10})
    result.searches["clicks, corrected"] = 1_000
    table = markdown(summary_of({"0": result, "1": SeedResult(arms={"raw": values(0.35, 0.5)})}))
    assert "| raw (2) | .300 / .500 |" in table
    assert "| clicks, corrected (1) | .500 / .250 |" in table
    assert "| clicks, corrected − raw (1) | +.250 [+.250, +.250]; −.250 [−.250, −.250] |" in table
    assert "| clicks, corrected | 0.100 | 0.300 | 1,000 |" in table
