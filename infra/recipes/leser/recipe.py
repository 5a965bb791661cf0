"""LESER (arXiv:2509.05570) as a recipe: the policy sees a query and its results now, and writes expansions."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial

from infra.app.app import App
from infra.app.progress import Report
from infra.app.run_settings import RunSettings
from infra.app.settings import Settings
from infra.recipes.held_out import dev_intents, held_out_intents, ranked
from infra.recipes.leser.behind import Rankers, sets_behind
from infra.recipes.leser.preparation import CONTEXTS_FILE, LESSONS_FILE, prepare
from infra.recipes.leser.relevance import open_relevance
from infra.recipes.recipe import TOP, Judged, NewRun, Prepared, RankDev, Ranked
from learner.generation import Encode
from learner.prompts import tokenize_request
from search_env.engine.opening import open_catalogue, open_searcher
from search_env.environments import Environment
from search_env.leser.environment import LeserEnvironment


class Leser:
    """Expansions of queries, rewarded by the documents that they retrieve."""

    carried: Sequence[str] = (LESSONS_FILE, CONTEXTS_FILE)
    methods: Sequence[str] = ("none", "rm3", "bo1", "minilm")
    ranker = True  # `rank` heeds `ranker.depth`.

    def __init__(self) -> None:
        self._rankers = Rankers()

    def prepare(self, app: App, new: NewRun, report: Report) -> Prepared:
        """Make or find queries, contexts, teacher and warmed-up policy; see `infra.recipes.leser.preparation`."""
        if app.settings.leser.rewards == "clicks":
            from infra.runs.listening import begin_live
            from infra.runs.rights import give_rights

            begin_live(app, app.settings.leser.clicks.live)
            give_rights(app, app.settings.leser.clicks.live)
        return prepare(app, new, report)

    def encoder(self, settings: Settings) -> Encode:
        """Return the prompt of query and context."""
        return partial(tokenize_request, settings=settings.prompts)

    @contextmanager
    def open_environment(self, app: App, run: RunSettings, report: Report) -> Iterator[Environment]:
        """Yield the environment of a run: its index version, relevance model and reward as they were when it began.

        With `leser.rewards = "clicks"`, people's clicks reward, and neither the engine nor the model is asked.
        """
        if run.settings.leser.rewards == "clicks":
            from infra.recipes.leser.clicked import open_clicked

            with open_clicked(app, run) as clicked:
                yield clicked
            return
        folder = app.home.index(run.index)
        with (
            contextlib.closing(app.engine()) as client,
            contextlib.closing(
                open_searcher(client, folder, run.settings.retrieval, version=run.index_version)
            ) as searcher,
        ):
            catalogue = open_catalogue(client, folder)
            relevance = open_relevance(folder, app.settings, catalogue=catalogue, report=report)
            yield LeserEnvironment(searcher, relevance, run.settings.leser)

    def open_dev(
        self, app: App, run: RunSettings, *, queries_max: int, given: Judged | None, report: Report
    ) -> AbstractContextManager[RankDev]:
        """Give the function that searches dev intents, and the given queries, with a version's expansions."""
        from infra.recipes.leser.dev import open_dev
        from infra.recipes.leser.expanding import LeserRun

        opened = LeserRun(index=app.home.index(run.index), folder=app.home.run(run.run), kept=run, engine=app.engine)
        return open_dev(opened, dev_intents(app.home.index(run.index), queries_max, given), report)

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
        """Search the held-out intents and the given queries with the policy's expansions.

        policy: as in `search_queries`; "none", "rm3", "bo1", "minilm", "knn" and "shown" learn nothing. With
        `ranker.depth`, every set follows once more, behind the ranker.
        """
        from infra.recipes.leser.searching import search_queries

        found = [
            (
                each,
                search_queries(
                    app,
                    each.queries,
                    index=run.index,
                    policy=policy,
                    run=run.run,
                    top=top,
                    report=report,
                    temperature=temperature,
                ),
            )
            for each in held_out_intents(app.home.index(run.index), given)
        ]
        depth = app.settings.ranker.depth
        if not depth:
            return [ranked(each, rankings) for each, rankings in found]
        with self._rankers.open(app.home.index(run.index), app.settings, app.engine, report) as model:
            return sets_behind(found, model, depth=depth)
