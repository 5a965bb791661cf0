"""A run on machines that share nothing but Kafka, Elasticsearch and an S3 store (`tests.machines`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from infra.app.app import App
from infra.app.run_settings import read_run_settings
from infra.recipes.recipe import Prepared
from infra.runs.sharing import share_run
from infra.runs.training import stream
from infra.runs.verification import verify_run
from learner.checkpoints import load_current
from learner.shared_checkpoints import FETCHED_KEPT
from services.local import Endpoints
from storage.log import open_log
from storage.shared_archive import open_shared
from streams.epochs import EPOCH
from streams.events import Request
from streams.kafka_settings import KafkaSettings
from streams.ranges import read_events
from streams.shared_store import StoreSettings
from tests.commands import environment
from tests.faults.machines import FAULTS, fleet, strike
from tests.loop.conftest import SMALL, quiet
from tests.machines import KAFKA, NO_DEV, Machine, begin, endpoints, fates, steps, wait_until
from tests.object_store import BUCKET, s3_server

Make = Callable[..., Prepared]


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


@pytest.fixture
def machines(tmp_path: Path, variables: dict[str, str], small_world: App) -> Iterator[Callable[[str], Machine]]:
    """Give a function that makes a machine; all of them end with the test."""
    made: list[Machine] = []

    def make(name: str) -> Machine:
        made.append(Machine(tmp_path / name, variables, hidden=[small_world.home.root]))
        return made[-1]

    yield make
    for machine in made:
        machine.cut_off()


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
    wait_until(lambda: steps(first, run) >= 3 or training.poll() is not None, "the third update")
    assert training.poll() is None, first.said("train---index")[-2000:]
    first.cut_off()
    reached = steps(first, run)
    going_on = second.start(*train)
    wait_until(lambda: going_on.poll() is not None, "the second machine")
    assert going_on.returncode == 0, second.said("train---index")[-3000:]
    manifest = load_current(second.home.run(run).checkpoints)[1]
    assert manifest.policy.step == 12
    assert reached < 12
    app = App(second.home, settings=read_run_settings(second.home.run(run)).settings).at(endpoints(variables))
    account = verify_run(app, run, rebuild=True, offline=False)
    assert (account.verdict, account.findings) == ("sound", ())
    # The first machine comes back, and finds out that the run went on without it.
    back = first.start("train", "--index", "small", "--run", run, "--updates", "14")
    wait_until(lambda: back.poll() is not None, "the first machine")
    assert back.returncode == 0, first.said("train---index")[-3000:]
    assert load_current(first.home.run(run).checkpoints)[1].policy.step == 14
    account = verify_run(App(first.home).at(endpoints(variables)), run, rebuild=True, offline=False)
    assert (account.verdict, account.findings) == ("sound", ())
    with open_log(first.home.run(run)) as log:
        assert log.rows("SELECT DISTINCT epoch FROM counted_versions ORDER BY 1") == [{"epoch": n} for n in (1, 2, 3)]
        beside = [dict(each.headers)[EPOCH] for each in log.records((f"{run}.updates", 0))]
    assert set(beside) == {b"1", b"2", b"3"} and beside == sorted(beside)


def test_a_second_learner_on_another_machine_is_refused(
    small_world: App, machines: Callable[[str], Machine], variables: dict[str, str], unique_name: str
) -> None:
    first, second = machines("first"), machines("second")
    run = unique_name
    begin(first, small_world, run)
    training = first.start("train", "--index", "small", "--run", run, "--updates", "100000")
    wait_until(lambda: steps(first, run) >= 1 or training.poll() is not None, "the first update")
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
    before = steps(first, run)
    wait_until(lambda: steps(first, run) > before, "one more update of the first learner")
    asked = [
        event.request_id for event in read_events(KafkaSettings(bootstrap=endpoints(variables).kafka), run, Request)
    ]
    assert len(asked) == len(set(asked)) > 0


def test_machines_that_are_cut_off_and_replaced_by_empty_ones_lose_and_repeat_no_prompt(
    small_world: App, local_services: Endpoints, unique_name: str, tmp_path: Path
) -> None:
    """The small dose, each fault once; `make faults` gives the larger one."""
    with fleet(tmp_path, small_world, local_services, unique_name) as machines:
        for fault in FAULTS:
            strike(machines, fault, 0.5)
        learner = machines.end(machines.step() + 2)
        kept = read_run_settings(learner.home.run(unique_name)).settings
        app = App(learner.home, settings=kept).at(local_services)
        account = verify_run(app, unique_name, rebuild=True, offline=False)
        assert (account.verdict, account.findings) == ("sound", ())
        counts, wrong = fates(app.connections.kafka, app, unique_name)
        assert wrong == [] and counts["ended"] == counts["consumed"] >= 4 * counts["updates"]
