"""Simulated people without a server: searches as impressions, and their clicks as actions, drawn in this process.

Queries and clients are drawn by Zipf's law. People know the hidden relevance and click by a click model. One more
client may commit fraud: it asks queries that show one seller's products, and clicks all of them and nothing else,
wherever they stand. It is not faster than a person, so the limits on bots do not find it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec
import numpy as np

from infra.simulating.lists import QueryLists, explored
from search_env.catalogue.corpora import Query
from search_env.clicks.models import draw
from search_env.clicks.published import PublishedModel
from search_env.clicks.users import attractions
from streams.traffic_events import Impression, Shown, UserAction

AT_ONCE = 1_000
DAYS = 30
DAY_MS = 86_400_000
BEGINNING_MS = 1_700_000_000_000
CLICK_MS = 2_000  # Between the search and the first click, and from one click to the next.
FRAUD = "fraud"
EXPLORING = "exploring"
APPLICATION = "simulated"


class Population(msgspec.Struct, frozen=True, kw_only=True):
    """Who searches. impressions: of everybody, spread over 30 days. size: results of a search.

    explore, fraud: shares of searches that explore, and that the fraud client makes. seed: of all draws.
    """

    impressions: int
    clients: int = 10_000
    size: int = 10
    explore: float = 0.2
    fraud: float = 0.0
    seed: int = 0


class Fraud(msgspec.Struct, frozen=True, kw_only=True):
    """The wishes of a fraud client. products: of its seller. queries: those whose raw lists show some."""

    products: frozenset[str]
    queries: Sequence[Query]


def simulated_searches(
    asked: Sequence[Query],
    lists: Mapping[str, QueryLists],
    grades: Mapping[str, Mapping[str, int]],
    published: PublishedModel,
    people: Population,
    fraud: Fraud | None = None,
) -> Iterator[tuple[Impression, tuple[UserAction, ...]]]:
    """Yield each search with its clicks, in the order of time. The same arguments draw the same searches.

    asked: queries, those first that are asked most. lists: of these queries. grades: the hidden relevance,
    {query id: {document id: grade}}.
    """
    random, cheating = np.random.default_rng(people.seed), np.random.default_rng([people.seed, 1])
    asked = [query for query in asked if query.id in lists]
    popularity, activity = _zipf(len(asked)), _zipf(people.clients)
    levels = max((grade for row in grades.values() for grade in row.values()), default=1)
    step_ms = max(DAYS * DAY_MS // people.impressions, 1)
    for start in range(0, people.impressions, AT_ONCE):
        count = min(AT_ONCE, people.impressions - start)
        places = np.searchsorted(popularity, random.random(count)).tolist()
        clients = np.searchsorted(activity, random.random(count)).tolist()
        explores = (random.random(count) < people.explore).tolist()
        frauds = (random.random(count) < (people.fraud if fraud else 0.0)).tolist()
        drawn: list[tuple[Query, str, str, tuple[str, ...]]] = []
        for place, client, exploring, is_fraud in zip(places, clients, explores, frauds, strict=True):
            query, policy = asked[place], EXPLORING if exploring else ""
            # Drawn also where the fraud client takes its place, so that fraud changes nothing of other searches.
            shown = explored(lists[query.id], people.size, random) if exploring else lists[query.id].raw[: people.size]
            if is_fraud and fraud is not None:
                query = fraud.queries[int(cheating.integers(len(fraud.queries)))]
                drawn.append((query, FRAUD, "", lists[query.id].raw[: people.size]))
            else:
                drawn.append((query, f"client-{client}", policy, shown))
        attraction = np.full((count, people.size), np.nan)
        for row, (query, _, _, shown) in enumerate(drawn):
            attraction[row, : len(shown)] = attractions(published, grades.get(query.id, {}), shown, highest=levels)
        clicks = draw(published.model, attraction, random)
        for row, (query, client, policy, shown) in enumerate(drawn):
            if client == FRAUD and fraud is not None:
                clicked = [name for name in shown if name in fraud.products]
            else:
                clicked = [name for place, name in enumerate(shown) if clicks[row, place]]
            number = start + row
            name = f"simulated-{people.seed}-{number}"
            at_ms = BEGINNING_MS + number * step_ms
            offered = {"": 1 - people.explore, EXPLORING: people.explore}
            yield (
                Impression(
                    impression_id=name,
                    query_id=query.id,
                    query=query.text,
                    application=APPLICATION,
                    client=client,
                    shown=tuple(Shown(document_id=of, rank=rank) for rank, of in enumerate(shown, start=1)),
                    at_ms=at_ms,
                    policy=policy,
                    action_propensity=offered[policy],
                    offered=offered,
                    made_at_ms=at_ms,
                ),
                tuple(
                    UserAction(
                        action_id=f"{name}-{place}",
                        impression_id=name,
                        kind="click",
                        document_id=of,
                        at_ms=at_ms + place * CLICK_MS,
                        made_at_ms=at_ms + place * CLICK_MS,
                    )
                    for place, of in enumerate(clicked, start=1)
                ),
            )


def _zipf(count: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return [count] cumulative probabilities of Zipf's law."""
    total = np.cumsum(1 / np.arange(1, count + 1))
    return np.asarray(total / total[-1])
