"""The streaming loop: equal to the loop in one process, whole after kill -9, and everything it did is in DuckDB."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import msgspec
import psutil
import pytest
from kafka import TopicPartition
from safetensors.torch import load_file

from infra.app.app import App
from infra.app.run_settings import read_run_settings
from infra.app.settings import Settings
from infra.recipes.recipe import Prepared, load_recipe
from infra.runs.environments import open_environment
from infra.runs.living import living_workers
from infra.runs.loop import run_loop
from infra.runs.supervisor import Supervisor, worker_arguments
from infra.runs.training import stream
from infra.runs.verification import verify_run
from infra.runs.workers import run_worker
from learner.batches import BatchSettings
from learner.checkpoints import load_current, read_manifest
from learner.lock import only_learner
from streams.clients import connect_consumer, create_topics
from streams.codec import decode
from streams.delivery import DeliverySettings, poll
from streams.errors import DeliveryError, SettingsError
from streams.events import Event, Generation, PolicyVersion, Reward, Update
from streams.lag import end_offsets
from streams.requests import RequestSequence
from streams.stopping import Stop
from streams.topics import topic_name
from tests.faults.progress import signal_role
from tests.loop.conftest import SMALL, UPDATES, quiet

Make = Callable[..., Prepared]


def events_of(app: App, run: str, kind: str) -> list[Event]:
    """Read a topic from its beginning to its end."""
    partition = TopicPartition(topic_name(run, kind), 0)
    end = end_offsets(app.settings.kafka, [partition])[partition]
    consumer = connect_consumer(app.settings.kafka, {partition: None}, client_id="test", records_max=1000)
    found: list[Event] = []
    while consumer.position(partition) < end:
        found += [decode(record.value) for record in poll(consumer, DeliverySettings())]
    consumer.close()
    return found


def weights_of(folder: Path) -> dict[str, bytes]:
    """Return every tensor's bytes."""
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(folder / "model.safetensors").items()}


def test_streaming_on_policy_gives_the_groups_rewards_and_weights_of_the_loop_in_one_process(
    streamed: tuple[App, Prepared], new_run: Make
) -> None:
    app, prepared = streamed
    alone = new_run(SMALL, "-alone")
    # The same run name, so that group ids and seeds are the same; another folder, so that the files are not.
    sequence = RequestSequence(prepared.asked, run="streamed", seed=0)
    requests = [sequence[number] for number in range(UPDATES * SMALL.batch.groups)]
    kept = read_run_settings(app.home.run("streamed"))
    with open_environment(app, kept) as environment:
        updates = list(
            run_loop(
                requests,
                run="streamed",
                run_dir=app.home.run(alone.run),
                environment=environment,
                generation=SMALL.generation,
                encode_prompt=load_recipe("leser").encoder(SMALL),
                batch=SMALL.batch,
                learner=SMALL.learner,
                seed=0,
            )
        )
    published = [event for event in events_of(app, "streamed", "updates") if isinstance(event, Update)]
    by_step = {update.policy.step: update for update in published}
    assert [by_step[update.policy.step].trained for update in updates] == [update.trained for update in updates]
    for update in updates:
        assert by_step[update.policy.step].metrics["reward_mean"] == update.metrics["reward_mean"]
        assert by_step[update.policy.step].metrics["loss"] == update.metrics["loss"]
    mine, _ = load_current(app.home.run("streamed") / "checkpoints")
    oracle, _ = load_current(app.home.run(alone.run) / "checkpoints")
    assert weights_of(mine) == weights_of(oracle)
    assert any(update.trained for update in updates), "no group had spread: the comparison would say nothing"


def test_every_group_of_an_on_policy_run_was_written_by_the_version_it_teaches(
    streamed: tuple[App, Prepared],
) -> None:
    app, _ = streamed
    rewards = {e.group_id: e for e in events_of(app, "streamed", "rewards") if isinstance(e, Reward)}
    for update in (e for e in events_of(app, "streamed", "updates") if isinstance(e, Update)):
        for group in update.trained:
            assert rewards[group].generation.policy.step == update.policy.step - 1


def test_every_event_is_in_duckdb_with_its_offset(streamed: tuple[App, Prepared]) -> None:
    app, _ = streamed
    ledger = duckdb.connect(str(app.home.run("streamed") / "searchloop.duckdb"), read_only=True)
    stored = dict(ledger.execute("SELECT topic, sum(next_offset) FROM sink_offsets GROUP BY topic").fetchall())
    for kind in ("requests", "generations", "rewards", "updates", "policy-versions"):
        topic = topic_name("streamed", kind)
        assert stored[topic] == end_offsets(app.settings.kafka, [TopicPartition(topic, 0)])[TopicPartition(topic, 0)]
    generations = [e for e in events_of(app, "streamed", "generations") if isinstance(e, Generation)]
    (count,) = ledger.execute("SELECT count(*) FROM generations").fetchone() or (0,)
    # The generator may have answered the last version too before it was stopped.
    assert count == len(generations) >= UPDATES * SMALL.batch.groups
    ledger.close()


def test_a_sink_killed_after_the_last_update_leaves_nothing_out_of_the_ledger(small_world: App, new_run: Make) -> None:
    prepared = new_run(SMALL)
    app, run = small_world.with_settings(SMALL), prepared.run
    killed: list[str] = []

    def kill_the_sink_at_the_end(what: str, done: int, total: int) -> None:
        if done == total and not killed:
            signal_role(app, run, "sink", signal.SIGKILL)
            killed.append(what)

    summary = stream(app, prepared, updates=UPDATES, seed=0, report=kill_the_sink_at_the_end)
    assert killed and (summary.updates, summary.restarts) == (UPDATES, 0)
    assert verify_run(app, run, rebuild=True, offline=False).findings == ()


def test_the_run_is_proved_from_its_topics_its_ledger_and_its_checkpoints(streamed: tuple[App, Prepared]) -> None:
    app, _ = streamed
    account = verify_run(app, "streamed", rebuild=True, offline=False)
    assert account.findings == ()
    assert account.kafka and not account.live and account.uses_max == 1
    assert all(row.residual == 0 and row.behind == 0 for row in account.partitions)
    learner = account.stages[2]
    assert learner.taken == UPDATES * SMALL.batch.groups
    (folder,) = (app.home.run("streamed") / "archive" / topic_name("streamed", "rewards")).glob("0")
    for segment in folder.iterdir():
        segment.rename(segment.with_suffix(".away"))
    try:
        account = verify_run(app, "streamed", rebuild=False, offline=False)
        assert {finding.rule for finding in account.findings} >= {"archive", "bytes are kept"}
    finally:
        for segment in folder.iterdir():
            segment.rename(segment.with_suffix(".parquet"))


def test_a_version_is_announced_only_with_a_checkpoint_that_is_whole(streamed: tuple[App, Prepared]) -> None:
    app, _ = streamed
    announced = [e for e in events_of(app, "streamed", "policy-versions") if isinstance(e, PolicyVersion)]
    retired = {e.policy for e in announced if e.status == "retired"}
    kept = [e for e in announced if e.status == "published" and e.policy not in retired]
    assert len({e.policy.step for e in announced}) == UPDATES + 1
    for event in kept:
        assert read_manifest(app.home.run("streamed") / event.path, verify=True).policy == event.policy


def test_a_new_run_is_refused_where_its_topics_hold_another_runs_updates(small_world: App, new_run: Make) -> None:
    app = small_world.with_settings(SMALL)
    prepared = new_run(SMALL, updates=1)
    assert stream(app, prepared, updates=1, seed=0, report=quiet).updates == 1
    shutil.rmtree(app.home.run(prepared.run))
    again = new_run(SMALL, updates=1)
    with pytest.raises(SettingsError, match=r"got updates of another run of that name.*another --run NAME"):
        stream(app, again, updates=1, seed=0, report=quiet)


def test_a_learner_killed_in_mid_run_goes_on_and_trains_no_group_twice(small_world: App, new_run: Make) -> None:
    updates = 8
    settings: Settings = msgspec.structs.replace(SMALL, batch=BatchSettings(groups=4, staleness_max=1))
    prepared = new_run(settings, updates=updates)
    app = small_world.with_settings(settings)
    killed: list[int] = []
    finished = threading.Event()

    def kill_when_it_has_learned() -> None:
        checkpoints = app.home.run(prepared.run) / "checkpoints"
        while not finished.is_set():
            step = load_current(checkpoints)[1].policy.step
            if step >= 2 * (len(killed) + 1) and len(killed) < 3:
                pid = learner_pid(app, prepared.run)
                if pid and pid not in killed:
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
            finished.wait(0.05)

    killer = threading.Thread(target=kill_when_it_has_learned)
    killer.start()
    try:
        summary = stream(app, prepared, updates=updates, seed=0, report=quiet)
    finally:
        finished.set()
        killer.join()
    assert summary.updates == updates
    assert len(killed) == 3
    assert summary.restarts >= 3
    lineage = surviving(app, prepared.run)
    trained = [group for update in lineage for group in update.trained]
    assert len(trained) == len(set(trained))
    taken = [g for update in lineage for g in (*update.trained, *update.flat, *update.failed, *update.expired)]
    assert len(taken) == len(set(taken)) == updates * 4
    assert [update.policy.step for update in lineage] == list(range(1, updates + 1))
    account = verify_run(app, prepared.run, rebuild=True, offline=False)
    assert account.findings == ()


def learner_pid(app: App, run: str) -> int | None:
    """Return the living learner's pid, from the file that the supervisor keeps."""
    return next((pid for name, role, pid in living_workers(app.home.runs) if (name, role) == (run, "learner")), None)


def surviving(app: App, run: str) -> list[Update]:
    """Return the updates that led to the newest checkpoint, from parent to parent."""
    updates = {e.policy: e for e in events_of(app, run, "updates") if isinstance(e, Update)}
    _, manifest = load_current(app.home.run(run) / "checkpoints")
    found, policy = [], manifest.policy
    while policy in updates:
        found.append(updates[policy])
        policy = updates[policy].parent
    return found[::-1]


def test_a_second_learner_on_one_run_says_so_and_stops(small_world: App, new_run: Make) -> None:
    prepared = new_run(SMALL)
    with only_learner(small_world.home.run(prepared.run)), pytest.raises(DeliveryError, match="another learner"):
        run_worker(small_world, role="learner", run=prepared.run, worker=1, stop=Stop())


def test_workers_are_started_anew_when_the_process_that_forks_them_is_killed(small_world: App, new_run: Make) -> None:
    prepared = new_run(SMALL)
    create_topics(small_world.settings.kafka, prepared.run)
    run_dir = small_world.home.run(prepared.run)
    arguments = worker_arguments(small_world.home.root)
    with Supervisor(arguments, ["sink"], run_dir, small_world.worker_environment()) as workers:
        before = workers.pids()["sink"]
        psutil.Process(psutil.Process(before).ppid()).kill()
        deadline = time.monotonic() + 60
        while workers.restarts == 0:
            assert time.monotonic() < deadline, "nobody noticed"
            workers.check()
            threading.Event().wait(0.05)
        after = workers.pids()["sink"]
        assert not psutil.pid_exists(before)
        assert psutil.Process(after).ppid() != os.getpid()
        workers.check()
        assert workers.pids() == {"sink": after}


def test_workers_end_when_their_supervisor_is_killed(small_world: App, new_run: Make, tmp_path: Path) -> None:
    prepared = new_run(SMALL)
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from infra.app.home import Home\n"
        "from infra.runs.supervisor import Supervisor, worker_arguments\n"
        "home, run, kafka, engine = sys.argv[1:]\n"
        "env = {'SEARCHLOOP_KAFKA__BOOTSTRAP': kafka, 'SEARCHLOOP_ELASTICSEARCH__URL': engine}\n"
        "with Supervisor(worker_arguments(Path(home)), ['sink'], Home(Path(home)).run(run), env) as workers:\n"
        "    print('up', flush=True)\n"
        "    time.sleep(600)\n"
    )
    create_topics(small_world.settings.kafka, prepared.run)
    arguments = [str(small_world.home.root), prepared.run, small_world.settings.kafka.bootstrap]
    parent = subprocess.Popen(
        [sys.executable, "-c", code, *arguments, small_world.settings.elasticsearch.url], stdout=subprocess.PIPE
    )
    assert parent.stdout is not None and parent.stdout.readline() == b"up\n"
    (pid,) = [pid for run, _, pid in living_workers(small_world.home.runs) if run == prepared.run]
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 60
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the worker outlived its supervisor"
        threading.Event().wait(0.1)
