"""LESER's environment: it takes a group of generated texts and rewards each of them.

One round scores many groups. It parses every text and sends every distinct search once; the raw query is also sent,
unless its result is cached. The relevance model scores all groups in one call. Each candidate's reward is recorded with
all its parts. A failed search makes its candidate `failed`, and never gives a reward of 0. If the engine is down, the
round raises, because the same groups may be scored later. This module does not know where groups come from.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from functools import lru_cache
from typing import Annotated, Literal, NamedTuple

import msgspec

from search_env.catalogue.analysis import surface_tokens
from search_env.catalogue.corpora import Ranking
from search_env.engine.attachments import AttachedForm
from search_env.engine.searching import (
    ExpandedQuery,
    PendingSearches,
    RetrievalError,
    Searcher,
    expanded_bodies,
)
from search_env.environments import Input, Inputs, Rejected, ScoringEnvironment, all_failed
from search_env.leser.expansions import ExpansionSettings, ParsedExpansions, choices_of, parse_expansions
from search_env.leser.reward import LeserSettings, Reach, SetMeasurements, invalid_reward, leser_reward
from search_env.models.relevance import RelevanceModel
from streams.click_rewards import ClickRewardSettings
from streams.descriptions import describe
from streams.events import Generation, Hit, Outcome, Position, Reward


class LeserEnvironmentSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings for scoring groups."""

    rewards: Annotated[
        Literal["model", "clicks"],
        describe(
            'Source of the rewards: "model" is the relevance model; "clicks" is people, who see the candidates on '
            "the servers of a live run (infra/LIVE.md)."
        ),
    ] = "model"
    clicks: ClickRewardSettings = ClickRewardSettings()
    reward: LeserSettings = LeserSettings()
    expansions: ExpansionSettings = ExpansionSettings()
    hits_logged: Annotated[
        int,
        msgspec.Meta(ge=0, le=1_000),
        describe("Number of top hits that are recorded with every outcome, and of the raw query's with every group."),
    ] = 10
    raw_queries_kept: Annotated[
        int,
        msgspec.Meta(ge=1, le=1_000_000),
        describe(
            "Raw rankings that are kept in memory, about 10 kB each. The least recently used query is dropped first. "
            "None is kept of an attached index, which may change."
        ),
    ] = 10_000


class _Group(NamedTuple):
    """One group and its parsed texts."""

    inputs: Input
    texts: list[ParsedExpansions | Rejected]


class _Started(NamedTuple):
    """Groups whose searches are under way."""

    chunk: list[_Group]
    wanted: list[ExpandedQuery]
    pending: PendingSearches


class LeserEnvironment(ScoringEnvironment):
    """Scores groups on one index with one relevance model. Not thread-safe, because the relevance model is not."""

    def __init__(self, searcher: Searcher, relevance: RelevanceModel, settings: LeserEnvironmentSettings) -> None:
        super().__init__(
            index=searcher.index,
            relevance_model=relevance.name,
            reward_sha256=reward_sha256(settings, searcher),
        )
        self.searcher = searcher
        self.relevance = relevance
        self.settings = settings
        reward = settings.reward
        self.depth = max(reward.relevance_depth, reward.size_depth, settings.hits_logged, _reach_depth(reward))
        self.search_body = _template(searcher, self.depth)
        self._raw: OrderedDict[str, Ranking] = OrderedDict()
        # Only a version of ours never changes: an attached index is asked each time.
        self._raw_kept = 0 if isinstance(searcher.form, AttachedForm) else settings.raw_queries_kept

    def score(self, generation: Generation, source: Position, content_sha256: str) -> Reward:
        """Return the rewards of one group."""
        return self.score_many([(generation, source, content_sha256)])[0]

    def score_many(self, inputs: Inputs) -> list[Reward]:
        """Return the rewards of groups, in their order.

        inputs: each group with its place in the log and the hash of its bytes.
        Raises EngineUnavailable if the engine is down or overloaded; no group is decided then.
        """
        found: dict[ExpandedQuery, Ranking | RetrievalError] = {}
        asked: set[ExpandedQuery] = set()
        # Send every chunk's searches before waiting for the first answer: while the engine works on one chunk, the
        # previous chunk is scored here.
        started = [self._start(chunk, asked, found) for chunk in self._chunks(inputs)]
        rewards = []
        try:
            for chunk, wanted, pending in started:
                for search, answer in zip(wanted, pending.wait(), strict=True):
                    found[search] = answer
                    if not search.expansions and isinstance(answer, Ranking):
                        self._raw[search.query] = answer
                relevance = self._relevance(chunk, found)
                for group, scores in zip(chunk, relevance, strict=True):
                    query = group.inputs[0].request.query
                    outcomes = tuple(self._outcome(query, text, found, scores) for text in group.texts)
                    rewards.append(self._reward(group.inputs, outcomes, found[ExpandedQuery(query)]))
        finally:
            for each in started:
                each.pending.cancel()
        while len(self._raw) > self._raw_kept:
            self._raw.popitem(last=False)
        return rewards

    def failed_many(self, inputs: Inputs, *, error: str) -> list[Reward]:
        """Return one reward for each group, with only `failed` candidates: no engine answered in time."""
        return [
            self.reward(each, all_failed(self.readable(each[0]), error), search_body=self.search_body)
            for each in inputs
        ]

    def readable(self, generation: Generation) -> list[bool]:
        """Return, for each candidate, whether it is a list of expansions within the caps."""
        return [isinstance(text, ParsedExpansions) for text in self._parsed(generation)]

    def _parsed(self, generation: Generation) -> list[ParsedExpansions | Rejected]:
        choices = choices_of(generation.request.context)
        return [parse_expansions(each.text, self.settings.expansions, choices) for each in generation.completions]

    def _chunks(self, inputs: Inputs) -> list[list[_Group]]:
        """Parse the groups and combine them into chunks, each of which fills about one batch of searches."""
        chunks: list[list[_Group]] = []
        searches = 0
        for each in inputs:
            group = _Group(each, self._parsed(each[0]))
            needs = len(group.texts) + 1
            if not chunks or searches + needs > self.searcher.settings.batch_searches:
                chunks.append([])
                searches = 0
            chunks[-1].append(group)
            searches += needs
        return chunks

    def _start(
        self,
        chunk: list[_Group],
        asked: set[ExpandedQuery],
        found: dict[ExpandedQuery, Ranking | RetrievalError],
    ) -> _Started:
        """Send each distinct search of a chunk that no earlier chunk sent; cached raw queries come from memory."""
        wanted: dict[ExpandedQuery, None] = {}
        for group in chunk:
            query = group.inputs[0].request.query
            raw = ExpandedQuery(query)
            remembered = self._raw.get(query)
            if remembered is None:
                wanted[raw] = None
            else:
                self._raw.move_to_end(query)
                found[raw] = remembered
            for text in group.texts:
                if isinstance(text, ParsedExpansions) and text.expansions:
                    wanted[ExpandedQuery(query, text.expansions)] = None
        new = [search for search in wanted if search not in asked]
        asked.update(new)
        return _Started(chunk, new, self.searcher.start_many(new, size=self.depth))

    def _relevance(
        self, chunk: list[_Group], found: dict[ExpandedQuery, Ranking | RetrievalError]
    ) -> list[dict[str, float]]:
        """Return, per group, the relevance of every document in the top-k of any of its rankings."""
        depth = max(self.settings.reward.relevance_depth, _reach_depth(self.settings.reward))
        pairs: list[tuple[str, list[str]]] = []
        for group in chunk:
            query = group.inputs[0].request.query
            ids: dict[str, None] = {}
            for search in (ExpandedQuery(query), *(ExpandedQuery(query, e) for e in _distinct(group.texts))):
                ranking = found[search]
                if isinstance(ranking, Ranking):
                    ids.update(dict.fromkeys(ranking.ids[:depth]))
            pairs.append((query, list(ids)))
        scores = self.relevance.score_many(pairs)
        return [dict(zip(ids, of.tolist(), strict=True)) for (_, ids), of in zip(pairs, scores, strict=True)]

    def _outcome(
        self,
        query: str,
        text: ParsedExpansions | Rejected,
        found: dict[ExpandedQuery, Ranking | RetrievalError],
        relevance: dict[str, float],
    ) -> Outcome:
        """Return one candidate's outcome with its reward and its parts."""
        if isinstance(text, Rejected):
            reward, components = invalid_reward()
            return Outcome(status="scored", valid=False, reward=reward, components=components, error=text.reason)
        raw, union = found[ExpandedQuery(query)], found[ExpandedQuery(query, text.expansions)]
        if isinstance(raw, RetrievalError) or isinstance(union, RetrievalError):
            error = str(raw) if isinstance(raw, RetrievalError) else str(union)
            return Outcome(status="failed", valid=True, expansions=text.expansions, error=error)
        settings = self.settings.reward
        raw_ids = raw.ids[: settings.size_depth]
        measured = SetMeasurements(
            raw_relevance=[relevance[document_id] for document_id in raw.ids[: settings.relevance_depth]],
            union_relevance=[relevance[document_id] for document_id in union.ids[: settings.relevance_depth]],
            raw_size=len(raw_ids),
            union_size=len(set(raw_ids).union(union.ids[: settings.size_depth])),
            terms=sum(map(_term_count, text.expansions)),
            reach=_reach(raw, union, relevance, _reach_depth(settings)) if settings.reach_weight else None,
        )
        reward, components = leser_reward(measured, settings)
        return Outcome(
            status="scored",
            valid=True,
            expansions=text.expansions,
            reward=reward,
            components=components,
            hits=_hits(union, self.settings.hits_logged),
        )

    def _reward(self, inputs: Input, outcomes: tuple[Outcome, ...], raw: Ranking | RetrievalError) -> Reward:
        hits = _hits(raw, self.settings.hits_logged) if isinstance(raw, Ranking) else ()
        return self.reward(inputs, outcomes, raw_hits=hits, search_body=self.search_body)


def reward_sha256(settings: LeserEnvironmentSettings, searcher: Searcher) -> str:
    """Return the hash of everything except models on which a reward depends: formula, caps and search settings."""
    searched = msgspec.structs.asdict(searcher.settings)
    shaping = {name: searched[name] for name in ("mode", "weight", "rank_discount", "whole_boost", "fusion_k")}
    formula = msgspec.structs.asdict(settings.reward)
    if not settings.reward.reach_weight:  # The hash of older versions, which did not have these settings.
        formula = {name: value for name, value in formula.items() if not name.startswith("reach_")}
    if not settings.reward.relevance_min:
        del formula["relevance_min"]
    parts = [msgspec.Raw(msgspec.json.encode(formula)), settings.expansions, shaping]
    return hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()


def _reach_depth(settings: LeserSettings) -> int:
    """Return the depth to which a ranker's part of the reward needs documents: 0 if it has no weight."""
    return settings.reach_depth if settings.reach_weight else 0


def _reach(raw: Ranking, union: Ranking, relevance: dict[str, float], depth: int) -> Reach:
    """Return the relevance of the documents that the union's top `depth` has and the raw one lacks, and the reverse."""
    before, after = raw.ids[:depth], union.ids[:depth]
    kept = set(before) & set(after)
    return Reach(
        found=[relevance[name] for name in after if name not in kept],
        lost=[relevance[name] for name in before if name not in kept],
        raw=[relevance[name] for name in before],
    )


@lru_cache(maxsize=50_000)
def _term_count(expansion: str) -> int:
    return len(surface_tokens(expansion))


def _distinct(texts: list[ParsedExpansions | Rejected]) -> dict[tuple[str, ...], None]:
    return dict.fromkeys(text.expansions for text in texts if isinstance(text, ParsedExpansions))


def _template(searcher: Searcher, depth: int) -> str:
    settings = searcher.settings
    words = ["{expansion 1}", "{expansion 2}"]
    return msgspec.json.encode(expanded_bodies(searcher.form, "{query}", words, settings, size=depth)).decode()


def _hits(ranking: Ranking, kept: int) -> tuple[Hit, ...]:
    return tuple(
        Hit(document_id=document_id, rank=rank, score=score)
        for rank, (document_id, score) in enumerate(
            zip(ranking.ids[:kept], ranking.scores[:kept], strict=True), start=1
        )
    )
