"""ReLSum's environment: it takes a group of texts about one product and rewards each of them.

Every text is read within the budget. The frozen cross-encoder scores every distinct pair (query, title with summary) of
the whole round once. The group's id draws the labeled queries for the group, the same for all its candidates, so a
replay scores the same pairs. A request is `failed` if it has no product, or if no training query asks for its product:
no reward can then be computed.
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
from streams.descriptions import describe
from streams.events import Generation, Outcome, Product, Reward

# Less than any valid summary earns, by kind: the largest error, a rank behind all, and probability e^−20 in a list.
INVALID = {"error": -1.0, "reciprocal_rank": 0.0, "list_likelihood": -20.0}


class RelsumEnvironmentSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings for reading and rewarding summaries."""

    reward: RelsumSettings = RelsumSettings()
    summary: SummarySettings = SummarySettings()
    filter_delta: Annotated[
        float,
        msgspec.Meta(ge=0, lt=1),
        describe(
            "Least change of probability by the description for a labeled pair to teach (δ). 0 lets all pairs "
            "teach and saves most of the cost of labeling."
        ),
    ] = 0.05
    training_queries: Annotated[
        int,
        msgspec.Meta(ge=1),
        describe("Largest number of training lists that reward a run. Each costs the cross-encoder a dozen pairs."),
    ] = 2_000
    title_queries: Annotated[
        int,
        msgspec.Meta(ge=0, le=16),
        describe(
            "Additional queries per product, made of words of its title. They keep a summary that serves rare "
            "queries from losing the frequent ones."
        ),
    ] = 0


class LabelledQuery(msgspec.Struct, frozen=True, kw_only=True):
    """One training query of a product.

    label: 0 or 1. delta: how far the description moves the calibrated probability, r(q, [t; d]) − r(q, t); 1 if no
    description was read. others: logits of the query's irrelevant products with their reference summaries.
    """

    query_id: str
    query: str
    label: int
    delta: float
    others: tuple[float, ...]


class _Read(NamedTuple):
    """One group: its product, the queries that score it, and its parsed texts."""

    inputs: Input
    product: Product | None
    queries: list[LabelledQuery]
    texts: list[ParsedSummary | Rejected]


class RelsumEnvironment(ScoringEnvironment):
    """Scores groups of summaries. Not thread-safe, because the cross-encoder is not."""

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
        """queries: training queries by product, already without those that δ leaves out.

        count: counts the tokens of a text. text_of: maps document id and summary to the cross-encoder's input text.
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
        """Return, for each candidate, whether it is a summary within the budget."""
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
