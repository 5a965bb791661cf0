"""Work that lasts longer than the patience of its consumer group: it is done once, and nothing is repeated.

The dose of the matrix is 600 s against the default of 300 s. The row keeps that ratio and makes both smaller, so that
several of them fit into one run: a slow engine, behind a proxy, makes each poll's work outlast the limit.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator

import msgspec

from infra.app.app import App
from services.local import Endpoints
from storage.log import open_log
from streams.events import Reward
from tests.fault_proxy import fault_proxy
from tests.faults.progress import watched
from tests.faults.results import Row
from tests.faults.world import SETTINGS, World, end_in_order, open_run, proved, stream_during

RATIO = 2.0  # 600 s of work, where a worker may be silent for 300 s.
SILENT_SECONDS_MAX = 3.0
LIMIT = "SEARCHLOOP_KAFKA__POLL_INTERVAL_SECONDS_MAX"


def outlast_patience(world: World, *, dose: int) -> list[Row]:
    """Make this many polls' work outlast the group's patience; return a row.

    The proxy answers every search later than the environment may be silent. Afterwards each generation has one reward
    in the log: had the environment lost its place, it would have written some again.
    """
    began, run = time.monotonic(), "patience"
    recovery: list[float] = []
    late = RATIO * SILENT_SECONDS_MAX
    with fault_proxy(world.app.connections.elasticsearch.url, delay_seconds=late) as proxy, impatient():
        behind = world.app.at(Endpoints(kafka=world.app.connections.kafka.bootstrap, elasticsearch=proxy.url))
        app, prepared = open_run(behind, run, SETTINGS)

        def work(ended: threading.Event) -> None:
            with watched(app, run) as progress:
                progress.wait("learner", progress.of("learner") + 1, ended)
                proxy.mode = "slow"
                for _ in range(dose):
                    at = time.monotonic()
                    progress.wait("environment", progress.of("environment"), ended)
                    recovery.append(time.monotonic() - at)
                proxy.mode = "well"
                progress.wait("learner", progress.of("learner") + 1, ended)

        stream_during(app, prepared, work)
        end_in_order(app, prepared)
    repeated = _repeated(world.app, run)
    name = f"work of {RATIO:g} × the poll interval"
    held = f"{repeated} rewards written twice"
    row = proved(world.app, run, fault=name, dose=dose, recovery=recovery, held=held, began=began)
    if repeated:
        row = msgspec.structs.replace(row, broken=(*row.broken, f"{repeated} rewards written twice"))
    return [row]


@contextlib.contextmanager
def impatient() -> Iterator[None]:
    """Let every worker that starts in the block be silent for `SILENT_SECONDS_MAX` at most."""
    os.environ[LIMIT] = str(SILENT_SECONDS_MAX)
    try:
        yield
    finally:
        del os.environ[LIMIT]


def _repeated(app: App, run: str) -> int:
    with open_log(app.home.run(run)) as log:
        groups = [event.group_id for _, event in log.events(Reward)]
    return len(groups) - len(set(groups))
