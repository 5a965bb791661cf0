"""Clicks in a run of live traffic become a relevance model, which pays a run; a later fit does not change that run."""

from __future__ import annotations

import uuid

import msgspec
import pytest

from infra.app.app import App
from infra.app.home import Home
from infra.app.indexing import index_corpus
from infra.app.run_settings import read_run_settings
from infra.recipes.leser.click_log import shown_lists
from infra.recipes.leser.people import People
from infra.recipes.leser.relevance import train_relevance
from infra.recipes.recipe import NewRun
from infra.runs.environments import open_environment
from infra.runs.training_runs import loop_run
from infra.simulating.people import Population
from infra.simulating.writing import simulate_into
from search_env.catalogue.generated import DemoSettings, demo_catalogue
from search_env.clicks.published import EYE_TRACKED
from search_env.engine.opening import open_catalogue
from search_env.models.relevance_sources import SourceSettings
from search_env.queries.intents import load_intents
from services.local import Endpoints
from storage.log import open_log
from streams.errors import SettingsError
from tests.loop.conftest import SMALL, quiet

IMPRESSIONS = 1_500
INDEX = "clicked"
ALONE = SourceSettings(structured=0, titles=0, judgments=0, folds=3)


def with_relevance(app: App, *, sources: SourceSettings = ALONE, version: str = "") -> App:
    settings = app.settings
    relevance = msgspec.structs.replace(settings.relevance, sources=sources, version=version, gate="off")
    lessons = msgspec.structs.replace(settings.lessons, labels="relevance")
    return app.with_settings(msgspec.structs.replace(settings, relevance=relevance, lessons=lessons))


def fitted(app: App, run: str, *, label: str = "") -> str:
    folder = app.home.index(INDEX)
    people = People(log=shown_lists(app.home, run))
    client = app.engine()
    catalogue = open_catalogue(client, folder)
    told = train_relevance(folder, app.settings, catalogue, people=people, report=quiet, label=label)
    client.close()
    return str(told["version"])


@pytest.fixture(scope="module")
def shop(local_services: Endpoints, tmp_path_factory: pytest.TempPathFactory) -> App:
    """Give an app with a small index, and settings that train without a warm-up."""
    settings = msgspec.structs.replace(
        SMALL,
        demo=DemoSettings(products=200),
        lessons=msgspec.structs.replace(SMALL.lessons, copied=0, catalogue=0, head=0),
        train=msgspec.structs.replace(SMALL.train, warm_up=False),
    )
    app = App(Home(tmp_path_factory.mktemp("clicked")), settings=settings).at(local_services)
    index_corpus(app, name=INDEX, documents=demo_catalogue(settings.demo), report=quiet)
    return app


@pytest.fixture(scope="module")
def clicks(shop: App) -> str:
    """Give a run of live traffic whose searches and clicks are simulated."""
    judged = load_intents(shop.home.index(INDEX).intents, "train")
    people = Population(impressions=IMPRESSIONS, clients=100, fraud=0.05, seed=1)
    name = f"clicks-{uuid.uuid4().hex[:8]}x"
    count = simulate_into(
        shop, into=name, index=INDEX, judged=judged, published=EYE_TRACKED, people=people, report=quiet
    )
    assert count == IMPRESSIONS
    return name


def test_simulated_searches_are_a_run_of_live_traffic(shop: App, clicks: str) -> None:
    with open_log(shop.home.run(clicks)) as log:
        (found,) = log.rows(
            "SELECT count(*) AS outcomes, count(*) FILTER (len(actions) > 0) AS clicked, count(DISTINCT client) AS "
            "clients, count(*) FILTER (policy <> '') AS explored FROM final_outcomes"
        )
    assert found["outcomes"] == IMPRESSIONS
    assert 0.1 * IMPRESSIONS < found["clicked"] < 0.9 * IMPRESSIONS
    assert 50 < found["clients"] <= 101
    assert 0.1 * IMPRESSIONS < found["explored"] < 0.3 * IMPRESSIONS


def test_a_fit_writes_down_its_window_and_clients(shop: App, clicks: str) -> None:
    log = shown_lists(shop.home, clicks)
    assert sum(behind - first for first, behind in log.window.values()) == IMPRESSIONS
    assert len(log.lists) + log.bots == IMPRESSIONS
    assert len({each.client for each in log.lists}) > 50
    assert "" not in {each.client for each in log.lists}


def test_clicks_alone_pay_a_run_that_keeps_its_version(shop: App, clicks: str) -> None:
    version = fitted(with_relevance(shop), clicks, label="november")
    new = NewRun(run="paid", index=INDEX)
    (first,) = loop_run(with_relevance(shop, version="november"), new, recipe="leser", updates=1, report=quiet)
    assert first.policy.step == 1
    counted = msgspec.structs.replace(ALONE, click_model="none")
    other = fitted(with_relevance(shop, sources=counted), clicks)
    assert other != version

    def paid_by() -> str:
        with open_environment(shop, read_run_settings(shop.home.run("paid"))) as environment:
            return str(environment.relevance_model)

    assert paid_by() == version
    (second,) = loop_run(with_relevance(shop), new, recipe="leser", updates=2, report=quiet)
    assert second.policy.step == 2
    assert paid_by() == version  # The newest model is another one by now.
    assert read_run_settings(shop.home.run("paid")).settings.relevance.version == version
    with pytest.raises(SettingsError, match=f"expected {version}, with which the run began, got '{other}'"):
        next(iter(loop_run(with_relevance(shop, version=other), new, recipe="leser", updates=3, report=quiet)))
