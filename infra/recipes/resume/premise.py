"""A check of ReSuMe's premise before any training: the summaries that its reward prefers help the search.

Each product gets some random selections of its values. The reward orders them, as the retriever that was adapted to
random values sees them. One corpus holds the best selection of each product, another a random one, and a retriever is
adapted to each corpus. If search among the best is no better than among the random ones, then no policy can gain by
this reward, however well it learns.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import msgspec

from infra.app.home import IndexFolder
from infra.app.progress import Report
from infra.app.settings import Settings
from infra.recipes.recipe import PremiseFound
from infra.recipes.resume.bi_encoders import adapt_to_texts, first_retriever, open_encoder
from infra.recipes.resume.measuring import dev_reciprocal_rank
from infra.recipes.resume.texts import document_texts, summarized_values, texts_without_policy
from search_env.engine.index import load_manifest
from search_env.resume.answered import answered_queries
from search_env.resume.environment import ResumeEnvironment, embedded_text
from streams.events import Outcome, Product
from streams.pointers import pointer


class ChosenTexts(msgspec.Struct, frozen=True, kw_only=True):
    """A corpus of summaries chosen from the same candidates.

    reward: mean of their rewards, as the environment gave them. rr_before: mean RR@10 on dev queries by the retriever
    that scored them. rr: the same by a version adapted to them.
    """

    chosen: str
    reward: float
    rr_before: float
    rr: float


class ResumePremise(msgspec.Struct, frozen=True, kw_only=True):
    """The result of the check.

    retriever: the version that scored. products: number of products with a choice. candidates: number of selections for
    each product. corpora: the best, a random and the worst selection of each product.
    """

    retriever: str
    products: int
    candidates: int
    corpora: tuple[ChosenTexts, ...]

    def found(self) -> PremiseFound:
        """Return the corpora as a table."""
        numbers = [(each.reward, each.rr_before, each.rr) for each in self.corpora]
        return PremiseFound(
            value=self,
            columns=("summaries", "reward", "RR@10 dev", "adapted to them"),
            rows=[
                (f"{each.chosen} of {self.candidates}", *(f"{number:.3f}" for number in row))
                for each, row in zip(self.corpora, numbers, strict=True)
            ],
            below=f"{self.products} products with a choice, scored by {self.retriever}",
        )


def check_premise(
    index: IndexFolder, settings: Settings, *, candidates: int, seed: int, report: Report
) -> ResumePremise:
    """Measure the search for the best, a random and the worst of each product's random selections.

    settings: the recipe's. Vectors are searched in memory, whatever `vectors.search` says. Only retriever versions are
    written. Raises SettingsError if the index has no judged training queries.
    """
    retriever, prompts = settings.retriever, settings.product_prompts
    begun = texts_without_policy(index, "random", budget=settings.resume.summary, prompts=prompts, seed=seed)
    first = first_retriever(index, retriever).name
    scorer = adapt_to_texts(index, retriever, parent=first, texts=begun, held_out=[], turn=0, seed=seed).name
    scoring = open_encoder(index, scorer, retriever)
    answered = answered_queries(index, [])
    values = summarized_values(index, answered, prompts)
    products = [values.product(document) for document in values.documents]
    environment = ResumeEnvironment(
        scoring,
        index=load_manifest(index).name,
        documents=document_texts(index),
        queries=answered.queries,
        answered=answered.by_document,
        settings=settings.resume,
    )
    scored: dict[str, tuple[Outcome, ...]] = {}
    others = {key: len(answered.queries) - len(ids) for key, ids in answered.by_document.items()}
    asked = [each for each in products if len(each.values) > 1 and others.get(each.document_id, 0) > 0]
    for number, product in enumerate(asked, start=1):
        written = random_selections(product, candidates, seed=seed)
        scored[product.document_id] = environment.outcomes(product, written, group_id=f"premise-{product.document_id}")
        report("scoring random selections", number, len(asked))
    corpora = []
    for name, place in (("best", -1), ("random", None), ("worst", 0)):
        chosen = {key: _nth(outcomes, place) for key, outcomes in scored.items()}
        texts = {**begun, **_embedded(products, chosen)}
        report(f"searching the {name} of {candidates}", 0, 0)
        before = dev_reciprocal_rank(index, scoring, texts, indexed=None)
        adapted = adapt_to_texts(index, retriever, parent=first, texts=texts, held_out=[], turn=1, seed=seed + 1).name
        corpora.append(
            ChosenTexts(
                chosen=name,
                reward=sum(each.reward or 0.0 for each in chosen.values()) / max(1, len(chosen)),
                rr_before=before,
                rr=dev_reciprocal_rank(index, open_encoder(index, adapted, retriever), texts, indexed=None),
            )
        )
    return ResumePremise(retriever=scorer, products=len(asked), candidates=candidates, corpora=tuple(corpora))


def random_selections(product: Product, candidates: int, *, seed: int) -> list[str]:
    """Return so many random orders of all of a product's values, as pointers; the budget keeps the first that fit."""
    generator = random.Random(f"premise {seed} {product.document_id}")
    numbers = range(1, len(product.values) + 1)
    return ["".join(map(pointer, generator.sample(numbers, len(numbers)))) for _ in range(candidates)]


def _nth(outcomes: Sequence[Outcome], place: int | None) -> Outcome:
    """Return the outcome at this place in the order of rewards, ties by Δ.

    For None, return the first outcome, which is as random as any.
    """
    if place is None:
        return outcomes[0]
    return sorted(outcomes, key=lambda each: (each.reward or 0.0, each.components.get("delta", 0.0)))[place]


def _embedded(products: Sequence[Product], chosen: Mapping[str, Outcome]) -> dict[str, str]:
    titles = {each.document_id: each.title for each in products}
    return {key: embedded_text(titles[key], outcome.summary or "") for key, outcome in chosen.items()}
