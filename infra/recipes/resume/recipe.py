"""ReSuMe's summarizer (WWW '26) as a recipe: the policy writes a product's summary, and a bi-encoder rewards it.

One run is one turn of the summarizer against one version of the bi-encoder (`resume.retriever`).
`infra.runs.alternation` runs one turn after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import msgspec

from infra.app.app import App
from infra.app.progress import Report
from infra.app.run_settings import RunSettings
from infra.app.settings import Settings
from infra.recipes.held_out import HeldOut, dev_intents, held_out_intents, ranked
from infra.recipes.product_requests import product_encoder
from infra.recipes.recipe import (
    TOP,
    CatalogueTexts,
    Judged,
    NewRun,
    Partner,
    PremiseFound,
    PremiseOptions,
    Prepared,
    RankDev,
    Ranked,
)
from infra.recipes.resume.bi_encoders import adapt_to_texts, dense_search, first_retriever, open_encoder
from infra.recipes.resume.partner import RetrieverPartner
from infra.recipes.resume.premise import check_premise
from infra.recipes.resume.preparation import prepare
from infra.recipes.resume.texts import TEXTS, texts_without_policy
from infra.recipes.resume.writing import best_rewarded, open_resume_environment, policy_summaries, policy_texts
from infra.recipes.summarizing import stored_texts
from learner.generation import Encode
from search_env.engine.vectors import VectorSettings
from search_env.environments import Environment
from search_env.resume.answered import QUERIES_FILE

TUNED = "tuned-"


class Resume:
    """Summaries of products, rewarded by the retriever."""

    carried: Sequence[str] = (QUERIES_FILE,)
    methods: Sequence[str] = (*TEXTS, *(f"{TUNED}{texts}" for texts in TEXTS))

    def prepare(self, app: App, new: NewRun, report: Report) -> Prepared:
        """Make or find training queries, requests and the first policy; see `infra.recipes.resume.preparation`."""
        return prepare(app, new, report)

    def encoder(self, settings: Settings) -> Encode:
        """Return the prompt of a product, which never shows a query."""
        return product_encoder(settings)

    @contextmanager
    def open_environment(self, app: App, run: RunSettings, report: Report) -> Iterator[Environment]:
        """Yield the environment with the retriever version that the run began with."""
        yield open_resume_environment(app, run.index, app.home.run(run.run), index_version=run.index_version)

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
        """Search the held-out intents and the given queries among the texts that stand for the documents.

        policy: a version, whose summaries stand for the documents, or one of `TEXTS`. `resume.retriever` names the
        retriever. With "tuned-" before the policy, the retriever is first adapted to these texts for `retriever.steps`
        steps.
        """
        texts_of = policy.removeprefix(TUNED)
        held_out = given[0] if given else []
        if texts_of in TEXTS:
            texts = texts_without_policy(app, run.index, texts_of, seed=run.seed, held_out=held_out)
        else:
            texts = policy_texts(app, run, policy=texts_of, report=report, temperature=temperature)
        name = app.settings.resume.retriever or first_retriever(app, run.index).name
        if policy.startswith(TUNED):
            name = adapt_to_texts(
                app, run.index, parent=name, texts=texts, held_out=held_out, turn=1, seed=run.seed
            ).name
        return _searched(
            app, run, name, texts, held_out_intents(app, run.index, given), top=top, settings=app.settings.vectors
        )

    @contextmanager
    def open_dev(
        self, app: App, run: RunSettings, *, queries_max: int, given: Judged | None, report: Report
    ) -> Iterator[RankDev]:
        """Give the function that searches a version's summaries of the whole catalogue with the turn's retriever."""
        sets = dev_intents(app, run.index, queries_max, given)
        in_memory = msgspec.structs.replace(app.settings.vectors, search="memory")  # An evaluator may write no index.
        name = run.settings.resume.retriever or first_retriever(app, run.index).name

        def rank(policy: str) -> list[Ranked]:
            texts = policy_texts(app, run, policy=policy, report=report)
            return _searched(app, run, name, texts, sets, top=TOP, settings=in_memory)

        yield rank

    def write_catalogue(self, app: App, run: RunSettings, *, policy: str, report: Report) -> CatalogueTexts:
        """Write the summary of every product, as the partner of the run's turn reads it, and return all of them."""
        written = policy_summaries(app, run, policy=policy, report=report)
        return stored_texts(app, run, written, policy=policy, choice=best_rewarded(app, run))

    def check_premise(self, app: App, index: str, options: PremiseOptions, report: Report) -> PremiseFound:
        """Check that search works better on the random summaries with the highest rewards than on others."""
        candidates, seed = options.candidates, options.seed
        return check_premise(app, index, candidates=candidates, seed=seed, report=report).found()

    def partner(self) -> Partner:
        """Return the bi-encoder that searches."""
        return RetrieverPartner()


def _searched(
    app: App,
    run: RunSettings,
    retriever: str,
    texts: Mapping[str, str],
    sets: Sequence[HeldOut],
    *,
    top: int,
    settings: VectorSettings,
) -> list[Ranked]:
    """Return each set's queries, searched with a version of the retriever among texts that stand for documents."""
    encoder = open_encoder(app, run.index, retriever)
    return [
        ranked(
            each,
            dense_search(
                app,
                encoder,
                texts,
                each.queries,
                index=run.index,
                alias=f"{run.run}-vectors",
                top=top,
                settings=settings,
            ),
        )
        for each in sets
    ]
