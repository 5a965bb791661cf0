"""A recipe of one's own, whole: a policy picks the two or three values of a product that tell it apart.

`infra/RECIPES.md` walks through this file; `tests/unit/test_recipe_example.py` and `tests/loop/test_recipes.py` run it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from infra.app.app import App
from infra.app.progress import Report
from infra.app.run_settings import RunSettings
from infra.app.settings import Settings
from infra.recipes.recipe import TOP, Judged, NewRun, Prepared, Ranked
from learner.checkpoints import CURRENT
from learner.generation import Encode
from learner.learning import write_first_checkpoint
from learner.policy import build_tiny
from learner.product_prompts import tokenize_product_request
from search_env.catalogue.attributes import document_attributes
from search_env.catalogue.corpora import Document
from search_env.engine.index import load_documents, load_manifest
from search_env.environments import Environment, Inputs, Rejected, ScoringEnvironment
from search_env.summaries.reading import ParsedSummary, SummarySettings, read_summary
from streams.events import Generation, Outcome, Product, Request, Reward

COST = 0.15  # What a value costs, so that the policy says no more than tells.


def product_of(document: Document, *, values: int) -> Product:
    """Return what the policy is shown: title and numbered values."""
    said = tuple((attribute.name, attribute.phrase) for attribute in document_attributes(document))
    return Product(document_id=document.id, title=document.title, values=said[:values])


def distinction_reward(summary: ParsedSummary, product: Product, rarity: dict[str, float]) -> float:
    """Return the mean rarity, in [0, 1], of the values that were picked, less what they cost; nothing picked is 0."""
    picked = [rarity[product.values[number - 1][1]] for number in summary.values]
    return sum(picked) / len(picked) - COST * len(picked) if picked else 0.0


class DistinctionEnvironment(ScoringEnvironment):
    """Scores picks by how rare their values are in the catalogue."""

    def __init__(self, documents: Sequence[Document], index: str) -> None:
        super().__init__(index=index, relevance_model="rarity", reward_sha256="distinction-1")
        holders = Counter(a.phrase for document in documents for a in document_attributes(document))
        self._rarity = {value: 1 - math.log(n) / math.log(max(len(documents), 2)) for value, n in holders.items()}

    def score_many(self, inputs: Inputs) -> list[Reward]:
        """Return one reward for each group, in order."""
        return [self.reward(each, [self._outcome(each[0], c.text) for c in each[0].completions]) for each in inputs]

    def readable(self, generation: Generation) -> list[bool]:
        """Return True for each candidate: every text is read before it is scored."""
        return [True] * len(generation.completions)

    def _outcome(self, generation: Generation, text: str) -> Outcome:
        product = generation.request.product
        if not isinstance(product, Product):
            return Outcome(status="failed", valid=False, error="expected a product, got a query alone")
        read = read_summary(text, product, SummarySettings(), lambda said: len(said.split()))
        if isinstance(read, Rejected):
            return Outcome(status="scored", valid=False, reward=0.0, error=read.reason)
        reward = distinction_reward(read, product, self._rarity)
        return Outcome(status="scored", valid=True, reward=reward, summary=read.text)


class Distinction:
    """The task: `[train] recipe = "tests.recipe_example:Distinction"`."""

    carried: Sequence[str] = ()
    methods: Sequence[str] = ()

    def prepare(self, app: App, new: NewRun, report: Report) -> Prepared:
        """Return a request for every product with values; write checkpoint 0 where the run has none."""
        folder, shown = app.home.index(new.index), app.settings.product_prompts.values
        documents, version = load_documents(folder), load_manifest(folder).name
        products = [product_of(document, values=shown) for document in documents]
        checkpoints = app.home.run(new.run) / "checkpoints"
        if not (checkpoints / CURRENT).is_file():
            texts = (f"{p.title} {name} {value}" for p in products for name, value in p.values)
            write_first_checkpoint(checkpoints, build_tiny(texts, app.settings.policy.tiny, pointers=shown))
        asked = [
            Request(request_id="", run=new.run, query_id=p.document_id, query="", index=version, product=p)
            for p in products
            if p.values
        ]
        return Prepared(run=new.run, index=version, asked=asked)

    def encoder(self, settings: Settings) -> Encode:
        """Return the prompt: title and numbered values."""
        return partial(tokenize_product_request, settings=settings.product_prompts)

    @contextmanager
    def open_environment(self, app: App, run: RunSettings, report: Report) -> Iterator[Environment]:
        """Give what scores the picks; nothing has to be closed."""
        yield DistinctionEnvironment(load_documents(app.home.index(run.index)), run.index_version)

    def rank(
        self,
        app: App,
        run: RunSettings,
        *,
        policy: str,
        given: Judged | None,
        report: Report,
        temperature: float = 0.0,
        top: int = TOP,
    ) -> list[Ranked]:
        """Return nothing: picks rank no query."""
        return []
