"""Dev queries while a run learns: every due version is measured once, the best one is kept, and a run may end early."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from infra.app.app import App
from infra.app.run_settings import read_run_settings
from infra.app.settings import DevSettings, Settings
from infra.recipes.leser.searching import search_queries
from infra.recipes.recipe import Prepared
from infra.runs.dev import DevFiles, given_dev, keep_dev_files
from infra.runs.training import TrainingSummary, stream
from infra.runs.verification import verify_run
from learner.checkpoints import CURRENT, current_name
from learner.learning import LearnerSettings
from learner.versions import find_version
from search_env.queries.intents import load_intents
from storage.evaluation.measures import mean, measure_run
from storage.log import open_log
from streams.events import DevScore
from streams.ranges import read_events
from streams.topics import version_name
from tests.loop.conftest import SMALL, UPDATES, quiet

Make = Callable[..., Prepared]

EACH = DevSettings(every=1, queries_max=40)


def measured(dev: DevSettings) -> Settings:
    return msgspec.structs.replace(SMALL, dev=dev, learner=LearnerSettings(keep_every=1))


def scores(app: App, run: str) -> list[DevScore]:
    return read_events(app.connections.kafka, run, DevScore)


def streamed_with(app: App, prepared: Prepared, dev: DevSettings) -> TrainingSummary:
    return stream(app.with_settings(measured(dev)), prepared, updates=UPDATES, seed=0, report=quiet)


def test_every_version_is_measured_once_as_the_served_search_measures_it(small_world: App, new_run: Make) -> None:
    prepared = new_run(measured(EACH))
    summary = streamed_with(small_world, prepared, EACH)
    run_dir = small_world.home.run(prepared.run)
    found = scores(small_world, prepared.run)
    assert [score.policy.step for score in found] == list(range(UPDATES + 1))
    # The oracle: the verb's own search of the same queries, and trec_eval's measure.
    queries, qrels = load_intents(small_world.home.index("small") / "intents", "dev")
    asked = sorted(queries, key=lambda query: query.id)[: EACH.queries_max]
    for score in (found[0], found[-1]):
        rankings = search_queries(
            small_world,
            asked,
            index="small",
            policy=version_name(score.policy),
            run=prepared.run,
            top=100,
            report=quiet,
        )
        run = {query: dict(zip(each.ids, each.scores, strict=True)) for query, each in rankings.items()}
        expected = mean(measure_run(run, {query.id: qrels[query.id] for query in asked}, ["nDCG@10"])["nDCG@10"])
        assert score.value == pytest.approx(expected, abs=1e-12)
        assert score.sets[0].queries == len(asked)
    best = max(found, key=lambda score: (score.value, -score.policy.step))
    assert summary.best == version_name(best.policy)
    assert (summary.dev_first, summary.dev_best, summary.ended_early) == (found[0].value, best.value, False)
    assert find_version(run_dir / "checkpoints", "best")[1].policy == best.policy
    with open_log(run_dir) as log:
        rows = log.rows("SELECT step, value, sets[1].queries AS queries FROM first_dev_scores ORDER BY step")
    assert [(row["step"], row["value"]) for row in rows] == [(score.policy.step, score.value) for score in found]
    assert verify_run(small_world, prepared.run, rebuild=True, offline=False).findings == ()


def test_a_run_that_no_longer_gains_ends_early_and_again_at_once(small_world: App, new_run: Make) -> None:
    impatient = DevSettings(every=1, queries_max=10, gain_min=1.0, patience=2)  # Nothing gains by more than 1.
    prepared = new_run(measured(impatient), updates=1000)
    app = small_world.with_settings(measured(impatient))
    summary = stream(app, prepared, updates=1000, seed=0, report=quiet)
    assert summary.ended_early
    assert 2 <= summary.updates < 1000
    checkpoints = small_world.home.run(prepared.run) / "checkpoints"
    assert find_version(checkpoints, "best")[1].policy.step == 0
    before = (checkpoints / CURRENT).read_text()
    again = stream(app, prepared, updates=1000, seed=0, report=quiet)
    assert again.ended_early
    assert int(current_name(checkpoints)[-6:]) - int(before.strip()[-6:]) <= 2  # The learner may be a step ahead.


def test_judged_queries_of_the_users_own_are_one_more_set(small_world: App, new_run: Make, tmp_path: Path) -> None:
    last = DevSettings(every=UPDATES, queries_max=6)
    prepared = new_run(measured(last))
    queries, qrels = load_intents(small_world.home.index("small") / "intents", "test_pair")
    own = [query for query in queries if query.id in qrels][:5]
    (tmp_path / "queries.jsonl").write_bytes(
        msgspec.json.Encoder().encode_lines([{"_id": query.id, "text": query.text} for query in own])
    )
    lines = [f"{query.id}\t{document}\t{grade}\n" for query in own for document, grade in qrels[query.id].items()]
    (tmp_path / "qrels.tsv").write_text("".join(lines))
    run_dir = small_world.home.run(prepared.run)
    keep_dev_files(run_dir, DevFiles(queries=tmp_path / "queries.jsonl", qrels=tmp_path / "qrels.tsv"))
    given = given_dev(run_dir)
    assert given is not None
    assert [query.id for query in given[0]] == [query.id for query in own]
    streamed_with(small_world, prepared, last)
    for score in scores(small_world, prepared.run):
        assert [(each.name, each.queries) for each in score.sets] == [("dev", 6), ("judged queries", 5)]
        assert score.value == pytest.approx(sum(each.measures["nDCG@10"] for each in score.sets) / 2)
    assert read_run_settings(run_dir).updates == UPDATES
