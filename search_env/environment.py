"""The search environment: groups of generated expansions in, rewards out. It knows no Kafka.

All groups of a call are searched in one round: each raw query once (and then remembered), each distinct expansion set
once. A text in the wrong format is scored with reward 0; a search that failed is `failed` and has no reward.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import msgspec

from search_env.analysis import surface_tokens
from search_env.corpora import Ranking
from search_env.expansions import ExpansionSettings, ParsedExpansions, Rejected, parse_expansions
from search_env.relevance import RelevanceModel
from search_env.retrieval import ExpandedQuery, RetrievalError, Retriever, expanded_query
from search_env.rewards.leser import LeserSettings, Measured, invalid_reward, leser_reward
from streams.events import Generation, Hit, Outcome, Position, Reward

Inputs = Sequence[tuple[Generation, Position, str]]


class EnvironmentSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is read, rewarded and logged.

    hits_logged: documents of each list that the reward event keeps. raw_queries_kept: raw results remembered, the query
    that was not asked for longest goes first (a result of 100 documents is about 10 kB).
    """

    expansions: ExpansionSettings = ExpansionSettings()
    reward: LeserSettings = LeserSettings()
    hits_logged: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 10
    raw_queries_kept: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 10_000


class _Candidate(NamedTuple):
    """One candidate as read: what it asks for, or why it asks for nothing."""

    parsed: ParsedExpansions | Rejected

    @property
    def expansions(self) -> tuple[str, ...]:
        return self.parsed.expansions if isinstance(self.parsed, ParsedExpansions) else ()


class SearchEnvironment:
    """Scores groups against one index with one relevance model."""

    def __init__(self, retriever: Retriever, relevance: RelevanceModel, settings: EnvironmentSettings) -> None:
        self._retriever = retriever
        self._relevance = relevance
        self._settings = settings
        self._depth = max(settings.reward.relevance_depth, settings.reward.size_depth)
        self._raw: OrderedDict[str, Ranking] = OrderedDict()
        self._search_body = msgspec.json.encode(
            expanded_query(
                "$query",
                ["$expansions"],
                mode=retriever.settings.mode,
                weight=retriever.settings.weight,
            )
        ).decode()
        self._reward_sha256 = hashlib.sha256(
            msgspec.json.encode([settings.reward, settings.expansions, self._search_body])
        ).hexdigest()

    def score_many(self, generations: Inputs) -> list[Reward]:
        """Return one reward for each (group, its record's position, the sha256 of its bytes), in order.

        Raises EngineUnavailable if the engine is down or overloaded: nothing can be said then, and nothing is.
        """
        groups = [
            [_Candidate(parse_expansions(completion.text, self._settings.expansions)) for completion in group.completions]
            for group, _, _ in generations
        ]
        queries = [group.request.query for group, _, _ in generations]
        searches: dict[ExpandedQuery, Ranking | RetrievalError] = {}
        wanted = [ExpandedQuery(query) for query in dict.fromkeys(queries) if query not in self._raw]
        wanted += dict.fromkeys(
            ExpandedQuery(query, candidate.expansions)
            for query, candidates in zip(queries, groups, strict=True)
            for candidate in candidates
            if candidate.expansions
        )
        if wanted:
            searches.update(zip(wanted, self._retriever.try_many(wanted, size=self._depth), strict=True))
        for query in dict.fromkeys(queries):
            searches[ExpandedQuery(query)] = self._remember(query, searches.get(ExpandedQuery(query)))
        relevance = self._relevance_of(queries, groups, searches)
        return [
            self._reward(inputs, candidates, searches, scores)
            for inputs, candidates, scores in zip(generations, groups, relevance, strict=True)
        ]

    def failed_many(self, generations: Inputs, *, error: str) -> list[Reward]:
        """Return a reward for each group whose candidates are all `failed`, for the reason given."""
        return [
            self._event(inputs, tuple(_failed(error) for _ in inputs[0].completions), raw=None) for inputs in generations
        ]

    def _remember(self, query: str, found: Ranking | RetrievalError | None) -> Ranking | RetrievalError:
        if isinstance(found, RetrievalError):
            return found
        if found is None:
            self._raw.move_to_end(query)
            return self._raw[query]
        self._raw[query] = found
        if len(self._raw) > self._settings.raw_queries_kept:
            self._raw.popitem(last=False)
        return found

    def _relevance_of(
        self,
        queries: Sequence[str],
        groups: Sequence[Sequence[_Candidate]],
        searches: dict[ExpandedQuery, Ranking | RetrievalError],
    ) -> list[dict[str, float]]:
        """Return each group's relevance by document id, for every document whose relevance the reward looks at."""
        depth = self._settings.reward.relevance_depth
        pairs: list[tuple[str, list[str]]] = []
        for query, candidates in zip(queries, groups, strict=True):
            asked = [ExpandedQuery(query), *(ExpandedQuery(query, c.expansions) for c in candidates if c.expansions)]
            rankings = [found for found in (searches[each] for each in asked) if isinstance(found, Ranking)]
            pairs.append((query, list(dict.fromkeys(id for ranking in rankings for id in ranking.ids[:depth]))))
        scores = self._relevance.score_many(pairs)
        return [dict(zip(ids, values.tolist(), strict=True)) for (_, ids), values in zip(pairs, scores, strict=True)]

    def _reward(
        self,
        inputs: tuple[Generation, Position, str],
        candidates: Sequence[_Candidate],
        searches: dict[ExpandedQuery, Ranking | RetrievalError],
        relevance: dict[str, float],
    ) -> Reward:
        query = inputs[0].request.query
        raw = searches[ExpandedQuery(query)]
        if isinstance(raw, RetrievalError):
            return self._event(inputs, tuple(_failed(str(raw)) for _ in candidates), raw=None)
        outcomes = tuple(
            self._outcome(candidate, raw, searches[ExpandedQuery(query, candidate.expansions)], relevance)
            for candidate in candidates
        )
        return self._event(inputs, outcomes, raw=raw)

    def _outcome(
        self, candidate: _Candidate, raw: Ranking, found: Ranking | RetrievalError, relevance: dict[str, float]
    ) -> Outcome:
        if isinstance(candidate.parsed, Rejected):
            reward, components = invalid_reward()
            return Outcome(
                status="scored", valid=False, reward=reward, components=components, error=candidate.parsed.reason
            )
        if isinstance(found, RetrievalError):
            return _failed(str(found), expansions=candidate.expansions)
        settings = self._settings.reward
        raw_ids, ids = raw.ids[: settings.size_depth], found.ids[: settings.size_depth]
        reward, components = leser_reward(
            Measured(
                raw_relevance=[relevance[each] for each in raw.ids[: settings.relevance_depth]],
                union_relevance=[relevance[each] for each in found.ids[: settings.relevance_depth]],
                raw_size=len(raw_ids),
                union_size=len({*raw_ids, *ids}),
                terms=sum(len(surface_tokens(expansion)) for expansion in candidate.expansions),
            ),
            settings,
        )
        return Outcome(
            status="scored",
            valid=True,
            expansions=candidate.expansions,
            reward=reward,
            components=components,
            hits=self._hits(found),
        )

    def _event(self, inputs: tuple[Generation, Position, str], outcomes: tuple[Outcome, ...], raw: Ranking | None) -> Reward:
        generation, source, sha256 = inputs
        return Reward(
            group_id=generation.group_id,
            generation=generation,
            source=source,
            content_sha256=sha256,
            outcomes=outcomes,
            index=self._retriever.index,
            relevance_model=self._relevance.name,
            reward_sha256=self._reward_sha256,
            raw_hits=self._hits(raw) if raw is not None else (),
            search_body=self._search_body,
            made_at_ms=generation.made_at_ms,
        )

    def _hits(self, ranking: Ranking) -> tuple[Hit, ...]:
        kept = self._settings.hits_logged
        return tuple(
            Hit(document_id=document_id, rank=rank, score=score)
            for rank, (document_id, score) in enumerate(
                zip(ranking.ids[:kept], ranking.scores[:kept], strict=True), start=1
            )
        )


def _failed(error: str, expansions: tuple[str, ...] = ()) -> Outcome:
    return Outcome(status="failed", valid=False, expansions=expansions, error=error or "unknown")
