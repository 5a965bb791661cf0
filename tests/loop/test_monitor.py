"""The monitor beside a loop that learns: it tells what the ledger tells, and nothing notices when it is gone."""

from __future__ import annotations

import signal
from collections.abc import Callable

import duckdb
import msgspec

from infra.app.app import App
from infra.monitoring.watching import Watcher, check_alive, monitored
from infra.recipes.recipe import Prepared
from infra.runs.training import stream
from infra.runs.verification import verify_run
from learner.batches import BatchSettings
from storage.ledger import LEDGER
from streams.clients import connect_admin, create_topics
from streams.events import VersionWindow
from streams.topics import topic_name
from tests.loop.conftest import SMALL, UPDATES
from tests.monitored_log import as_rows, expected_windows, watched

Make = Callable[..., Prepared]


def test_the_windows_of_a_streamed_run_are_what_sql_over_its_ledger_says(streamed: tuple[App, Prepared]) -> None:
    app, prepared = streamed
    with watched(app, prepared.run) as (watcher, _):
        events, view = watcher.events(), watcher.view()
    assert as_rows(events) == expected_windows(app.home.run(prepared.run) / LEDGER, window_seconds=60)
    assert (view.updates_done, view.updates_wanted) == (UPDATES, UPDATES)
    assert (view.malformed, view.duplicates, view.late, view.dead_letters) == ({}, 0, 0, {})


def test_a_monitor_killed_for_good_in_mid_run_is_noticed_by_nothing(small_world: App, new_run: Make) -> None:
    updates = 8
    settings = msgspec.structs.replace(SMALL, batch=BatchSettings(groups=4, staleness_max=1))
    prepared = new_run(settings, updates=updates)
    app, run = small_world.with_settings(settings), prepared.run
    create_topics(app.settings.kafka, run)
    watcher = Watcher(app, run)
    died_at: list[int] = []
    with monitored(app, run) as process:
        assert process is not None
        while not watcher.events():
            check_alive(process, app.home.run(run))
            watcher.read(wait_seconds=0.2)

        def kill_when_it_has_counted(what: str, done: int, total: int) -> None:
            # Requests are fed from the thread that waits here: what it has fed so far is too little for every update.
            while not died_at:
                check_alive(process, app.home.run(run))
                watcher.read(wait_seconds=0.2)
                if any(isinstance(event, VersionWindow) for event in watcher.events()):
                    process.kill()
                    assert process.wait() == -signal.SIGKILL
                    died_at.append(done)

        summary = stream(app, prepared, updates=updates, seed=0, report=kill_when_it_has_counted)
    watcher.close()
    assert died_at and died_at[0] < updates
    assert (summary.updates, summary.restarts) == (updates, 0)

    windows = topic_name(run, "windows")
    assert verify_run(app, run, rebuild=True, offline=False).findings == ()
    admin = connect_admin(app.settings.kafka)
    admin.delete_topics([windows])
    admin.close()
    assert verify_run(app, run, rebuild=True, offline=False).findings == ()
    with duckdb.connect(str(app.home.run(run) / LEDGER), read_only=True) as ledger:
        assert windows not in [topic for (topic,) in ledger.execute("SELECT topic FROM sink_offsets").fetchall()]
