"""What every fault begins with: services, a small catalogue, a warmed-up policy; and how its run is proved."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from infra.app.app import App
from infra.app.home import Home
from infra.app.indexing import index_corpus
from infra.app.run_settings import RunSettings, write_run_settings
from infra.app.settings import Settings
from infra.recipes.leser.preparation import prepare
from infra.recipes.recipe import NewRun, Prepared
from infra.replaying.reproduction import reproduce
from infra.runs.training import stream
from infra.runs.verification import verify_run
from learner.batches import BatchSettings
from learner.checkpoints import CURRENT, load_current
from search_env.catalogue.generated import demo_catalogue
from services.local import LocalServices
from services.settings import LocalSettings
from storage.archive import ArchiveSettings
from storage.sink import SinkSettings
from tests.faults.results import Row
from tests.loop.conftest import SMALL, quiet

SETTINGS: Settings = msgspec.structs.replace(
    SMALL,
    batch=BatchSettings(groups=4, staleness_max=1),
    # Often enough awake to die at every place of its own within a short run.
    sink=SinkSettings(linger_seconds=1, archive=ArchiveSettings(segment_seconds_max=2)),
)
UPDATES_AT_THE_END = 4  # Made in peace after the last fault, so that a run ends in order.
LOST = {"nothing lost", "requests end", "one outcome a candidate", "every group taken", "bytes are kept"}
DOUBLE = {"at most one gradient", "one row a record"}


class World(msgspec.Struct, frozen=True):
    """Services that run, and an app whose index `small` is there and whose run `first` has a warmed-up policy."""

    home: Path
    services: LocalServices
    app: App


@contextmanager
def open_world(home: Path) -> Iterator[World]:
    """Use the services of this home if they run, else start them for the while; make what is missing."""
    services = LocalServices(home, LocalSettings(quick_start=True), attached=True)
    try:
        app = App(Home(home), settings=SMALL).at(services.up())
        # A driver that was stopped in the warm-up leaves a folder without a policy.
        if not (app.home.run("first") / "checkpoints" / CURRENT).is_file():
            index_corpus(app, name="small", documents=demo_catalogue(SMALL.demo), report=quiet)
            prepare(app, NewRun(run="first", index="small"), quiet)
        yield World(home, services, app)
    finally:
        services.stop_started()


def open_run(app: App, run: str, settings: Settings) -> tuple[App, Prepared]:
    """Return a run of the warmed-up policy with these settings: a new one, or the one that a stopped driver left."""
    folder = app.home.run(run)
    if not (folder / "settings.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(app.home.run("first"), folder)
    app = app.with_settings(settings)
    prepared = prepare(app, NewRun(run=run, index="small"), quiet)
    limit(app, prepared, updates=0)
    return app, prepared


def limit(app: App, prepared: Prepared, *, updates: int) -> None:
    """Let the learner stop after so many updates; 0 means never. It holds from its next start on."""
    kept = RunSettings(
        run=prepared.run,
        recipe="leser",
        index="small",
        index_version=prepared.index,
        seed=0,
        updates=updates,
        settings=app.settings,
    )
    write_run_settings(app.home.run(prepared.run), kept)


def stream_during(app: App, prepared: Prepared, work: Callable[[threading.Event], None]) -> None:
    """Let the loop run, in this thread, for as long as `work` takes in another; stop it in order then.

    work: is given an event that says when there is nothing left to work on, because the loop has ended in an error.
    """
    ended, failed = threading.Event(), []

    def body() -> None:
        try:
            work(ended)
        except BaseException as error:
            failed.append(error)
        finally:
            worked.set()
            os.kill(os.getpid(), signal.SIGINT)

    worked = threading.Event()
    thread = threading.Thread(target=body, name="fault", daemon=True)
    thread.start()
    try:
        stream(app, prepared, updates=1_000_000_000, seed=0, report=quiet)
    except KeyboardInterrupt:
        if not worked.is_set():  # It was the user's own.
            raise
    finally:
        ended.set()
        thread.join()
    if failed:
        raise failed[0]


def end_in_order(app: App, prepared: Prepared) -> None:
    """Make a few more updates without a fault, so that every request has its outcome."""
    _, manifest = load_current(app.home.run(prepared.run) / "checkpoints")
    updates = manifest.policy.step + UPDATES_AT_THE_END
    limit(app, prepared, updates=updates)
    stream(app, prepared, updates=updates, seed=0, report=quiet)


def proved(app: App, run: str, *, fault: str, dose: int, recovery: list[float], held: str, began: float) -> Row:
    """Prove a finished run, with the ledger built anew, make it again from its log, and return its row."""
    account = verify_run(app, run, rebuild=True, offline=False)
    made = reproduce(app, run, begin="0", updates_max=None, report=quiet)
    broken = [f"{f.rule}: {f.where}: {f.what}" for f in account.findings]
    if made.different is not None:
        broken.append(f"made again, {made.different} has other weights")
    return Row(
        fault=fault,
        dose=dose,
        lost=sum(finding.rule in LOST for finding in account.findings),
        double=sum(finding.rule in DOUBLE for finding in account.findings),
        equal=made.different is None,
        recovery_seconds=tuple(recovery),
        held=f"{held}; {made.updates} updates made again" if held else f"{made.updates} updates made again",
        broken=tuple(broken),
        seconds=time.monotonic() - began,
    )
