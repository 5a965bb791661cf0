"""Following a run's windows from its derived topic, with a new monitor if none is running."""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from kafka import TopicPartition

from infra.app.app import App
from infra.app.home import RunFolder, read_settings_file
from infra.app.interrupts import at_hard_end, received
from infra.monitoring.alert_settings import AlertTable
from infra.monitoring.alerting import AlertDesk, LedgerLooks, figures_of
from infra.monitoring.lock import monitor_is_running
from infra.runs.rights import give_rights
from infra.runs.standing import run_states
from infra.runs.supervisor import HURRIED_SECONDS, STOP_SECONDS, worker_command
from infra.runs.topics import make_derived_topics
from learner.batches import BatchSettings
from services.private_variables import for_role, piped
from storage.monitor.alerts import firing
from storage.monitor.stalls import RunState
from storage.monitor.view import View, build_view
from storage.monitor.windows import EXPECTED
from streams.clients import connect_consumer, partitions_of
from streams.clock import now_ms
from streams.codec import decode_window
from streams.delivery import DeliverySettings, poll
from streams.errors import DeliveryError, EventError
from streams.events import MonitorState, WindowEvent
from streams.lag import end_offsets, stage_lags
from streams.ranges import log_bounds
from streams.records import StageLag
from streams.stopping import Stop
from streams.topics import kind_of, topic_name

SILENCE_SECONDS_MAX = 120.0
LAGS_SECONDS = 5.0  # One look at the lags costs several connections.


class WatchedTables(msgspec.Struct, frozen=True, kw_only=True):
    """The table of a run's settings that the view needs."""

    batch: BatchSettings = BatchSettings()


class WatchedRun(msgspec.Struct, frozen=True, kw_only=True):
    """The part of `RunSettings` that the view needs."""

    updates: int = 0
    settings: WatchedTables = WatchedTables()


class Watcher:
    """A reader of a run's windows that combines them into a view as they are published."""

    def __init__(self, app: App, run: str, *, reads_log: bool = False) -> None:
        """Raise SettingsError if the run does not exist, DeliveryError if it has no topics yet or no broker answers.

        reads_log: True also judges the alert rules whose figures only the log gives, from a thread that reads it.
        """
        self._run = run
        run_dir = app.home.run(run)
        self._kept = read_settings_file(run_dir, WatchedRun)
        self._looks: LedgerLooks | None = None
        self._desk = AlertDesk(
            run_dir,
            app.tables(AlertTable).alerts,
            keeps=False,
            ledger=lambda: self._looks.figures if self._looks else {},
        )
        self._kafka = app.connections.kafka
        self._inputs = partitions_of(self._kafka, [topic_name(run, kind) for kind in EXPECTED])
        make_derived_topics(app, run)
        self._consumer = connect_consumer(
            self._kafka,
            {TopicPartition(topic_name(run, "windows"), 0): None},
            client_id=f"{run}-watch",
            records_max=1000,
        )
        self._events: dict[bytes, WindowEvent] = {}
        self._lags_known: tuple[StageLag, ...] = ()
        self._lags_at = -math.inf
        self._home = app.home
        self._state_known: RunState | None = None

    def close(self) -> None:
        """Leave the topic."""
        self._consumer.close()
        self._desk.close()
        if self._looks is not None:
            self._looks.close()

    def read(self, *, wait_seconds: float) -> None:
        """Take the windows published since the last call; skip unreadable ones, which a monitor can make again."""
        for record in poll(self._consumer, DeliverySettings(), records_max=1000, timeout_seconds=wait_seconds):
            self._events.pop(record.key or b"", None)
            try:
                self._events[record.key or b""] = decode_window(record.value)
            except EventError:
                continue

    def view(self) -> View:
        """Return the current view of the run, with the states of its alert rules."""
        staleness_max = self._kept.settings.batch.staleness_max
        view = build_view(
            self._run,
            self.events(),
            updates_wanted=self._kept.updates,
            staleness_max=staleness_max,
            lags=self._lags(),
            standing=self._state_known,
        )
        states = self._desk.look(figures_of(view, staleness_max=staleness_max), now_ms=now_ms())
        return msgspec.structs.replace(view, alerts=firing(states), rules=states)

    def events(self) -> list[WindowEvent]:
        """Return the last published windows and monitor state, in the order of their keys."""
        return [event for _, event in sorted(self._events.items())]

    def ends(self) -> dict[str, int]:
        """Return the log's ends by "kind/partition", for partitions that hold records."""
        bounds = log_bounds(self._kafka, self._inputs)
        return {f"{kind_of(item.topic)}/{item.partition}": end for item, (start, end) in bounds.items() if start < end}

    def positions(self) -> dict[str, int]:
        """Return the monitor's positions by "kind/partition"."""
        return self._state().positions

    def has_read(self, ends: dict[str, int]) -> bool:
        """Return whether the monitor has reached these ends."""
        return all(self.positions().get(place, 0) >= end for place, end in ends.items())

    def _state(self) -> MonitorState:
        states = (event for event in self._events.values() if isinstance(event, MonitorState))
        return next(states, MonitorState(run=self._run))

    def _lags(self) -> tuple[StageLag, ...]:
        if time.monotonic() - self._lags_at > LAGS_SECONDS:
            self._lags_known, self._lags_at = self._look_at_lags(), time.monotonic()
            (self._state_known,) = run_states(self._home, self._kafka, [self._run])
        return self._lags_known

    def _look_at_lags(self) -> tuple[StageLag, ...]:
        state, topic = self._state(), topic_name(self._run, "rewards")
        rewards = end_offsets(self._kafka, [item for item in self._inputs if item.topic == topic])
        learner = sum(end - state.learner_positions.get(item.partition, 0) for item, end in rewards.items())
        monitor = sum(end - state.positions.get(f"rewards/{item.partition}", 0) for item, end in rewards.items())
        return (
            *stage_lags(self._kafka, self._run),
            StageLag(stage="learner", topic=topic, records=learner),
            StageLag(stage="monitor", topic=topic, records=monitor),
        )


@contextmanager
def monitored(app: App, run: str) -> Iterator[subprocess.Popen[bytes] | None]:
    """Ensure that a monitor of the run is running; if we start it, yield its process and end it afterwards."""
    run_dir = app.home.run(run)
    if monitor_is_running(run_dir):
        yield None
        return
    log = monitor_log(run_dir)
    log.parent.mkdir(parents=True, exist_ok=True)
    give_rights(app, run)

    with log.open("ab") as output:
        shown, secrets = piped(for_role(os.environ | app.worker_environment(), "monitor"))
        process = subprocess.Popen(
            [*worker_command(app.home.root), "monitor", "--run", run, "--supervised"],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env=shown,
            start_new_session=True,  # Ctrl-C on the terminal reaches only us.
        )

    def kill() -> str:
        process.kill()
        return "its monitor was killed"

    try:
        with contextlib.suppress(BrokenPipeError):  # It ended before it read; its waiter reports why.
            assert process.stdin is not None
            process.stdin.write(secrets)
            process.stdin.flush()
        with at_hard_end(kill):
            yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=HURRIED_SECONDS if received() else STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdin:
            process.stdin.close()


def monitor_log(run_dir: RunFolder) -> Path:
    """Return the path of a monitor's output."""
    return run_dir.logs / "monitor.log"


def wait_until_read(
    watcher: Watcher, process: subprocess.Popen[bytes] | None, run_dir: RunFolder, stop: Stop | None = None
) -> None:
    """Wait until the monitor has read the log up to its ends at the call, or until told to stop.

    Raises DeliveryError if the monitor ends meanwhile, or makes no progress for `SILENCE_SECONDS_MAX`.
    """
    ends, seen = watcher.ends(), watcher.positions()
    deadline = time.monotonic() + SILENCE_SECONDS_MAX
    while not watcher.has_read(ends) and not (stop and stop()):
        check_alive(process, run_dir)
        if watcher.positions() != seen:
            seen, deadline = watcher.positions(), time.monotonic() + SILENCE_SECONDS_MAX
        if time.monotonic() > deadline:
            raise DeliveryError(f"the monitor has not moved for {SILENCE_SECONDS_MAX:g} s; see {monitor_log(run_dir)}")
        watcher.read(wait_seconds=0.2)


def check_alive(process: subprocess.Popen[bytes] | None, run_dir: RunFolder) -> None:
    """Raise DeliveryError, with the last line of its output, if a monitor that we started has ended."""
    if process is not None and process.poll() is not None and not monitor_is_running(run_dir):
        lines = monitor_log(run_dir).read_text(errors="replace").strip().splitlines()
        raise DeliveryError(
            f"the monitor ended with {process.returncode}: {lines[-1] if lines else 'it wrote nothing'}"
        )
