"""A small world that every loop test shares: a generated catalogue, and settings that train in seconds."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infra.app.app import App
from infra.app.home import Home
from infra.app.indexing import index_corpus
from infra.app.installation import INSTALLATION_FILE
from infra.app.run_settings import RunSettings, write_run_settings
from infra.app.settings import Settings
from infra.recipes.leser.preparation import prepare
from infra.recipes.recipe import NewRun, Prepared
from infra.runs.training import stream
from learner.batches import BatchSettings
from learner.generation import GenerationSettings
from learner.policy_settings import PolicySettings, TinySettings
from learner.warmup import WarmupSettings
from search_env.catalogue.generated import DemoSettings, demo_catalogue
from search_env.leser.lessons import LessonSettings
from search_env.models.training_pairs import GbdtSettings
from search_env.queries.intents import IntentSettings
from services.local import Endpoints
from streams.kafka_settings import KafkaSettings

SMALL = Settings(
    demo=DemoSettings(products=500),
    intents=IntentSettings(queries=300),
    gbdt=GbdtSettings(trees=30, queries_max=100),
    lessons=LessonSettings(catalogue=600, head=20, taught_share=0.5),
    policy=PolicySettings(tiny=TinySettings(vocabulary_size=900, hidden_size=64, layers=2, feedforward_size=128)),
    reading_warmup=WarmupSettings(epochs_max=2, learning_rate=5e-3, batch_size=16),
    warmup=WarmupSettings(epochs_max=6, learning_rate=5e-3, batch_size=16),
    generation=GenerationSettings(candidates=4, tokens_max=16),
    batch=BatchSettings(groups=4, staleness_max=0),
    kafka=KafkaSettings(partitions=1),  # So that a test can speak of the n-th record of a topic.
)


UPDATES = 4


def quiet(what: str, done: int, total: int) -> None:
    """Report nothing."""


@pytest.fixture(scope="session")
def small_world(local_services: Endpoints, tmp_path_factory: pytest.TempPathFactory) -> App:
    """Give an app whose index `small` is there and whose run `first` has a warmed-up policy; runs are copies of it."""
    home = Home(tmp_path_factory.mktemp("home"))
    # Of all sessions the same: on services that stay up, `small` is there already, and only its own home replaces it.
    (home.root / INSTALLATION_FILE).write_text("7e57" * 8)
    app = App(home, settings=SMALL).at(local_services)
    index_corpus(app, name="small", documents=demo_catalogue(SMALL.demo), report=quiet)
    prepare(app, NewRun(run="first", index="small"), quiet)
    return app


@pytest.fixture(scope="session")
def streamed(small_world: App) -> tuple[App, Prepared]:
    """Give one streaming run with a staleness limit of 0, finished; many tests look at it, none changes it."""
    run = "streamed"
    shutil.copytree(small_world.home.run("first"), small_world.home.run(run))
    prepared = prepare(small_world, NewRun(run=run, index="small"), quiet)
    kept = RunSettings(
        run=run, recipe="leser", index="small", index_version=prepared.index, seed=0, updates=UPDATES, settings=SMALL
    )
    write_run_settings(small_world.home.run(run), kept)
    stream(small_world, prepared, updates=UPDATES, seed=0, report=quiet)
    return small_world, prepared


@pytest.fixture
def new_run(small_world: App, unique_name: str) -> Iterator[Callable[..., Prepared]]:
    """Give a function that makes a run from the warmed-up policy, with settings and a number of updates of its own.

    updates: what the learner stops at; a test that streams asks for as many, or the learner may be one ahead of it.
    """
    made: list[Path] = []

    def make(settings: Settings, suffix: str = "", updates: int = UPDATES) -> Prepared:
        run = f"{unique_name}{suffix}"
        folder = small_world.home.run(run)
        shutil.copytree(small_world.home.run("first"), folder)
        made.append(folder)
        app = small_world.with_settings(settings)
        prepared = prepare(app, NewRun(run=run, index="small"), quiet)
        write_run_settings(
            folder,
            RunSettings(
                run=run,
                recipe="leser",
                index="small",
                index_version=prepared.index,
                seed=0,
                updates=updates,
                settings=settings,
            ),
        )
        return prepared

    yield make
    for folder in made:
        shutil.rmtree(folder, ignore_errors=True)
