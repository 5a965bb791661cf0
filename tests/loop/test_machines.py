"""A run on machines that share no disk: homes of their own, and between them Kafka, Elasticsearch and an S3 store."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from infra.app.app import App
from infra.app.home import Home
from infra.app.installation import INSTALLATION_FILE
from infra.app.run_settings import read_run_settings
from infra.recipes.recipe import Prepared
from infra.runs.sharing import share_run
from infra.runs.training import stream
from infra.runs.verification import verify_run
from learner.checkpoints import current_name, load_current
from learner.shared_checkpoints import FETCHED_KEPT
from services.local import Endpoints
from storage.log import open_log
from storage.shared_archive import open_shared
from streams.events import Request
from streams.kafka_settings import KafkaSettings
from streams.ranges import read_events
from streams.shared_store import StoreSettings
from tests.commands import ROOT, command, environment
from tests.loop.conftest import SMALL, quiet
from tests.object_store import BUCKET, s3_server

Make = Callable[..., Prepared]
FORGOTTEN_SECONDS = 6.0
NO_DEV = {"SEARCHLOOP_DEV__EVERY": "0", "SEARCHLOOP_DEV__PATIENCE": "0"}  # No run ends before it should.
KAFKA = KafkaSettings(session_timeout_seconds=FORGOTTEN_SECONDS, partitions=2)


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    """Give the environment of a local S3 server."""
    with s3_server() as variables:
        yield variables


@pytest.fixture
def variables(
    s3: dict[str, str], local_services: Endpoints, monkeypatch: pytest.MonkeyPatch, unique_name: str
) -> dict[str, str]:
    """Give the variables of every machine, which are also those of this process."""
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    settings = msgspec.structs.replace(SMALL, store=StoreSettings(url=f"s3://{BUCKET}/{unique_name}"), kafka=KAFKA)
    return environment(local_services, settings) | NO_DEV


class Machine:
    """A home of its own, and the commands that run on it."""

    def __init__(self, root: Path, variables: dict[str, str]) -> None:
        root.mkdir()
        self.home = Home(root)
        self._variables = variables
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, *arguments: str, **more: str) -> subprocess.Popen[bytes]:
        """Start a command; its output goes to a file in the home."""
        output = (self.home.root / f"{'-'.join(arguments[:2])}.out").open("ab")
        process = subprocess.Popen(
            command(self.home.root, *arguments),
            cwd=ROOT,
            env=self._variables | more,
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._started.append(process)
        return process

    def said(self, name: str) -> str:
        """Return what a command has said so far."""
        return (self.home.root / f"{name}.out").read_text(errors="replace")

    def cut_off(self) -> None:
        """Kill every process of this machine at once, the workers of its commands, too."""
        doomed = [psutil.Process(each.pid) for each in self._started if each.poll() is None]
        doomed += [child for process in doomed for child in process.children(recursive=True)]
        for process in doomed:
            process.kill()
        psutil.wait_procs(doomed, timeout=30)

    def stop(self) -> None:
        """Press Ctrl-C on every command that still runs."""
        for process in self._started:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
        for process in self._started:
            process.wait(60)


@pytest.fixture
def machines(tmp_path: Path, variables: dict[str, str]) -> Iterator[Callable[[str], Machine]]:
    """Give a function that makes a machine; all of them end with the test."""
    made: list[Machine] = []

    def make(name: str) -> Machine:
        made.append(Machine(tmp_path / name, variables))
        return made[-1]

    yield make
    for machine in made:
        machine.cut_off()


def wait_until(true: Callable[[], bool], what: str, seconds: float = 240) -> None:
    """Return when it is true. Raises AssertionError if it does not become true."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"still waiting for {what}"
        time.sleep(0.2)


def test_workers_on_other_machines_need_only_kafka_the_engine_and_the_store(
    small_world: App, new_run: Make, machines: Callable[[str], Machine], variables: dict[str, str]
) -> None:
    store = StoreSettings(url=variables["SEARCHLOOP_STORE__URL"])
    settings = msgspec.structs.replace(SMALL, store=store)
    prepared = new_run(settings)
    app, run = small_world.with_settings(settings), prepared.run
    share_run(app, run, quiet)
    generating, scoring = machines("generating"), machines("scoring")
    generating.start("run", "generator", "--run", run)
    scoring.start("run", "environment", "--run", run)
    summary = stream(app, prepared, updates=4, seed=0, report=quiet, elsewhere=("environment", "generator"))
    assert (summary.updates, summary.restarts) == (4, 0)
    account = verify_run(app, run, rebuild=True, offline=False)
    assert (account.verdict, account.findings) == ("sound", ())
    fetched = [path.name for path in generating.home.run(run).checkpoints.glob("*-*-*")]
    assert 1 <= len(fetched) <= FETCHED_KEPT
    assert not scoring.home.run(run).checkpoints.exists()
    assert app.store is not None
    assert summary.policy in app.store.names(f"runs/{run}/checkpoints")
    with open_log(app.home.run(run)) as log, open_shared(app.store, run) as shared:
        (counted,) = log.rows("SELECT count(*) AS n FROM archive_segments")
        assert counted["n"] > 0
        kinds = dict(shared.execute("SELECT kind, count(*) FROM records GROUP BY ALL").fetchall())
    assert kinds["reward/1"] == 16
    assert kinds["update/1"] >= 4


def test_a_run_whose_machine_is_gone_goes_on_on_another_one(
    small_world: App, machines: Callable[[str], Machine], variables: dict[str, str], unique_name: str
) -> None:
    """The learner's machine is cut off at a random moment; the next one has an empty home."""
    first, second = machines("first"), machines("second")
    run = unique_name
    begin(first, small_world, run)
    train = ("train", "--index", "small", "--run", run, "--updates", "12")
    training = first.start(*train)
    wait_until(lambda: _steps(first, run) >= 3 or training.poll() is not None, "the third update")
    assert training.poll() is None, first.said("train---index")[-2000:]
    first.cut_off()
    reached = _steps(first, run)
    going_on = second.start(*train)
    wait_until(lambda: going_on.poll() is not None, "the second machine")
    assert going_on.returncode == 0, second.said("train---index")[-3000:]
    manifest = load_current(second.home.run(run).checkpoints)[1]
    assert manifest.policy.step == 12
    assert reached < 12
    app = App(second.home, settings=read_run_settings(second.home.run(run)).settings).at(_endpoints(variables))
    account = verify_run(app, run, rebuild=True, offline=False)
    assert (account.verdict, account.findings) == ("sound", ())
    # The first machine comes back, and finds out that the run went on without it.
    back = first.start("train", "--index", "small", "--run", run, "--updates", "14")
    wait_until(lambda: back.poll() is not None, "the first machine")
    assert back.returncode == 0, first.said("train---index")[-3000:]
    assert load_current(first.home.run(run).checkpoints)[1].policy.step == 14
    account = verify_run(App(first.home).at(_endpoints(variables)), run, rebuild=True, offline=False)
    assert (account.verdict, account.findings) == ("sound", ())


def test_a_second_learner_on_another_machine_is_refused(
    small_world: App, machines: Callable[[str], Machine], variables: dict[str, str], unique_name: str
) -> None:
    first, second = machines("first"), machines("second")
    run = unique_name
    begin(first, small_world, run)
    training = first.start("train", "--index", "small", "--run", run, "--updates", "100000")
    wait_until(lambda: _steps(first, run) >= 1 or training.poll() is not None, "the first update")
    assert training.poll() is None, first.said("train---index")[-2000:]
    for role in ("learner", "sink"):
        other = second.start("run", role, "--run", run)
        wait_until(lambda other=other: other.poll() is not None, f"the second {role}")  # type: ignore[misc]
        assert other.returncode == 1
        assert f"expected to be its only {role}" in second.said(f"run-{role}")
    other = second.start("train", "--index", "small", "--run", run, "--updates", "100000")
    wait_until(lambda: other.poll() is not None, "the second train")
    assert other.returncode == 1
    assert "expected to be its only train" in second.said("train---index")
    before = _steps(first, run)
    wait_until(lambda: _steps(first, run) > before, "one more update of the first learner")
    asked = [
        event.request_id for event in read_events(KafkaSettings(bootstrap=_endpoints(variables).kafka), run, Request)
    ]
    assert len(asked) == len(set(asked)) > 0


def begin(machine: Machine, world: App, run: str) -> None:
    """Give a machine the small world's index, and its warmed-up run under another name."""
    shutil.copy2(world.home.root / INSTALLATION_FILE, machine.home.root / INSTALLATION_FILE)
    shutil.copytree(world.home.index("small"), machine.home.index("small"))
    shutil.copytree(world.home.run("first"), machine.home.run(run))


def _steps(machine: Machine, run: str) -> int:
    name = current_name(machine.home.run(run).checkpoints)
    return int(name.rpartition("-")[2]) if name else 0


def _endpoints(variables: dict[str, str]) -> Endpoints:
    return Endpoints(
        kafka=variables["SEARCHLOOP_KAFKA__BOOTSTRAP"], elasticsearch=variables["SEARCHLOOP_ELASTICSEARCH__URL"]
    )
