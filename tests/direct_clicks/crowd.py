"""Simulated people who come to the open groups of an environment of clicks, as a server's log would show them.

The environment is the product's own (`search_env/leser/clicked.py`): it opens groups, counts outcomes, bounds clients,
weighs positions and computes rewards. This module only plays the servers and the people. Every search is by another
person but those of a fraud client. It makes a share of all searches and clicks its seller's products, wherever they
stand, and nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from search_env.clicks.models import draw
from search_env.clicks.published import EYE_TRACKED
from search_env.clicks.users import attractions
from search_env.engine.searching import ExpandedQuery, Searcher
from search_env.environments import Environment, Inputs
from search_env.models.clicked_lists import ShownList
from search_env.serving.candidates import OpenGroup, read_open_groups, with_candidates
from search_env.serving.choosing import RAW, choose
from streams.events import Position, Reward
from streams.traffic_events import Impression, ImpressionOutcome, Shown, UserAction
from tests.drift.people import SHOWN, search

FRAUD = "fraud"
FRAUD_SHARE = 0.05
TOPIC = "outcomes"


class Lists:
    """The first ten results of searches; none is asked of the engine twice."""

    def __init__(self, searcher: Searcher) -> None:
        self.searcher = searcher
        self._known: dict[ExpandedQuery, tuple[str, ...]] = {}

    def of(self, wanted: Sequence[ExpandedQuery]) -> list[tuple[str, ...]]:
        """Return the ids of each search, in order."""
        new = [each for each in dict.fromkeys(wanted) if each not in self._known]
        self._known |= {asked: tuple(ranking.ids) for asked, ranking in search(self.searcher, new).items()}
        return [self._known[each] for each in wanted]


class Crowd:
    """The outcomes of people's searches: whenever somebody looks, enough people have come to each open group."""

    def __init__(
        self,
        folder: Path,
        lists: Lists,
        grades: Mapping[str, Mapping[str, int]],
        *,
        people: int,
        seed: int,
        sold: frozenset[str] | None = None,
    ) -> None:
        """grades: the hidden relevance, {query text: {document id: grade}}. people: who see each choice, at least.

        sold: the products of a fraud client's seller; None without fraud.
        """
        self._folder, self._lists, self._grades = folder, lists, grades
        self._people, self._sold = people, sold
        self._highest = max((grade for row in grades.values() for grade in row.values()), default=1)
        self._random, self._cheating = np.random.default_rng(seed), np.random.default_rng([seed, 1])
        self._at = 0
        self.shown: list[ShownList] = []

    def since(self, at_ms: int) -> dict[int, int]:
        """Return the next offset: nothing comes before a group is open."""
        return {0: self._at}

    def read_to(self) -> dict[int, int]:
        """Return the next offset."""
        return {0: self._at}

    def read(self) -> list[tuple[Position, ImpressionOutcome]]:
        """Return the outcomes of the searches that people made since the last look."""
        return self.visit(read_open_groups(self._folder))

    def visit(self, groups: Sequence[OpenGroup]) -> list[tuple[Position, ImpressionOutcome]]:
        """Return the outcomes of the searches of enough people for each choice of these groups."""
        wanted = [ExpandedQuery(group.query, words) for group in groups for words in [(), *group.choices.values()]]
        found = iter(self._lists.of(wanted))
        return [
            outcome
            for group in groups
            for outcome in self._visited(group, {name: next(found) for name in [RAW, *group.choices]})
        ]

    def _visited(
        self, group: OpenGroup, lists: Mapping[str, tuple[str, ...]]
    ) -> list[tuple[Position, ImpressionOutcome]]:
        offered = with_candidates({RAW: 1.0}, group.choices, share=1.0)
        drawn: list[tuple[str, bool]] = []
        seen = Counter(dict.fromkeys(offered, 0))
        while min(seen.values()) < self._people:
            is_fraud = self._sold is not None and self._cheating.random() < FRAUD_SHARE
            choice = choose(f"{group.group_id} {self._at + len(drawn)}", offered).policy
            drawn.append((choice, is_fraud))
            seen[choice] += not is_fraud
        clicks = self._clicks(group.query, [lists[choice] for choice, _ in drawn])
        results = {
            name: tuple(Shown(document_id=of, rank=rank) for rank, of in enumerate(ids, start=1))
            for name, ids in lists.items()
        }
        ranked = {name: [(of, rank) for rank, of in enumerate(ids, start=1)] for name, ids in lists.items()}
        outcomes = []
        for (choice, is_fraud), row in zip(drawn, clicks, strict=True):
            name = f"{self._at}"
            client = FRAUD if is_fraud else f"client-{name}"
            clicked = [of for of in lists[choice] if self._sold and of in self._sold] if is_fraud else row
            seen_list = Impression(
                impression_id=name,
                query_id=name,
                query=group.query,
                client=client,
                shown=results[choice],
                at_ms=self._at,
                policy=choice,
                action_propensity=offered[choice],
                offered=offered,
                index=group.index,
            )
            actions = tuple(
                UserAction(action_id=f"{name} {of}", impression_id=name, kind="click", document_id=of, at_ms=self._at)
                for of in clicked
            )
            outcome = ImpressionOutcome(impression=seen_list, actions=actions, final=True)
            outcomes.append((Position(topic=TOPIC, partition=0, offset=self._at), outcome))
            self.shown.append(ShownList(group.query, ranked[choice], frozenset(clicked), client))
            self._at += 1
        return outcomes

    def _clicks(self, query: str, lists: Sequence[tuple[str, ...]]) -> list[list[str]]:
        """Return what people who know the relevance click on each list."""
        grades = self._grades.get(query, {})
        by_list = {ids: attractions(EYE_TRACKED, grades, ids, highest=self._highest) for ids in set(lists)}
        attraction = np.full((len(lists), SHOWN), np.nan)
        for row, ids in enumerate(lists):
            attraction[row, : len(ids)] = by_list[ids]
        clicked = draw(EYE_TRACKED.model, attraction, self._random)
        return [
            [of for of, is_clicked in zip(ids, row, strict=False) if is_clicked]
            for ids, row in zip(lists, clicked.tolist(), strict=True)
        ]


class Averaged:
    """Another environment, and the mean reward of each batch that it scored."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self.means: list[float] = []

    def score_many(self, inputs: Inputs) -> list[Reward]:
        """Return the other environment's rewards."""
        made = self._environment.score_many(inputs)
        numbers = [outcome.reward for each in made for outcome in each.outcomes if outcome.reward is not None]
        self.means.append(float(np.mean(numbers)))
        return made

    def failed_many(self, inputs: Inputs, *, error: str) -> list[Reward]:
        """Return the other environment's failures."""
        return self._environment.failed_many(inputs, error=error)
