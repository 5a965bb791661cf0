"""ReSuMe's summarizer (WWW '26) as a recipe: a product goes in, a summary comes out, and a bi-encoder rewards it.

One run is one turn of the summarizer against one version of the bi-encoder (`resume.retriever`).
`infra.runs.alternation` strings turns together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path

from infra.app.app import App
from infra.app.progress import Report
from infra.app.run_settings import RunSettings, read_run_settings
from infra.app.settings import Settings
from infra.recipes.first_policy import first_policy
from infra.recipes.held_out import held_out_intents, ranked
from infra.recipes.product_requests import prepared_products
from infra.recipes.recipe import (
    TOP,
    CatalogueTexts,
    Judged,
    NewRun,
    Partner,
    PremiseFound,
    PremiseOptions,
    Prepared,
    Ranked,
)
from infra.recipes.resume.bi_encoders import adapt_to_texts, dense_search, first_retriever, open_encoder
from infra.recipes.resume.texts import TEXTS, document_texts, summarized_values, summary_texts, texts_without_policy
from infra.recipes.summarizing import Choice, stored_texts, summarize
from learner.checkpoints import CURRENT
from learner.generation import Encode
from learner.learning import write_first_checkpoint
from learner.policy import with_lora
from learner.product_prompts import encode_product_request
from search_env.environments import Environment
from search_env.resume.answered import QUERIES_FILE, answered_queries, read_answered, write_answered
from search_env.resume.environment import ResumeEnvironment
from search_env.summaries.products import description_of
from streams.codec import content_sha256, encode
from streams.errors import SettingsError
from streams.events import Generation

TUNED = "tuned-"


class Resume:
    """Summaries of products, paid by the retriever."""

    carried: Sequence[str] = (QUERIES_FILE,)
    methods: Sequence[str] = (*TEXTS, *(f"{TUNED}{texts}" for texts in TEXTS))

    def prepare(self, app: App, new: NewRun, report: Report) -> Prepared:
        """Ask for every product that answers a training query and has values to choose from; make the first policy.

        Raises SettingsError for queries of one's own (they have no judgments), and if no product can be asked for.
        """
        if new.queries_file is not None:
            raise SettingsError("--queries: ReSuMe needs judged training queries; leave it out to take the index's own")
        directory, run_dir = app.home.index(new.index), app.home.run(new.run)
        if (run_dir / QUERIES_FILE).is_file():
            answered = read_answered(run_dir)
        else:
            answered = answered_queries(directory, new.held_out)
            run_dir.mkdir(parents=True, exist_ok=True)
            write_answered(run_dir, answered)
        values = summarized_values(app, new.index, answered)
        products = [values.product(document) for document in values.documents]
        asked = [each for each in products if each.document_id in answered.by_document and len(each.values) > 1]
        if not asked:
            raise SettingsError(
                f"index {new.index!r} has no product with two values beside its title that answers a training query; "
                "ReSuMe needs a catalogue with attributes"
            )
        if not (run_dir / "checkpoints" / CURRENT).is_file():
            report("making the policy", 0, 0)
            texts = (f"{each.title} {description_of(each)}" for each in products)
            pointers = app.settings.product_prompts.values
            policy = first_policy(app, texts, pointers=pointers, run_dir=run_dir, seed=new.seed)
            write_first_checkpoint(run_dir / "checkpoints", with_lora(policy, app.settings.policy.lora))
        return prepared_products(app, new, asked)

    def encoder(self, settings: Settings) -> Encode:
        """Return the prompt of a product."""
        return partial(encode_product_request, settings=settings.product_prompts)

    @contextmanager
    def open_environment(self, app: App, run: RunSettings, report: Report) -> Iterator[Environment]:
        """Give the environment with the retriever version that the run began with."""
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
        """Return the held-out intents and the given queries, each searched among what stands for the documents.

        policy: a version, whose summaries stand for them, or one of `TEXTS`. The retriever is that of
        `resume.retriever`; with "tuned-" before the policy it is first adapted to those texts, by `retriever.steps`.
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
        encoder = open_encoder(app, run.index, name)
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
                    settings=app.settings.vectors,
                ),
            )
            for each in held_out_intents(app, run.index, given)
        ]

    def write_catalogue(self, app: App, run: RunSettings, *, policy: str, report: Report) -> CatalogueTexts:
        """Write the summary of every product, as the partner of the run's turn reads it."""
        written = policy_summaries(app, run, policy=policy, report=report)
        return stored_texts(app, run, written, policy=policy, choice=best_rewarded(app, run))

    def check_premise(self, app: App, index: str, options: PremiseOptions, report: Report) -> PremiseFound:
        """Check whether the search finds the random summaries that the reward likes best better than others."""
        from infra.recipes.resume.premise import check_premise

        candidates, seed = options.candidates, options.seed
        return check_premise(app, index, candidates=candidates, seed=seed, report=report).found()

    def partner(self) -> Partner:
        """Return the bi-encoder that searches."""
        from infra.recipes.resume.partner import RetrieverPartner

        return RetrieverPartner()


def policy_texts(
    app: App, run: RunSettings, *, policy: str, report: Report, temperature: float = 0.0
) -> dict[str, str]:
    """Return each document's title together with the summary that a version of the run's policy writes."""
    summaries = policy_summaries(app, run, policy=policy, report=report, temperature=temperature)
    return summary_texts(app.home.index(run.index), summaries)


def policy_summaries(
    app: App, run: RunSettings, *, policy: str, report: Report, temperature: float = 0.0
) -> dict[str, str]:
    """Return what a version of the run's policy writes of each product that has values to choose from.

    With `alternation.samples` it is the best of so many samples, unless a temperature asks for a single one.
    """
    answered = read_answered(app.home.run(run.run))
    values = summarized_values(app.with_settings(run.settings), run.index, answered)
    products = [each for each in map(values.product, values.documents) if each.values]
    return summarize(
        app,
        run,
        products,
        encode=Resume().encoder(run.settings),
        budget=run.settings.resume.summary,
        policy=policy,
        report=report,
        temperature=temperature,
        choice=None if temperature else best_rewarded(app, run),
    )


def best_rewarded(app: App, run: RunSettings) -> Choice | None:
    """Return the choice that a run's settings ask for: of a product's samples, the one that the run would pay best.

    The reward is the one that the run was begun with, whichever retriever searches now; equal ones by Δ.
    """
    samples = run.settings.alternation.samples
    if not samples:
        return None

    @cache
    def environment() -> ResumeEnvironment:  # Opened by the first group: where all summaries are stored there is none.
        run_dir = app.home.run(run.run)
        paid = app.with_settings(read_run_settings(run_dir).settings)
        return open_resume_environment(paid, run.index, run_dir, index_version=run.index_version)

    def place(group: Generation) -> int:
        (reward,) = environment().score_many([(group, group.source, content_sha256(encode(group)))])
        worth = [
            (outcome.reward, outcome.components.get("delta", 0.0), -number)
            for number, outcome in enumerate(reward.outcomes)
            if outcome.reward is not None
        ]
        return -max(worth)[2] if worth else 0

    return Choice(f"best-of-{samples}", samples, place)


def open_resume_environment(app: App, index: str, run_dir: Path, *, index_version: str) -> ResumeEnvironment:
    """Return what scores a run's groups. app: with the run's own settings."""
    answered = read_answered(run_dir)
    return ResumeEnvironment(
        open_encoder(app, index, app.settings.resume.retriever),
        index=index_version,
        documents=document_texts(app.home.index(index)),
        queries=answered.queries,
        answered=answered.by_document,
        settings=app.settings.resume,
    )
