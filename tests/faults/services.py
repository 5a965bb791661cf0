"""A service killed again and again under a running loop, and started again at once."""

from __future__ import annotations

import os
import random
import signal
import threading
import time

from tests.faults.kills import PAUSE_SECONDS_MAX, Strike
from tests.faults.progress import watched
from tests.faults.results import Journal, Row, quantile
from tests.faults.world import SETTINGS, World, end_in_order, open_run, proved, stream_during


def kill_service(world: World, *, service: str, name: str, dose: int) -> list[Row]:
    """Kill a service so often, between two updates at random times; return a row.

    service: "kafka" or "elasticsearch". Recovery is from the kill to the first reward after it, the service's own start
    included; how much of it came after the service answered is said apart.
    """
    began, run = time.monotonic(), f"{service}-killed"
    journal = Journal(world.home / f"{run}.jsonl", Strike)
    app, prepared = open_run(world.app, run, SETTINGS)
    chance = random.Random(dose)

    def work(ended: threading.Event) -> None:
        with watched(app, run) as progress:
            while sum(strike.role == service for strike in journal.read()) < dose:
                progress.wait("learner", progress.of("learner"), ended)
                ended.wait(chance.random() * PAUSE_SECONDS_MAX)
                before = progress.of("environment")
                os.kill(_pid(world, service), signal.SIGKILL)
                struck = time.monotonic()
                world.services.up()
                answered = time.monotonic()
                progress.wait("environment", before, ended)
                now = time.monotonic()
                journal.add(Strike(role="the loop", seconds=now - answered))
                journal.add(Strike(role=service, seconds=now - struck))

    if sum(strike.role == service for strike in journal.read()) < dose:
        stream_during(app, prepared, work)
    end_in_order(app, prepared)
    strikes = journal.read()
    after = tuple(strike.seconds for strike in strikes if strike.role == "the loop")
    times = [strike.seconds for strike in strikes if strike.role == service]
    held = f"{quantile(after, 0.5):.1f} / {quantile(after, 0.95):.1f} s of it after the service answered"
    return [proved(app, run, fault=name, dose=len(times), recovery=times, held=held, began=began)]


def _pid(world: World, service: str) -> int:
    return next(each.pid for each in world.services.status() if each.role == service and each.pid)
