"""Simulated people who look at lists, and what their clicks say about words. All figures are simulated."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from search_env.catalogue.corpora import Ranking
from search_env.clicks.published import EYE_TRACKED
from search_env.engine.searching import ExpandedQuery, Searcher
from search_env.environments import Input, Inputs, Rejected, ScoringEnvironment
from search_env.leser.expansions import ParsedExpansions, choices_of, parse_expansions
from search_env.leser.teachers import Lesson
from streams.events import Generation, Outcome, Reward

SHOWN = 10
EXAMINATION = np.array(EYE_TRACKED.model.examination[:SHOWN])  # type: ignore[attr-defined]
ATTRACTION = np.array([EYE_TRACKED.attraction[0], EYE_TRACKED.attraction[-1]])
FADING = 0.8
RIDGE = 1.0  # Weight of the prior that a word is worth nothing, in candidates.


class Tried(NamedTuple):
    """Words that were shown to people for a query, and the clicks a search above those of the raw results."""

    query_id: str
    query: str
    words: tuple[str, ...]
    gain: float


def expected_clicks(ids: Sequence[str], grades: Mapping[str, int]) -> float:
    """Return the clicks that a list gets from one person, in expectation: the sum of examination times attraction."""
    return float(_probabilities(ids, grades).sum())


def drawn_clicks(ids: Sequence[str], grades: Mapping[str, int], people: int, random: np.random.Generator) -> float:
    """Return the clicks per person of so many people who see a list."""
    chances = _probabilities(ids, grades)
    return float((random.random((people, len(chances))) < chances).sum() / people)


def lessons_of(days: Sequence[Sequence[Tried]], *, words_max: int) -> list[Lesson]:
    """Return the words that earned clicks, by query: a ridge regression of gains on the words that were shown.

    A look-up of these words is the baseline that learns from the same log without a policy. days: the newest last; a
    day weighs `FADING` times the day after it. With five days alone, the look-up forgot words that no later day
    had tried again.
    """
    by_query: defaultdict[str, list[tuple[Tried, float]]] = defaultdict(list)
    for age, tried in enumerate(reversed(days)):
        for each in tried:
            by_query[each.query_id].append((each, FADING**age))
    found = []
    for query_id, weighted in by_query.items():
        group = [each for each, _ in weighted]
        words = sorted({word for each in group for word in each.words})
        column = {word: place for place, word in enumerate(words)}
        shown = np.zeros((len(group), len(words)))
        for row, each in enumerate(group):
            shown[row, [column[word] for word in each.words]] = 1.0
        gains = np.array([each.gain for each in group])
        scaled = shown * np.array([weight for _, weight in weighted])[:, None]
        worth = np.linalg.solve(scaled.T @ shown + RIDGE * np.eye(len(words)), scaled.T @ gains)
        best = sorted((word for word in words if worth[column[word]] > 0), key=lambda word: -worth[column[word]])
        found.append(Lesson(query_id=query_id, query=group[0].query, words=tuple(best[:words_max])))
    return found


class PeopleEnvironment(ScoringEnvironment):
    """Shows each candidate's results to some people; the reward is their clicks a search above those of raw results."""

    def __init__(self, searcher: Searcher, grades: Mapping[str, Mapping[str, int]], *, people: int, seed: int) -> None:
        super().__init__(index=searcher.index, relevance_model="people", reward_sha256="")
        self._searcher = searcher
        self._grades = grades
        self._people = people
        self._random = np.random.default_rng(seed)
        self.tried: list[Tried] = []
        self.rewards: list[Reward] = []

    def score_many(self, inputs: Inputs) -> list[Reward]:
        """Return the rewards of groups, and remember what was tried."""
        parsed = [_parsed(generation) for generation, _, _ in inputs]
        rankings = search(
            self._searcher,
            [
                ExpandedQuery(generation.request.query, text.expansions if isinstance(text, ParsedExpansions) else ())
                for (generation, _, _), texts in zip(inputs, parsed, strict=True)
                for text in (ParsedExpansions(()), *texts)
            ],
        )
        made = [self._group(each, texts, rankings) for each, texts in zip(inputs, parsed, strict=True)]
        self.rewards += made
        return made

    def readable(self, generation: Generation) -> list[bool]:
        """Return, for each candidate, whether it is in the format."""
        return [isinstance(text, ParsedExpansions) for text in _parsed(generation)]

    def _group(
        self,
        inputs: Input,
        texts: Sequence[ParsedExpansions | Rejected],
        rankings: Mapping[ExpandedQuery, Ranking],
    ) -> Reward:
        request = inputs[0].request
        grades = self._grades.get(request.query_id, {})
        raw = drawn_clicks(rankings[ExpandedQuery(request.query)].ids, grades, self._people, self._random)
        outcomes = []
        for text in texts:
            if isinstance(text, Rejected):
                outcomes.append(Outcome(status="scored", valid=False, reward=-1.0, error=text.reason))
                continue
            ids = rankings[ExpandedQuery(request.query, text.expansions)].ids
            gain = drawn_clicks(ids, grades, self._people, self._random) - raw
            self.tried.append(Tried(request.query_id, request.query, text.expansions, gain))
            outcomes.append(Outcome(status="scored", valid=True, expansions=text.expansions, reward=gain))
        return self.reward(inputs, tuple(outcomes))


def search(searcher: Searcher, wanted: Sequence[ExpandedQuery]) -> dict[ExpandedQuery, Ranking]:
    """Return the first ten results of each distinct search."""
    distinct = list(dict.fromkeys(wanted))
    return dict(zip(distinct, searcher.search_many(distinct, size=SHOWN), strict=True))


def _parsed(generation: Generation) -> list[ParsedExpansions | Rejected]:
    choices = choices_of(generation.request.context)
    return [parse_expansions(each.text, choices=choices) for each in generation.completions]


def _probabilities(ids: Sequence[str], grades: Mapping[str, int]) -> np.ndarray:
    levels = np.array([int(grades.get(name, 0) > 0) for name in ids[:SHOWN]], dtype=np.int64)
    chances: np.ndarray = EXAMINATION[: len(levels)] * ATTRACTION[levels]
    return chances
