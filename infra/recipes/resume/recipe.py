"""ReSuMe's summarizer (WWW '26) as a recipe: the policy writes a product's summary, and a bi-encoder rewards it.

One run is one turn of the summarizer against one version of the bi-encoder (`resume.retriever`).
`infra.runs.alternation` runs one turn after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from infra.app.app import App
from infra.app.home import IndexFolder
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
from infra.recipes.resume.bi_encoders import (
    VectorIndex,
    adapt_to_texts,
    dense_search,
    first_retriever,
    open_encoder,
)
from infra.recipes.resume.partner import RetrieverPartner
from infra.recipes.resume.premise import check_premise
from infra.recipes.resume.preparation import prepare
from infra.recipes.resume.texts import TEXTS, texts_without_policy
from infra.recipes.resume.writing import best_rewarded, open_resume_environment, policy_summaries, policy_texts
from infra.recipes.summarizing import stored_texts
from learner.generation import Encode
from search_env.environments import Environment
from search_env.models.bi_encoder import StaticEncoder
from search_env.resume.answered import QUERIES_FILE

ADAPTED = "adapted-"


class Resume:
    """Summaries of products, rewarded by the retriever."""

    carried: Sequence[str] = (QUERIES_FILE,)
    methods: Sequence[str] = (*TEXTS, *(f"{ADAPTED}{texts}" for texts in TEXTS))

    def prepare(self, app: App, new: NewRun, report: Report) -> Prepared:
        """Make or find training queries, requests and the first policy; see `infra.recipes.resume.preparation`."""
        index, run_dir = app.home.index(new.index), app.home.run(new.run)
        return prepare(new, app.settings, index=index, run_dir=run_dir, policies=app.home.policies, report=report)

    def encoder(self, settings: Settings) -> Encode:
        """Return the prompt of a product, which never shows a query."""
        return product_encoder(settings.product_prompts)

    @contextmanager
    def open_environment(self, app: App, run: RunSettings, report: Report) -> Iterator[Environment]:
        """Yield the environment with the retriever version that the run began with."""
        yield open_resume_environment(
            app.home.index(run.index),
            app.home.run(run.run),
            app.settings.resume,
            retriever=app.settings.retriever,
            index_version=run.index_version,
        )

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
        retriever. With "adapted-" before the policy, the retriever is first adapted to these texts for
        `retriever.steps` steps.
        """
        index, settings = app.home.index(run.index), app.settings
        texts_of = policy.removeprefix(ADAPTED)
        held_out = given[0] if given else []
        if texts_of in TEXTS:
            texts = texts_without_policy(
                index,
                texts_of,
                budget=settings.resume.summary,
                prompts=settings.product_prompts,
                seed=run.seed,
                held_out=held_out,
            )
        else:
            run_dir = app.home.run(run.run)
            texts = policy_texts(index, run_dir, run, policy=texts_of, report=report, temperature=temperature)
        name = settings.resume.retriever or first_retriever(index, settings.retriever).name
        if policy.startswith(ADAPTED):
            name = adapt_to_texts(
                index, settings.retriever, parent=name, texts=texts, held_out=held_out, turn=1, seed=run.seed
            ).name
        sets = held_out_intents(app.home.index(run.index), given)
        indexed = VectorIndex(
            alias=f"{run.run}-vectors", installation=app.installation, engine=app.engine, settings=settings.vectors
        )
        encoder = open_encoder(index, name, settings.retriever)
        return _searched(index, encoder, texts, sets, top=top, indexed=indexed)

    @contextmanager
    def open_dev(
        self, app: App, run: RunSettings, *, queries_max: int, given: Judged | None, report: Report
    ) -> Iterator[RankDev]:
        """Give the function that searches a version's summaries of the whole catalogue with the turn's retriever."""
        sets = dev_intents(app.home.index(run.index), queries_max, given)
        index, run_dir = app.home.index(run.index), app.home.run(run.run)
        name = run.settings.resume.retriever or first_retriever(index, app.settings.retriever).name

        def rank(policy: str) -> list[Ranked]:
            texts = policy_texts(index, run_dir, run, policy=policy, report=report)
            encoder = open_encoder(index, name, app.settings.retriever)
            return _searched(index, encoder, texts, sets, top=TOP, indexed=None)  # An evaluator may write no index.

        yield rank

    def write_catalogue(self, app: App, run: RunSettings, *, policy: str, report: Report) -> CatalogueTexts:
        """Write the summary of every product, as the partner of the run's turn reads it, and return all of them."""
        index, run_dir = app.home.index(run.index), app.home.run(run.run)
        written = policy_summaries(index, run_dir, run, policy=policy, report=report)
        return stored_texts(run_dir, written, policy=policy, choice=best_rewarded(index, run_dir, run))

    def check_premise(self, app: App, index: str, options: PremiseOptions, report: Report) -> PremiseFound:
        """Check that search works better on the random summaries with the highest rewards than on others."""
        return check_premise(
            app.home.index(index), app.settings, candidates=options.candidates, seed=options.seed, report=report
        ).found()

    def partner(self) -> Partner:
        """Return the bi-encoder that searches."""
        return RetrieverPartner()


def _searched(
    index: IndexFolder,
    encoder: StaticEncoder,
    texts: Mapping[str, str],
    sets: Sequence[HeldOut],
    *,
    top: int,
    indexed: VectorIndex | None,
) -> list[Ranked]:
    """Return each set's queries, searched with a version of the retriever among texts that stand for documents."""
    return [ranked(each, dense_search(index, encoder, texts, each.queries, top=top, indexed=indexed)) for each in sets]
