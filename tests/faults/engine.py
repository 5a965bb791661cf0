"""The search engine down, slow, refusing, answering in part or cut off in the middle, while a run learns from it.

A proxy before the real engine does it. Afterwards every reward in the log is compared with what the engine says of the
same generation when nothing disturbs it: it is the true one, or its candidate has `failed` and lies among the dead
letters, and never anything else.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import msgspec
import psutil

from infra.app.app import App
from infra.app.run_settings import read_run_settings
from infra.runs.environments import open_environment
from infra.runs.living import living_workers
from services.local import Endpoints
from storage.log import open_log
from streams.codec import content_sha256, encode_event
from streams.events import DeadLetter, Generation, Position, Reward
from tests.fault_proxy import FaultProxy, Mode, fault_proxy
from tests.faults.progress import watched
from tests.faults.results import Row
from tests.faults.world import SETTINGS, World, end_in_order, open_run, proved, stream_during

UPDATES_UNDER_FAULT = 10
WATCHED = ("environment", "generator")
FAULTS: tuple[tuple[Mode, str], ...] = (
    ("slow", "Elasticsearch slow, each answer 3 s late"),
    ("busy", "Elasticsearch refuses 30 % with 429"),
    ("partial", "Elasticsearch answers 30 % in part"),
    ("reset", "Elasticsearch resets 30 % of connections"),
    ("truncated", "Elasticsearch cuts 30 % of answers off"),
)


class Answers(msgspec.Struct, frozen=True, kw_only=True):
    """What a log says of its generations, against an engine that was never disturbed.

    real: candidates with the true reward, or truly without one. failed: candidates that failed and whose record lies
    among the dead letters. false: candidates that say anything else.
    """

    real: int
    failed: int
    false: int


class Memory:
    """Resident memory of some workers, looked at again and again."""

    def __init__(self, app: App, run: str) -> None:
        self._app = app
        self._run = run
        self._seen: dict[str, list[int]] = {}

    def look(self) -> None:
        """Note how much each of the workers holds now."""
        for run, role, pid in living_workers(self._app.home.runs):
            if run == self._run and role in WATCHED and psutil.pid_exists(pid):
                self._seen.setdefault(role, []).append(psutil.Process(pid).memory_info().rss >> 20)

    def __str__(self) -> str:
        return ", ".join(f"{role} {seen[0]} → {max(seen)} MiB" for role, seen in sorted(self._seen.items()))


def engine_down(world: World, *, seconds: float) -> list[Row]:
    """Take the engine away for so long; return a row."""
    name = f"Elasticsearch down {seconds:g} s"

    def disturb(proxy: FaultProxy, memory: Memory, ended: threading.Event) -> None:
        proxy.mode = "down"
        over = time.monotonic() + seconds
        while (left := over - time.monotonic()) > 0 and not ended.wait(min(left, 1.0)):
            memory.look()

    return [_disturbed(world, f"engine-down-{seconds:g}", name, disturb)]


def engine_harmed(world: World, *, mode: Mode, name: str, updates: int = UPDATES_UNDER_FAULT) -> list[Row]:
    """Harm the engine's answers until so many updates were made all the same; return a row."""
    run = f"engine-{mode}"

    def disturb(proxy: FaultProxy, memory: Memory, ended: threading.Event) -> None:
        proxy.mode = mode
        with watched(world.app, run) as progress:
            goal = progress.of("learner") + updates
            while progress.of("learner") < goal and not ended.wait(0.2):
                memory.look()

    return [_disturbed(world, run, name, disturb)]


def _disturbed(
    world: World, run: str, name: str, disturb: Callable[[FaultProxy, Memory, threading.Event], None]
) -> Row:
    """Stream a run that gets on, is disturbed, and has to get on again by itself; return its row."""
    began = time.monotonic()
    recovery: list[float] = []
    with fault_proxy(world.app.connections.elasticsearch.url) as proxy:
        behind = world.app.at(Endpoints(kafka=world.app.connections.kafka.bootstrap, elasticsearch=proxy.url))
        app, prepared = open_run(behind, run, SETTINGS)
        memory = Memory(app, run)

        def work(ended: threading.Event) -> None:
            with watched(app, run) as progress:
                progress.wait("learner", progress.of("learner") + 1, ended)
                memory.look()
                disturb(proxy, memory, ended)
                before = progress.of("environment")
                well = time.monotonic()
                proxy.mode = "well"
                progress.wait("environment", before, ended)
                recovery.append(time.monotonic() - well)
                progress.wait("learner", progress.of("learner") + 1, ended)
                memory.look()

        stream_during(app, prepared, work)
        end_in_order(app, prepared)
        harmed = f"{proxy.harmed} of {proxy.searches} search requests harmed"
    answers = compare(world.app, run)
    held = f"{answers.real} true rewards, {answers.failed} failed with a dead letter, {answers.false} false; {harmed}; "
    row = proved(world.app, run, fault=name, dose=1, recovery=recovery, held=f"{held}{memory}", began=began)
    if answers.false:
        row = msgspec.structs.replace(row, broken=(*row.broken, f"{answers.false} false rewards"))
    return row


def compare(app: App, run: str) -> Answers:
    """Compare every reward of a run's log with what the environment says of it now, with nothing in between."""
    folder = app.home.run(run)
    with open_log(folder) as log:
        groups = dict(log.events(Generation))
        rewards = [event for _, event in log.events(Reward)]
        buried = {event.source for _, event in log.events(DeadLetter) if event.stage == "environment"}
    real = failed = false = 0
    with open_environment(app, read_run_settings(folder)) as environment:
        for logged in rewards:
            true = environment.score_many([_input(logged.source, groups[logged.source])])[0]
            for said, meant in zip(logged.outcomes, true.outcomes, strict=True):
                if said == meant:
                    real += 1
                elif said.status == "failed" and said.reward is None and logged.source in buried:
                    failed += 1
                else:
                    false += 1
    return Answers(real=real, failed=failed, false=false)


def _input(position: Position, group: Generation) -> tuple[Generation, Position, str]:
    return group, position, content_sha256(encode_event(group))
