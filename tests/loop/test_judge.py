"""The relevance model judged on a real search: its check, the gate of a run, and rankings behind it as a ranker."""

from __future__ import annotations

import shutil

import msgspec
import pytest

from infra.app.app import App
from infra.commands.relevance import CONTROL, train_and_check
from infra.experiments.measuring import rank_run, without_run
from infra.recipes.leser.closed_kinds import JUDGE_FILE, read_verdict
from infra.recipes.leser.judging import JUDGED, PAIRS, TITLES, VALUES
from infra.recipes.leser.people import People
from infra.recipes.leser.preparation import prepare
from infra.recipes.recipe import GIVEN, NewRun
from search_env.catalogue.corpora import Qrels, Query
from search_env.engine.ranker import BEHIND
from search_env.queries.intents import load_intents
from storage.evaluation.measures import mean, measure_run
from streams.errors import SettingsError
from tests.loop.conftest import quiet


@pytest.fixture(scope="module")
def judged(small_world: App) -> tuple[list[Query], Qrels]:
    """Training queries as judged ones: their matches have grade 1, and the matches of the next one grade 0."""
    queries, qrels = load_intents(small_world.home.index("small").intents, "train")
    queries = queries[:60]
    grades = [dict.fromkeys(list(qrels[query.id])[:10], 1) for query in queries]
    others = [dict.fromkeys(of, 0) for of in (*grades[1:], grades[0])]
    return queries, {q.id: other | mine for q, mine, other in zip(queries, grades, others, strict=True)}


@pytest.fixture
def own_model(small_world: App):  # type: ignore[no-untyped-def]
    """Put the relevance model of `small` back after a test that trains another one."""
    folder = small_world.home.index("small").relevance
    aside = folder.with_name("relevance-before")
    shutil.copytree(folder, aside)
    yield folder
    shutil.rmtree(folder)
    aside.rename(folder)


def test_a_model_of_judgments_is_checked_with_a_control_and_kept(
    small_world: App,
    judged: tuple[list[Query], Qrels],
    own_model: object,
) -> None:
    people = People(judged=judged)
    trained, check, verdict = train_and_check(small_world, "small", people, train=True, samples=200, report=quiet)
    assert (trained["judged_queries"], trained["judgments"]) == (60, sum(map(len, judged[1].values())))
    assert [each.kind for each in check.kinds] == [PAIRS, VALUES, TITLES, JUDGED, CONTROL]
    on_judged, control = check.of(JUDGED), check.of(CONTROL)
    assert on_judged is not None and control is not None
    assert on_judged.queries == 60
    assert on_judged.gain.value is not None and control.gain.value is not None
    assert on_judged.gain.value > control.gain.value
    assert all(each.reliability is not None and each.reliability.pairs > 0 for each in check.kinds)
    assert [each.kind for each in verdict.kinds] == [PAIRS, VALUES, TITLES, JUDGED]
    again = train_and_check(small_world, "small", People(), train=False, samples=200, report=quiet)
    assert again[0] == {}
    assert again[1].model == check.model
    assert again[1].of(JUDGED) == on_judged  # A check without judged queries keeps what is known about them.


def test_a_run_takes_no_requests_of_a_kind_whose_judge_is_worse(small_world: App) -> None:
    settings = small_world.settings
    noisy = msgspec.structs.replace(settings.relevance, noise_std=1.0)  # This judge ranks almost at random.
    app = small_world.with_settings(msgspec.structs.replace(settings, relevance=noisy))
    for run in ("judged", "open"):
        shutil.copytree(
            small_world.home.run("first"), small_world.home.run(run), ignore=shutil.ignore_patterns(JUDGE_FILE)
        )
    closed = prepare(app, NewRun(run="judged", index="small"), quiet)
    verdict = read_verdict(app.home.run("judged"))
    assert verdict is not None
    assert [each.kind for each in verdict.closed] == [TITLES]  # Of titles, even the raw order is nearly perfect.
    heads = {each.query for each in closed.asked}
    off = msgspec.structs.replace(noisy, gate="off")
    everything = prepare(
        app.with_settings(msgspec.structs.replace(settings, relevance=off)), NewRun(run="open", index="small"), quiet
    )
    missing = {each.query for each in everything.asked} - heads
    assert len(missing) == next(each.queries for each in verdict.closed)
    assert prepare(app, NewRun(run="judged", index="small"), quiet) == closed


def test_a_ranker_shows_every_set_once_more(small_world: App, judged: tuple[list[Query], Qrels]) -> None:
    run = without_run(small_world, recipe="leser", index="small", seed=0)

    def ranked(depth: int):  # type: ignore[no-untyped-def]
        changes = {"ranker": {"depth": depth}}
        return rank_run(small_world, run, policy="none", given=judged, report=quiet, changes=changes)

    plain, behind = ranked(0), ranked(100)
    assert [each.name for each in plain] == ["held-out value pairs", "held-out values", GIVEN]
    assert [each.name for each in behind] == [each.name for each in plain] + [each.name + BEHIND for each in plain]
    assert behind[: len(plain)] == plain
    for before, after in zip(plain, behind[len(plain) :], strict=True):
        assert after.qrels == before.qrels
        assert {query: set(of) for query, of in after.run.items()} == {
            query: set(of) for query, of in before.run.items()
        }
    raw, reranked = (mean(measure_run(each.run, each.qrels, ["nDCG@10"])["nDCG@10"]) for each in (plain[0], behind[3]))
    assert reranked > raw


def test_traffic_that_is_not_there_is_refused_by_name(small_world: App) -> None:
    from infra.recipes.leser.click_log import shown_lists

    with pytest.raises(SettingsError, match="run 'first' has stored no traffic yet"):
        shown_lists(small_world.home, "first")
