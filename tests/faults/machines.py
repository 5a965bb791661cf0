"""Machines that share no disk, cut off at random moments: what replaces them begins with an empty home.

Each machine has namespaces of its own (`tests.namespace`). The processes that write a run's files, learner and sink,
are also killed alone, on a machine that goes on.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import cycle
from pathlib import Path

import msgspec

from infra.app.app import App
from infra.app.run_settings import read_run_settings
from services.local import Endpoints
from storage.archive import ArchiveSettings
from storage.sink import SinkSettings
from streams.shared_store import StoreSettings
from tests.commands import environment
from tests.faults.progress import touched_ns
from tests.faults.results import Journal, Row
from tests.faults.world import World, proved
from tests.loop.conftest import SMALL
from tests.machines import KAFKA, NO_DEV, Machine, begin, fates, steps, wait_until
from tests.object_store import BUCKET, s3_server

LEARNS = "learner and sink"  # Of one machine, with the requests; `train` runs there.
ROLES = ("generator", "environment", LEARNS)
WRITERS = ("learner", "sink")
PAUSE_SECONDS_MAX = 4.0
UPDATES_AT_THE_END = 4
ENDLESS = "1000000"


class MachineStrike(msgspec.Struct, frozen=True, kw_only=True):
    """A fault of `FAULTS`, and how long it took until the run got on."""

    fault: str
    seconds: float


class Fleet:
    """A machine for each role, and new ones in their places."""

    def __init__(self, folder: Path, variables: dict[str, str], run: str, *, hidden: Path) -> None:
        """hidden: the home of the world, which no machine sees."""
        self._folder, self._variables, self._run, self._hidden = folder, variables, run, hidden
        self._made = Counter[str]()
        self.of: dict[str, Machine] = {}

    def place(self, role: str) -> Machine:
        """Put a new machine with an empty home in the place of this role; the old one's home is gone."""
        if role in self.of:
            self.of[role].cut_off()
            shutil.rmtree(self.of[role].home.root)
        self._made[role] += 1
        name = f"{role.partition(' ')[0]}-{self._made[role]}"
        self.of[role] = machine = Machine(self._folder / name, self._variables, hidden=[self._hidden])
        return machine

    def work(self, role: str) -> None:
        """Let the machine of a role begin to work."""
        if role == LEARNS:
            elsewhere = [part for each in ROLES if each != LEARNS for part in ("--elsewhere", each)]
            train = ("train", "--index", "small", "--run", self._run, "--updates", ENDLESS)
            self.of[role].start(*train, *elsewhere)
        else:
            self.of[role].start("run", role, "--run", self._run, "--worker", str(self._made[role]))

    def kill(self, role: str) -> None:
        """Kill the worker of this role on the machine that learns, and nothing else there."""
        self.of[LEARNS].kill_worker(self._run, role)

    def step(self) -> int:
        """Return the step of the newest policy on the machine that learns."""
        return steps(self.of[LEARNS], self._run)

    def ledger_touched(self) -> int:
        """Return a number that grows when the sink commits."""
        return touched_ns(self.of[LEARNS].home.run(self._run))

    def end(self, updates: int) -> Machine:
        """Train up to so many updates without a fault, and return the machine that learns."""
        learner = self.of[LEARNS]
        learner.stop()
        elsewhere = [part for each in ROLES if each != LEARNS for part in ("--elsewhere", each)]
        last = learner.start("train", "--index", "small", "--run", self._run, "--updates", str(updates), *elsewhere)
        wait_until(lambda: last.poll() is not None, "the run's end", 600)
        assert last.returncode == 0, learner.said("train---index")[-3000:]
        return learner


@contextmanager
def fleet(folder: Path, world: App, services: Endpoints, run: str) -> Iterator[Fleet]:
    """Give a run at work on three machines and a store between them; all of them end with the block."""
    with ExitStack() as stack:
        store = stack.enter_context(s3_server())
        before = {name: os.environ.get(name) for name in store}
        os.environ.update(store)  # This process reads the store, too.
        stack.callback(lambda: [_restore(name, value) for name, value in before.items()])
        settings = msgspec.structs.replace(
            SMALL,
            store=StoreSettings(url=f"s3://{BUCKET}/{run}"),
            kafka=KAFKA,
            sink=SinkSettings(linger_seconds=1, archive=ArchiveSettings(segment_seconds_max=2)),
        )
        machines = Fleet(folder, environment(services, settings) | NO_DEV, run, hidden=world.home.root)
        stack.callback(lambda: [machine.cut_off() for machine in machines.of.values()])
        begin(machines.place(LEARNS), world, run)
        machines.work(LEARNS)
        for role in ("generator", "environment"):
            machines.place(role)
        # A machine can fetch the run when it is on the store.
        wait_until(lambda: steps_or_log(machines, run), "the run on the store")
        for role in ("generator", "environment"):
            machines.work(role)
        wait_until(lambda: machines.step() >= 1, "the first update", 600)
        yield machines


def steps_or_log(machines: Fleet, run: str) -> bool:
    """Return whether the machine that learns has started its workers: the run is then on the store."""
    return any(machines.of[LEARNS].home.run(run).logs.glob("learner*"))


def cut_off(machines: Fleet, role: str) -> float:
    """Cut a machine off, put an empty one in its place, and return the seconds until the next update."""
    reached = machines.step()
    machines.place(role)
    struck = time.monotonic()
    machines.work(role)
    # What was under way may still end in an update; the second one needs all three machines.
    wait_until(lambda: machines.step() >= reached + 2, f"an update after the {role}'s machine was cut off", 600)
    return time.monotonic() - struck


def kill_alone(machines: Fleet, role: str) -> float:
    """Kill learner or sink where it works, and return the seconds until its next checkpoint or commit."""
    machines.kill(role)
    struck = time.monotonic()
    done = machines.step if role == "learner" else machines.ledger_touched
    before = done()
    wait_until(lambda: done() > before, f"the {role} after it was killed", 600)
    return time.monotonic() - struck


FAULTS = {
    **{f"machine of the {role} cut off": partial(cut_off, role=role) for role in ROLES},
    **{f"kill -9 of the {role} alone, its machine goes on": partial(kill_alone, role=role) for role in WRITERS},
}


def strike(machines: Fleet, fault: str, pause: float) -> float:
    """Do one of the faults after a pause, and return the seconds until the run has got on."""
    time.sleep(pause)
    return FAULTS[fault](machines)


def cut_machines_off(world: World, *, dose: int) -> list[Row]:
    """Do the faults so often, in random order at random times, in one run; return a row for each of them."""
    began, run = time.monotonic(), "machines"
    journal = Journal(world.home / "machines.jsonl", MachineStrike)
    folder = world.home / "machines"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    run = f"{run}-{int(time.time())}"  # The machines of a driver that was stopped are gone, so their run is, too.
    chance = random.Random(dose)
    order = [fault for fault, _ in zip(cycle(FAULTS), range(dose), strict=False)]
    chance.shuffle(order)
    strikes = []
    with fleet(folder, world.app, world.services.endpoints(), run) as machines:
        for fault in order:
            seconds = strike(machines, fault, chance.random() * PAUSE_SECONDS_MAX)
            strikes.append(MachineStrike(fault=fault, seconds=seconds))
            journal.add(strikes[-1])
        learner = machines.end(machines.step() + UPDATES_AT_THE_END)
        kept = read_run_settings(learner.home.run(run)).settings
        app = App(learner.home, settings=kept).at(world.services.endpoints())
        counts, wrong = fates(app.connections.kafka, app, run)
        held = f"{counts['published']} requests, {counts['ended']} groups with one fate"
        whole = proved(app, run, fault="machine", dose=dose, recovery=[], held=held, began=began)
    whole = msgspec.structs.replace(whole, broken=(*whole.broken, *wrong))
    return [
        msgspec.structs.replace(
            whole,
            fault=fault,
            dose=sum(each.fault == fault for each in strikes),
            recovery_seconds=tuple(each.seconds for each in strikes if each.fault == fault),
        )
        for fault in FAULTS
    ]


def _restore(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
