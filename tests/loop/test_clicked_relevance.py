"""Clicks in a run of live traffic become a relevance model, which pays a run; a later fit does not change that run."""

from __future__ import annotations

import shutil

import msgspec
import pytest

from infra.app.app import App
from infra.recipes.leser.click_log import shown_lists
from infra.recipes.leser.closed_kinds import JUDGE_FILE
from infra.recipes.leser.people import People
from infra.recipes.leser.relevance import train_relevance
from infra.recipes.recipe import NewRun
from infra.runs.training_runs import train_run
from infra.simulating.people import Population
from infra.simulating.writing import simulate_into
from search_env.clicks.published import EYE_TRACKED
from search_env.engine.opening import open_catalogue
from search_env.models.relevance_sources import SourceSettings
from search_env.models.relevance_versions import version_folder
from search_env.queries.intents import load_intents
from storage.log import open_log
from streams.errors import SettingsError
from tests.loop.conftest import quiet

IMPRESSIONS = 2_000
ALONE = SourceSettings(structured=0, titles=0, judgments=0, folds=3)


def with_relevance(app: App, *, sources: SourceSettings = ALONE, version: str = "") -> App:
    settings = app.settings
    relevance = msgspec.structs.replace(settings.relevance, sources=sources, version=version, gate="off")
    lessons = msgspec.structs.replace(settings.lessons, labels="relevance")
    return app.with_settings(msgspec.structs.replace(settings, relevance=relevance, lessons=lessons))


def fitted(app: App, run: str, *, label: str = "") -> str:
    folder = app.home.index("small")
    people = People(log=shown_lists(app.home, run))
    client = app.engine()
    catalogue = open_catalogue(client, folder)
    told = train_relevance(folder, app.settings, catalogue, people=people, report=quiet, label=label)
    client.close()
    return str(told["version"])


@pytest.fixture
def clicks(small_world: App, unique_name: str) -> str:
    """Give a run of live traffic whose searches and clicks are simulated."""
    run = f"clicks-{unique_name}"
    judged = load_intents(small_world.home.index("small").intents, "train")
    people = Population(impressions=IMPRESSIONS, clients=100, fraud=0.05, seed=1)
    count = simulate_into(
        small_world, into=run, index="small", judged=judged, published=EYE_TRACKED, people=people, report=quiet
    )
    assert count == IMPRESSIONS
    return run


def test_clicks_alone_pay_a_run_that_keeps_its_version(small_world: App, clicks: str, unique_name: str) -> None:
    with open_log(small_world.home.run(clicks)) as log:
        (found,) = log.rows(
            "SELECT count(*) AS outcomes, count(*) FILTER (len(actions) > 0) AS clicked, count(DISTINCT client) AS "
            "clients, count(*) FILTER (policy <> '') AS explored FROM final_outcomes"
        )
    assert found["outcomes"] == IMPRESSIONS
    assert 0.1 * IMPRESSIONS < found["clicked"] < 0.9 * IMPRESSIONS
    assert 50 < found["clients"] <= 101
    assert 0.1 * IMPRESSIONS < found["explored"] < 0.3 * IMPRESSIONS
    app = with_relevance(small_world)
    folder = app.home.index("small").relevance
    aside = folder.with_name(f"relevance-before-{unique_name}")
    shutil.copytree(folder, aside)
    try:
        version = fitted(app, clicks, label="november")
        run = f"paid-{unique_name}"
        shutil.copytree(app.home.run("first"), app.home.run(run), ignore=shutil.ignore_patterns(JUDGE_FILE))
        new = NewRun(run=run, index="small")
        paid_by = with_relevance(small_world, version="november")
        train_run(paid_by, new, recipe="leser", updates=1, report=quiet)
        changed = msgspec.structs.replace(ALONE, click_model="none")
        other = fitted(with_relevance(small_world, sources=changed), clicks)
        assert other != version
        assert version_folder(folder, "") == folder
        train_run(with_relevance(small_world), new, recipe="leser", updates=2, report=quiet)
        with open_log(app.home.run(run)) as log:
            assert log.rows("SELECT DISTINCT relevance_model AS model FROM rewards") == [{"model": version}]
        with pytest.raises(SettingsError, match=f"expected {version}, with which the run began, got '{other}'"):
            train_run(with_relevance(small_world, version=other), new, recipe="leser", updates=3, report=quiet)
    finally:
        shutil.rmtree(folder)
        aside.rename(folder)


def test_a_fit_writes_down_its_window_clients_and_positions(small_world: App, clicks: str) -> None:
    log = shown_lists(small_world.home, clicks)
    assert sum(next_ - first for first, next_ in log.window.values()) == IMPRESSIONS
    assert len(log.lists) + log.bots == IMPRESSIONS
    assert len({each.client for each in log.lists}) > 50
    assert "" not in {each.client for each in log.lists}
