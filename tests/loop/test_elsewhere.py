"""A run whose workers another machine starts ends as one whose workers `train` starts."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from kafka import TopicPartition
from kafka.structs import OffsetAndMetadata

import infra.runs.elsewhere
from infra.app.app import App
from infra.app.run_settings import read_run_settings
from infra.recipes.recipe import Prepared, load_recipe
from infra.runs.elsewhere import wait_until_drained
from infra.runs.environments import open_environment
from infra.runs.loop import run_loop
from infra.runs.sharing import share_run
from infra.runs.training import stream
from infra.runs.verification import verify_run
from learner.checkpoints import load_current
from services.local import Endpoints
from streams.clients import connect_admin, connect_producer, create_topics
from streams.delivery import DeliverySettings, Outbox
from streams.requests import RequestSequence
from streams.shared_store import StoreSettings
from tests.commands import ROOT, command, environment
from tests.loop.conftest import SMALL, UPDATES, quiet
from tests.loop.test_streaming import weights_of
from tests.stored_events import generation, request, version

Make = Callable[..., Prepared]


def test_workers_on_another_machine_give_the_weights_of_the_loop_in_one_process(
    small_world: App, local_services: Endpoints, new_run: Make, tmp_path: Path
) -> None:
    settings = msgspec.structs.replace(SMALL, store=StoreSettings(url=f"file://{tmp_path}/store"))
    prepared, alone = new_run(settings), new_run(SMALL, "-alone")
    app, run = small_world.with_settings(settings), prepared.run
    create_topics(app.settings.kafka, run, folder=app.home.run(run))
    share_run(app, run, quiet)
    workers = {  # Each has an empty home: the store gives it all that it needs.
        role: subprocess.Popen(
            command(tmp_path / role, "run", role, "--run", run, "--worker", "7"),
            cwd=ROOT,
            env=environment(local_services, settings),
        )
        for role in ("environment", "generator")
    }
    try:
        summary = stream(app, prepared, updates=UPDATES, seed=0, report=quiet, elsewhere=list(workers))
        assert [worker.poll() for worker in workers.values()] == [None, None], "a worker did not wait for more work"
    finally:
        for worker in workers.values():
            worker.terminate()
        ended = [worker.wait(timeout=60) for worker in workers.values()]
    assert ended == [143, 143]
    assert (summary.updates, summary.restarts) == (UPDATES, 0)
    assert sorted(path.name for path in app.home.run(run).logs.iterdir()) == ["learner.log", "sink.log"]
    assert verify_run(app, run, rebuild=True, offline=False).findings == ()
    sequence = RequestSequence(prepared.asked, run=run, seed=0)
    with open_environment(app, read_run_settings(app.home.run(run))) as opened:
        oracle = list(
            run_loop(
                [sequence[number] for number in range(UPDATES * SMALL.batch.groups)],
                run=run,
                run_dir=app.home.run(alone.run),
                environment=opened,
                generation=SMALL.generation,
                encode_prompt=load_recipe("leser").encoder(SMALL),
                batch=SMALL.batch,
                learner=SMALL.learner,
                seed=0,
            )
        )
    assert any(update.trained for update in oracle), "no group had spread: the comparison would say nothing"
    mine, theirs = (load_current(app.home.run(name).checkpoints)[0] for name in (run, alone.run))
    assert weights_of(mine) == weights_of(theirs)


def test_the_end_waits_for_the_answers_of_other_machines_but_not_for_ever(
    small_world: App, unique_name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kafka, run = small_world.settings.kafka, unique_name
    create_topics(kafka, run)
    producer = connect_producer(kafka, client_id="test")
    outbox = Outbox(producer, run, stage="requests", settings=DeliverySettings())
    granted = msgspec.structs.replace(version(0), run=run, requests_admitted={0: 2})
    for event in (*(request(number) for number in range(5)), granted, generation(0), generation(1)):
        outbox.send(event)
    outbox.flush()
    producer.close()
    monkeypatch.setattr(infra.runs.elsewhere, "DRAIN_SECONDS", 0.0)
    with caplog.at_level(logging.WARNING):
        assert not wait_until_drained(small_world, run, "generator")
        assert "generator on another machine has 2 records to answer" in caplog.text
        assert not wait_until_drained(small_world, run, "environment")
    admin = connect_admin(kafka)
    for role, kind in (("generator", "requests"), ("environment", "generations")):
        admin.alter_group_offsets(f"{run}.{role}", {TopicPartition(f"{run}.{kind}", 0): OffsetAndMetadata(2, "", -1)})
        assert wait_until_drained(small_world, run, role), "5 requests wait, but only 2 are granted"
    admin.close()
