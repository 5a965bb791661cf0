"""The environment of summaries: a group of texts about one product in, a reward for each of them out.

Every text is read within the budget and every distinct (query, title with summary) pair of the whole round is scored
once by the frozen cross-encoder. Which labelled queries a group is scored with is drawn by the group's id, the same for
all its candidates, so a replay scores the same. A request without a product, or about a product that no training query
asks for, is `failed`: there is nothing to pay it with.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, NamedTuple

import msgspec
import numpy as np

from search_env.environments import Input, Inputs, Rejected, ScoringEnvironment
from search_env.models.crossencoder import CrossEncoder
from search_env.relsum.reward import RelsumSettings, Scored, relsum_reward
from search_env.summaries.reading import Count, ParsedSummary, SummarySettings, read_summary
from streams.events import Generation, Outcome, Product, Reward

# Below what any valid summary earns, by kind: as far from the label as can be, behind everything, and e^−20 of a list.
INVALID = {"error": -1.0, "reciprocal_rank": 0.0, "list_likelihood": -20.0}


class RelsumEnvironmentSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How summaries are read and paid for.

    filter_delta: δ, a labelled pair teaches only if the description moves its probability by more than this; with 0 all
    teach, and no description is read, which is most of what labelling costs.
    training_queries: training lists that a run is paid with at most; each costs the cross-encoder a dozen pairs.
    title_queries: queries made of its title's words that each of their products is paid for besides, so that what a
    summary says for rare queries does not cost it the frequent ones; each is read against five rivals.
    """

    reward: RelsumSettings = RelsumSettings()
    summary: SummarySettings = SummarySettings()
    filter_delta: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.05
    training_queries: Annotated[int, msgspec.Meta(ge=1)] = 2_000
    title_queries: Annotated[int, msgspec.Meta(ge=0, le=16)] = 0


class LabelledQuery(msgspec.Struct, frozen=True, kw_only=True):
    """One training query of a product.

    label: 0 or 1. delta: how far the description moves the calibrated probability, r(q, [t; d]) − r(q, t); 1 where no
    description was read. others: logits of the query's irrelevant products with their reference summaries.
    """

    query_id: str
    query: str
    label: int
    delta: float
    others: tuple[float, ...]


class _Read(NamedTuple):
    """One group: its product's text for each summary, and the queries that it is scored with."""

    inputs: Input
    product: Product | None
    queries: list[LabelledQuery]
    texts: list[ParsedSummary | Rejected]


class RelsumEnvironment(ScoringEnvironment):
    """Scores groups of summaries. Not thread-safe: the cross-encoder is not."""

    def __init__(
        self,
        cross_encoder: CrossEncoder,
        queries: Mapping[str, Sequence[LabelledQuery]],
        settings: RelsumEnvironmentSettings,
        *,
        index: str,
        count: Count,
        text_of: Callable[[str, str], str],
    ) -> None:
        """queries: training queries by product, those that δ leaves out already gone.

        count: tokens of a text. text_of: from document id and summary to what the cross-encoder reads.
        """
        super().__init__(
            index=index,
            relevance_model=cross_encoder.name,
            reward_sha256=hashlib.sha256(msgspec.json.encode(settings, order="deterministic")).hexdigest(),
        )
        self._cross_encoder = cross_encoder
        self._queries = queries
        self._settings = settings
        self._count = count
        self._text_of = text_of

    def score_many(self, inputs: Inputs) -> list[Reward]:
        """Return one reward for each group, in order."""
        groups = [self._read(each) for each in inputs]
        pairs = [
            (query.query, self._text_of(group.product.document_id, text.text))
            for group in groups
            if group.product is not None
            for text in group.texts
            if isinstance(text, ParsedSummary)
            for query in group.queries
        ]
        logits = self._cross_encoder.logits(pairs) if pairs else np.zeros(0)
        found = dict(
            zip(
                pairs,
                zip(logits.tolist(), self._cross_encoder.probabilities(logits).tolist(), strict=True),
                strict=True,
            )
        )
        return [
            self.reward(group.inputs, [self._outcome(group, text, found) for text in group.texts]) for group in groups
        ]

    def readable(self, generation: Generation) -> list[bool]:
        """Return for each candidate whether it is a summary within the budget."""
        return [isinstance(text, ParsedSummary) for text in self._texts(generation)]

    def _read(self, inputs: Input) -> _Read:
        generation = inputs[0]
        product, texts = generation.request.product, self._texts(generation)
        if not isinstance(product, Product):
            return _Read(inputs, None, [], texts)
        queries = list(self._queries.get(product.document_id, ()))
        if len(queries) > self._settings.reward.queries_max:
            queries = random.Random(generation.group_id).sample(queries, self._settings.reward.queries_max)
        return _Read(inputs, product, queries, texts)

    def _texts(self, generation: Generation) -> list[ParsedSummary | Rejected]:
        product = generation.request.product
        if not isinstance(product, Product):
            return [Rejected("expected a product") for _ in generation.completions]
        return [
            read_summary(each.text, product, self._settings.summary, self._count) for each in generation.completions
        ]

    def _outcome(
        self, group: _Read, text: ParsedSummary | Rejected, found: Mapping[tuple[str, str], tuple[float, float]]
    ) -> Outcome:
        if group.product is None:
            return Outcome(status="failed", valid=False, error="expected a request about a product, got a query alone")
        if not group.queries:
            error = f"no training query asks for product {group.product.document_id}"
            return Outcome(status="failed", valid=isinstance(text, ParsedSummary), error=error)
        if isinstance(text, Rejected):
            return Outcome(
                status="scored",
                valid=False,
                reward=INVALID[self._settings.reward.kind],
                components={"valid": 0.0},
                error=text.reason,
            )
        scored = []
        for query in group.queries:
            logit, probability = found[query.query, self._text_of(group.product.document_id, text.text)]
            scored.append(Scored(logit=logit, probability=probability, label=query.label, others=query.others))
        if not all(np.isfinite([each.logit for each in scored])):
            return Outcome(status="failed", valid=True, error="the cross-encoder's score is not finite")
        reward, parts = relsum_reward(scored, text.tokens, self._settings.reward)
        parts |= {
            "tokens": float(text.tokens),
            "values": float(len(text.values)),
            "repeats": text.repeats,
            "valid": 1.0,
        }
        return Outcome(status="scored", valid=True, reward=reward, components=parts, summary=text.text)
