"""A run whose workers another machine starts ends as one whose workers `train` starts."""

from __future__ import annotations

import logging
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from kafka import TopicPartition
from kafka.structs import OffsetAndMetadata

import infra.runs.elsewhere
from infra.app.app import App
from infra.app.home import Home
from infra.app.run_settings import read_run_settings
from infra.recipes.recipe import Prepared, load_recipe
from infra.runs.elsewhere import needed_paths, wait_until_drained
from infra.runs.environments import open_environment
from infra.runs.loop import run_loop
from infra.runs.training import stream
from infra.runs.verification import verify_run
from learner.checkpoints import load_current
from services.local import Endpoints
from streams.clients import connect_admin, connect_producer, create_topics
from streams.delivery import DeliverySettings, Outbox
from streams.errors import SettingsError
from streams.requests import RequestSequence
from tests.commands import ROOT, command, environment
from tests.loop.conftest import SMALL, UPDATES, quiet
from tests.loop.test_streaming import weights_of
from tests.stored_events import generation, request, version

Make = Callable[..., Prepared]


def machine_for(role: str, source: Home, target: Path, run: str) -> Path:
    """Give a home with what a worker of this role needs of a run, and nothing else."""
    for path in needed_paths(source, run, role):
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        if (source.root / path).is_dir():
            shutil.copytree(source.root / path, target / path)
        else:
            shutil.copy2(source.root / path, target / path)
    return target


def test_workers_on_another_machine_give_the_weights_of_the_loop_in_one_process(
    small_world: App, local_services: Endpoints, new_run: Make, tmp_path: Path
) -> None:
    prepared, alone = new_run(SMALL), new_run(SMALL, "-alone")
    app, run = small_world.with_settings(SMALL), prepared.run
    # The environment shares no file with `train`. A generator reads new checkpoints, so it has the same home.
    homes = {"environment": machine_for("environment", app.home, tmp_path / "other", run), "generator": app.home.root}
    create_topics(app.settings.kafka, run, folder=app.home.run(run))
    workers = {
        role: subprocess.Popen(
            command(home, "run", role, "--run", run, "--worker", "7"), cwd=ROOT, env=environment(local_services)
        )
        for role, home in homes.items()
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


def test_an_environment_needs_no_checkpoint_and_a_generator_no_index(small_world: App, new_run: Make) -> None:
    run = new_run(SMALL).run
    settings, checkpoints = Path("runs", run, "settings.json"), Path("runs", run, "checkpoints")
    assert needed_paths(small_world.home, run, "generator") == (settings, checkpoints)
    read = needed_paths(small_world.home, run, "environment")
    assert settings in read and Path("indexes", "small") in read and checkpoints not in read
    with pytest.raises(SettingsError, match="got 'nobody'"):
        needed_paths(small_world.home, "nobody", "environment")


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
