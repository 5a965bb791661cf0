"""The environment of ReSuMe's summarizer: it takes a group of summaries of a product and rewards each of them.

Every summary is read within its budget, put behind the product's title, and encoded by one fixed version of the
retriever: g of the previous turn. The same version encodes the product itself, the queries that it answers (q⁺), and as
many queries drawn uniformly from the others (q⁻). These are the same for a whole group. The draw depends only on the
group's id, so a replay draws the same queries. The title stays in the encoded text: a policy that could drop it cost
human queries .13 in MRR.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from typing import Annotated

import msgspec
import numpy as np

from search_env.environments import Inputs, Rejected, ScoringEnvironment, all_failed
from search_env.models.bi_encoder import RememberedVectors, TextEncoder
from search_env.resume.reward import ResumeSettings, resume_reward, unformatted_reward
from search_env.summaries.reading import ParsedSummary, SummarySettings, read_summary
from streams.descriptions import describe
from streams.events import Generation, Outcome, Product, Reward


class ResumeEnvironmentSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings for reading and scoring summaries."""

    reward: ResumeSettings = ResumeSettings()
    summary: SummarySettings = SummarySettings(tokens_max=24)
    retriever: Annotated[
        str,
        describe(
            "Version of the index's retriever that scores, such as r1-0123456789ab. Empty: the version before "
            "any adaptation."
        ),
    ] = ""
    positives_max: Annotated[
        int,
        msgspec.Meta(ge=1, le=1000),
        describe("Largest number of queries that the product answers and that score a group."),
    ] = 16
    negatives: Annotated[
        int,
        msgspec.Meta(ge=1, le=1000),
        describe("Number of queries that the product does not answer and that score a group."),
    ] = 16


class ResumeEnvironment(ScoringEnvironment):
    """Scores groups of summaries with one retriever version. Not thread-safe, because its cache of vectors is not."""

    def __init__(
        self,
        encoder: TextEncoder,
        *,
        index: str,
        documents: Mapping[str, str],
        queries: Mapping[str, str],
        answered: Mapping[str, Sequence[str]],
        settings: ResumeEnvironmentSettings,
    ) -> None:
        """documents: whole text by id. queries: training queries' text by id. answered: ids of q⁺ by document id."""
        super().__init__(
            index=index,
            relevance_model=encoder.name,
            reward_sha256=hashlib.sha256(msgspec.json.encode(settings, order="deterministic")).hexdigest(),
        )
        self.settings = settings
        self._encoder = encoder
        self._documents = documents
        self._query_ids = sorted(queries)
        self._rows = {query: row for row, query in enumerate(self._query_ids)}
        self._queries = encoder.embed_queries([queries[query] for query in self._query_ids])  # [Q, E]
        self._answered = {document: tuple(sorted(ids)) for document, ids in answered.items()}
        self._vectors = RememberedVectors(encoder)
        self._long = msgspec.structs.replace(settings.summary, tokens_max=512)

    def score_many(self, inputs: Inputs) -> list[Reward]:
        """Return one reward for each group, in order; a product without queries gets only `failed` candidates."""
        return [self.reward(group, self._outcomes(group[0])) for group in inputs]

    def readable(self, generation: Generation) -> list[bool]:
        """Return False for each candidate: a group that is not scored here is not read either."""
        return [False] * len(generation.completions)

    def _outcomes(self, generation: Generation) -> tuple[Outcome, ...]:
        product = generation.request.product
        written = [completion.text for completion in generation.completions]
        unread = self.readable(generation)
        if product is msgspec.UNSET or product.document_id not in self._documents:
            return all_failed(unread, "expected a request about a product of the index, got none")
        asked = self._answered.get(product.document_id, ())
        if not asked or len(asked) >= len(self._query_ids):
            return all_failed(unread, f"product {product.document_id!r} needs queries that it answers, and others")
        return self.outcomes(product, written, group_id=generation.group_id)

    def outcomes(self, product: Product, written: Sequence[str], *, group_id: str) -> tuple[Outcome, ...]:
        """Return the outcome of each text about a product, which must answer a query while others remain.

        group_id: determines the draw of queries.
        """
        asked = self._answered[product.document_id]
        positives, negatives = self._draw(group_id, asked)
        count = self._encoder.token_count
        read = [read_summary(text, product, self.settings.summary, count) for text in written]
        texts = [embedded_text(product.title, each.text) for each in read if isinstance(each, ParsedSummary)]
        vectors = self._vectors.embed_documents([self._documents[product.document_id], *texts])
        near, far = self._queries[positives] @ vectors.T, self._queries[negatives] @ vectors.T  # [q, 1 + texts]
        if not (np.isfinite(near).all() and np.isfinite(far).all()):
            return all_failed([False] * len(written), f"retriever {self._encoder.name}: a cosine is not finite")
        outcomes = []
        column = 0
        for text, summary in zip(written, read, strict=True):
            if isinstance(summary, Rejected):
                reward, components = unformatted_reward(self.settings.reward)
                outcomes.append(_scored(reward, components, valid=False, summary="", error=summary.reason))
                continue
            column += 1
            reward, components = resume_reward(
                positives=near[:, column].tolist(),
                negatives=far[:, column].tolist(),
                document_positives=near[:, 0].tolist(),
                document_negatives=far[:, 0].tolist(),
                tokens=self._length(text, product),
                settings=self.settings.reward,
            )
            components |= {"repeats": summary.repeats, "kept_tokens": float(summary.tokens)}
            outcomes.append(_scored(reward, components, valid=True, summary=summary.text, error=""))
        return tuple(outcomes)

    def _length(self, text: str, product: Product) -> int:
        """Return the number of tokens of a summary as it was written, before the budget."""
        whole = read_summary(text, product, self._long, self._encoder.token_count)
        return whole.tokens if isinstance(whole, ParsedSummary) else 0

    def _draw(self, group_id: str, asked: Sequence[str]) -> tuple[list[int], list[int]]:
        """Return rows of q⁺ and q⁻ for a group."""
        generator = random.Random(group_id)
        mine = {self._rows[query] for query in asked}
        positives = sorted(mine)
        if len(positives) > self.settings.positives_max:
            positives = sorted(generator.sample(positives, self.settings.positives_max))
        wanted = min(self.settings.negatives, len(self._query_ids) - len(mine))
        negatives: dict[int, None] = {}
        while len(negatives) < wanted:
            row = generator.randrange(len(self._query_ids))
            if row not in mine:
                negatives[row] = None
        return positives, list(negatives)


def embedded_text(title: str, summary: str) -> str:
    """Return the text that represents a product in the index: its title and its summary."""
    return f"{title}. {summary}" if title and summary else title + summary


def measured_deltas(environment: ResumeEnvironment, groups: Inputs) -> list[list[float]]:
    """Return Δ of each valid candidate, group by group, from which a turn's edge scale is computed."""
    return [
        [each.components["delta"] for each in reward.outcomes if each.valid and each.status == "scored"]
        for reward in environment.score_many(groups)
    ]


def _scored(reward: float, components: dict[str, float], *, valid: bool, summary: str, error: str) -> Outcome:
    return Outcome(status="scored", valid=valid, reward=reward, components=components, summary=summary, error=error)
