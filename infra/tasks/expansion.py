"""Query expansion (LESER, arXiv:2509.05570) as a task: the query and what it finds now in, expansions out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from infra.context import App
from infra.preparation import CONTEXTS_FILE, LESSONS_FILE, prepare
from infra.progress import Report
from infra.relevance import open_relevance
from infra.run_settings import RunSettings
from infra.settings import Settings
from infra.tasks.task import Prepared, Ranked
from learner.generation import Encode
from learner.prompts import encode_request
from search_env.catalogue import Catalogue
from search_env.controls import Environment
from search_env.corpora import Qrels, Query
from search_env.environment import SearchEnvironment
from search_env.index import load_documents
from search_env.intents import load_intents
from search_env.retrieval import Retriever

HELD_OUT = ("test_pair", "test_value")
TOP = 100


class Expansion:
    """Expansions for queries, paid by what they retrieve."""

    carried: Sequence[str] = (LESSONS_FILE, CONTEXTS_FILE)

    def prepare(
        self,
        app: App,
        *,
        run: str,
        index: str,
        queries_file: Path | None,
        held_out: Sequence[Query],
        seed: int,
        report: Report,
    ) -> Prepared:
        """Make or find queries, contexts, teacher and warmed-up policy; see `infra.preparation`."""
        return prepare(
            app, run=run, index=index, queries_file=queries_file, held_out=held_out, seed=seed, report=report
        )

    def encoder(self, settings: Settings) -> Encode:
        """Return the prompt of query and context."""
        return partial(encode_request, settings=settings.prompts)

    @contextmanager
    def open_environment(self, app: App, run: RunSettings, report: Report) -> Iterator[Environment]:
        """Give the environment of a run: its index version, relevance model and reward as they were when it began."""
        catalogue = Catalogue(load_documents(app.home.index(run.index)))
        relevance = open_relevance(app, index=run.index, catalogue=catalogue, report=report)
        client = app.engine()
        retriever = Retriever(client, run.index_version, run.settings.retrieval)
        try:
            yield SearchEnvironment(retriever, relevance, run.settings.environment)
        finally:
            retriever.close()
            client.close()

    def rank(
        self, app: App, run: RunSettings, *, policy: str, given: tuple[Sequence[Query], Qrels] | None, report: Report
    ) -> list[Ranked]:
        """Return the held-out intents and the given queries, each searched with what the policy writes for it.

        policy: as in `search_queries`; "none", "rm3", "bo1", "knn" and "shown" are methods that learn nothing.
        """
        from infra.searching import search_queries

        intents = app.home.index(run.index) / "intents"
        asked = [(split, *load_intents(intents, split)) for split in HELD_OUT]
        sets = []
        for name, queries, qrels in [*asked, *([("given", *given)] if given else [])]:
            if not qrels:
                continue
            rankings = search_queries(app, queries, index=run.index, policy=policy, run=run.run, top=TOP, report=report)
            found = {query: dict(zip(each.ids, each.scores, strict=True)) for query, each in rankings.items()}
            sets.append(Ranked(name=name, run=found, qrels=qrels))
        return sets
