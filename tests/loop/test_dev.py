"""Dev queries while a run learns: every due version is measured once, the best one is kept, and a run may end early."""

from __future__ import annotations

import os
import shutil
import signal
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
from infra.runs.living import living_workers
from infra.runs.topics import make_topics
from infra.runs.training import TrainingSummary, stream
from infra.runs.verification import verify_run
from learner.checkpoints import CURRENT, current_name, load_current
from learner.learning import LearnerSettings
from learner.versions import find_version
from search_env.queries.intents import load_intents
from storage.evaluation.measures import mean, measure_run
from storage.log import open_log
from streams.clients import connect_producer
from streams.codec import encode_event
from streams.events import DevScore, DevSet, PolicyRef, PolicyVersion
from streams.ranges import read_events
from streams.topics import topic_name, version_name
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


def test_scores_that_are_not_the_runs_count_for_nothing_and_a_killed_evaluator_goes_on(
    small_world: App, new_run: Make
) -> None:
    patient = DevSettings(every=1, queries_max=6, patience=1000)
    prepared = new_run(measured(patient))
    app = small_world.with_settings(measured(patient))
    run_dir, kafka = app.home.run(prepared.run), app.connections.kafka
    make_topics(app, prepared.run)
    first = load_current(run_dir / "checkpoints")[1].policy
    best = DevScore(
        run=prepared.run,
        policy=first,
        index=prepared.index,
        measure="nDCG@10",
        value=1.0,
        sets=(DevSet(name="dev", queries=6, measures={"nDCG@10": 1.0}),),
    )
    unknown = PolicyRef(lineage="9-ffffff", step=3, sha256="f" * 64)
    forged = [
        msgspec.structs.replace(best, run="another"),
        msgspec.structs.replace(best, index="another-1"),
        msgspec.structs.replace(best, measure="R@100"),
        msgspec.structs.replace(best, sets=()),
        msgspec.structs.replace(best, policy=unknown),
        msgspec.structs.replace(best, policy=msgspec.structs.replace(first, lineage="../../1-a")),
    ]
    announced = PolicyVersion(run="another", policy=unknown, parent=None, path="checkpoints/9-ffffff-000003")
    producer = connect_producer(kafka, client_id="forger")
    for event in [*forged, announced]:
        topic = topic_name(prepared.run, "policy-versions" if isinstance(event, PolicyVersion) else "dev-scores")
        producer.send(topic, encode_event(event), partition=0)
    for garbage in (b"", b"{", encode_event(best).replace(b"1.0", b"NaN"), encode_event(best).replace(b"1.0", b"null")):
        producer.send(topic_name(prepared.run, "dev-scores"), garbage, partition=0)
    producer.flush()
    producer.close()
    killed = []

    def kill_the_evaluator(what: str, done: int, total: int) -> None:
        for name, role, pid in living_workers(app.home.runs):
            if (name, role) == (prepared.run, "evaluator") and len(killed) < 3 and pid not in killed:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    summary = stream(app, prepared, updates=UPDATES, seed=0, report=kill_the_evaluator)
    assert killed and summary.updates == UPDATES and not summary.ended_early
    found = [score for score in scores(app, prepared.run) if score.made_at_ms]  # The forged ones have no time.
    assert {score.policy.step for score in found} == set(range(UPDATES + 1))
    assert summary.dev_first == next(score.value for score in found if score.policy == first) < 1.0
    assert summary.dev_best == max(score.value for score in found) < 1.0
    assert find_version(run_dir / "checkpoints", "best")[1].policy.lineage != unknown.lineage
    assert verify_run(app, prepared.run, rebuild=True, offline=False).findings == ()


def test_a_run_whose_last_checkpoint_is_gone_before_it_is_measured_ends_and_says_so(
    small_world: App, new_run: Make, caplog: pytest.LogCaptureFixture
) -> None:
    dev = DevSettings(every=2, queries_max=6)
    settings = msgspec.structs.replace(
        measured(dev), delivery=msgspec.structs.replace(SMALL.delivery, stall_seconds=2.0)
    )
    prepared = new_run(settings, updates=2)
    app = small_world.with_settings(settings)
    root = app.home.run(prepared.run) / "checkpoints"

    def take_it_away(what: str, done: int, total: int) -> None:
        evaluators = [pid for _, role, pid in living_workers(app.home.runs) if role == "evaluator"]
        for pid in evaluators:
            os.kill(pid, signal.SIGSTOP)
        if what.startswith("updates") and done == total:
            shutil.rmtree(root / current_name(root))
            for pid in evaluators:
                os.kill(pid, signal.SIGCONT)

    stream(app, prepared, updates=2, seed=0, report=take_it_away)
    assert "ends without the dev score of its last version" in caplog.text
