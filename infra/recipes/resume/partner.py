"""ReSuMe's partner: a dense retriever, adapted to the summaries of the whole corpus by contrastive learning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from infra.app.app import App
from infra.app.progress import Report
from infra.app.run_settings import RunSettings
from infra.app.settings import Settings
from infra.recipes.decoding import decode_requests
from infra.recipes.product_requests import product_encoder
from infra.recipes.recipe import NewRun
from infra.recipes.resume.bi_encoders import VectorIndex, adapt_to_texts, first_retriever, open_encoder
from infra.recipes.resume.measuring import dev_reciprocal_rank
from infra.recipes.resume.preparation import prepare
from infra.recipes.resume.texts import texts_without_policy
from infra.recipes.resume.writing import open_resume_environment, policy_texts
from learner.checkpoints import load_current
from learner.versions import LoadedVersion
from search_env.catalogue.corpora import Query
from search_env.resume.environment import measured_deltas
from search_env.resume.reward import spread_scale
from streams.codec import content_sha256, encode_event


class RetrieverPartner:
    """The retriever versions of an index, as the partner of a summarizer."""

    setting = "resume.retriever"
    measure = "RR@10"

    def first(self, app: App, index: str, *, held_out: Sequence[Query], seed: int, report: Report) -> str:
        """Return the version that rewards the first turn, adapted as `alternation.begin` says."""
        original, settings = self.original(app, index), app.settings
        if settings.alternation.begin == "nothing":
            return original
        texts = texts_without_policy(
            app.home.index(index),
            settings.alternation.begin,
            budget=settings.resume.summary,
            prompts=settings.product_prompts,
            seed=seed,
            held_out=held_out,
        )
        return self.adapt(app, index, parent=original, texts=texts, held_out=held_out, turn=0, seed=seed, report=report)

    def original(self, app: App, index: str) -> str:
        """Return the retriever that no texts have adapted."""
        return first_retriever(app.home.index(index), app.settings.retriever).name

    def settle(self, app: App, new: NewRun, report: Report) -> App:
        """Return the app with an edge scale that fits the summaries by the turn's first policy.

        The scale is measured on some products.
        """
        settings = app.settings
        if not settings.alternation.measure_scale:
            return app
        index, run_dir = app.home.index(new.index), app.home.run(new.run)
        prepared = prepare(new, settings, index=index, run_dir=run_dir, policies=app.home.policies, report=report)
        folder, manifest = load_current(run_dir.checkpoints)
        some = prepared.asked[:: max(len(prepared.asked) // settings.alternation.measured_products, 1)]
        groups = decode_requests(
            some,
            LoadedVersion(folder, manifest.policy),
            encode=product_encoder(settings.product_prompts),
            sampling=settings.generation.sampling(),
            seed=new.seed,
            name="measuring the spread",
            report=report,
        )
        environment = open_resume_environment(
            index, run_dir, settings.resume, retriever=settings.retriever, index_version=prepared.index
        )
        inputs = [(group, group.source, content_sha256(encode_event(group))) for group in groups]
        scale = round(spread_scale(measured_deltas(environment, inputs)), 6)
        return app.with_changes("the turn", {"resume": {"reward": {"edge_scale": scale}}})

    def told(self, settings: Settings) -> dict[str, float]:
        """Return the edge scale of the turn's bins."""
        return {"edge scale": settings.resume.reward.edge_scale}

    def texts(self, app: App, run: RunSettings, report: Report) -> Mapping[str, str]:
        """Return title and summary of every document, by document id."""
        index, run_dir = app.home.index(run.index), app.home.run(run.run)
        return policy_texts(index, run_dir, run, policy="latest", report=report)

    def adapt(
        self,
        app: App,
        index: str,
        *,
        parent: str,
        texts: Mapping[str, str],
        held_out: Sequence[Query],
        turn: int,
        seed: int,
        report: Report,
    ) -> str:
        """Adapt a retriever to the texts on training queries, and return the new version."""
        return adapt_to_texts(
            app.home.index(index),
            app.settings.retriever,
            parent=parent,
            texts=texts,
            held_out=held_out,
            turn=turn,
            seed=seed,
        ).name

    def measured(
        self, app: App, index: str, version: str, texts: Mapping[str, str], *, name: str, report: Report
    ) -> float:
        """Return mean RR@10 of dev queries among all texts."""
        folder, settings = app.home.index(index), app.settings
        indexed = VectorIndex(
            alias=f"{name}-vectors", installation=app.installation, engine=app.engine, settings=settings.vectors
        )
        encoder = open_encoder(folder, version, settings.retriever)
        return dev_reciprocal_rank(folder, encoder, texts, indexed=indexed)
