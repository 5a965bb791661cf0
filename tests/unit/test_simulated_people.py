"""Simulated people without a server: the same seed draws the same searches, and fraud changes no other search."""

from __future__ import annotations

from infra.simulating.lists import QueryLists
from infra.simulating.people import FRAUD, Fraud, Population, simulated_searches
from search_env.catalogue.corpora import Query
from search_env.clicks.published import EYE_TRACKED
from streams.traffic_events import Impression, UserAction

ASKED = [Query(id=f"q{n}", text=f"word{n}") for n in range(30)]
LISTS = {each.id: QueryLists(tuple(f"{each.id}-d{n}" for n in range(30)), ()) for each in ASKED}
GRADES = {each.id: {f"{each.id}-d3": 1} for each in ASKED}
WANTED = Fraud(products=frozenset(f"{each.id}-d5" for each in ASKED), queries=ASKED)


def searches(fraud: float) -> list[tuple[Impression, tuple[UserAction, ...]]]:
    people = Population(impressions=3_000, clients=50, fraud=fraud, seed=2)
    return list(simulated_searches(ASKED, LISTS, GRADES, EYE_TRACKED, people, WANTED))


def test_a_fraud_client_clicks_its_seller_alone_and_changes_no_other_search() -> None:
    honest, cheated = searches(0.0), searches(0.05)
    assert cheated == searches(0.05)
    frauds = [place for place, (impression, _) in enumerate(cheated) if impression.client == FRAUD]
    assert 90 < len(frauds) < 210
    assert all(each == cheated[place] for place, each in enumerate(honest) if place not in set(frauds))
    for place in frauds:
        impression, actions = cheated[place]
        assert [each.document_id for each in actions] == [f"{impression.query_id}-d5"]


def test_some_searches_show_deeper_documents_with_their_propensity() -> None:
    found = [impression for impression, _ in searches(0.0)]
    explored = [each for each in found if each.policy]
    assert 0.15 < len(explored) / len(found) < 0.25
    assert {each.action_propensity for each in explored} == {0.2}
    assert any(int(shown.document_id.split("-d")[1]) >= 10 for each in explored for shown in each.shown)
    assert all(int(shown.document_id.split("-d")[1]) < 10 for each in found if not each.policy for shown in each.shown)
