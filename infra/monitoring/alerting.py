"""The alerts of a run while somebody watches it: figures in, states out, changes kept in the run's folder and sent.

The figures of the windows are at hand at each look. The others cost a reading of the archive, so a thread reads them,
and waits after each reading until it has used at most `LEDGER_SHARE` of its time. It leaves the ledger's file alone: a
reader of that file would keep a sink that starts from opening it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from infra.app.app import App
from infra.app.home import RunFolder
from infra.monitoring.alert_files import (
    alert_rules,
    append_transitions,
    read_silences,
    read_transitions,
    staleness_limit,
)
from infra.monitoring.alert_settings import AlertSettings, AlertTable
from infra.monitoring.delivering import CLOSE_SECONDS, TOLD, Webhook
from infra.runs.standing import run_states
from storage.log import log_from_archive
from storage.monitor.alert_states import AlertState, Silence, Transition, standing, transitions
from storage.monitor.figures import Figures, Point, window_figures
from storage.monitor.ledger_figures import ledger_figures
from storage.monitor.rules import AlertRule
from storage.monitor.view import View, build_view
from streams.clock import now_ms
from streams.codec import decode_window
from streams.errors import SearchloopError

log = logging.getLogger(__name__)

LEDGER_SECONDS_MIN = 120.0
LEDGER_SHARE = 0.02
ROUND_SECONDS = 10.0  # Each round asks the broker and reads files of workers.
# Known better, or only, from elsewhere while somebody watches.
NOT_FROM_LEDGER = frozenset({"quiet_seconds"})


class LedgerLooks:
    """Reads a run's archive now and then, in a thread, for the figures that windows do not have."""

    def __init__(self, run_dir: RunFolder, *, seconds_min: float = LEDGER_SECONDS_MIN) -> None:
        self._run_dir = run_dir
        self._seconds_min = seconds_min
        self._stop = threading.Event()
        self._figures: Mapping[str, Sequence[Point]] = {}
        self._thread = threading.Thread(target=self._work, name="ledger-figures", daemon=True)
        self._thread.start()

    @property
    def figures(self) -> Figures:
        """Return the figures of the newest reading; empty before the first."""
        return self._figures

    def close(self) -> None:
        """End the thread, without waiting for a reading in progress."""
        self._stop.set()

    def _work(self) -> None:
        pause = 0.0
        while not self._stop.wait(pause):
            began = time.monotonic()
            try:
                with log_from_archive(self._run_dir) as ledger:
                    found = ledger_figures(ledger, staleness_max=staleness_limit(self._run_dir))
                self._figures = {name: points for name, points in found.items() if name not in NOT_FROM_LEDGER}
            except (SearchloopError, OSError) as error:
                log.debug("the archive cannot be read now, so its figures stay those of before: %s", error)
            pause = max((time.monotonic() - began) / LEDGER_SHARE, self._seconds_min)


class AlertDesk:
    """Judges a run's rules at each look, and remembers their states.

    keeps: whether changes are kept in the run's folder and sent. Only one process does so, the run's monitor.
    """

    def __init__(
        self,
        run_dir: RunFolder,
        settings: AlertSettings,
        *,
        keeps: bool,
        ledger: Callable[[], Figures] = dict,
    ) -> None:
        """Raise SettingsError if the user's rules are wrong. ledger: gives the figures that windows do not have."""
        self._run_dir = run_dir
        self._keeps = keeps
        self._ledger = ledger
        self._rules = alert_rules(settings)
        self._silences: tuple[Silence, ...] = ()
        self._webhook = Webhook(settings, run=run_dir.name) if keeps and settings.webhook else None
        kept = read_transitions(run_dir) if keeps else []
        self._states: tuple[AlertState, ...] = _states_before(kept, self._rules)
        self._told = {each.rule: each.state for each in kept if each.state in TOLD}

    def look(self, windows: Figures, *, now_ms: int) -> tuple[AlertState, ...]:
        """Return the states of the rules now; keep and send what changed since the last look.

        windows: the figures of the run's windows; they win over the ledger's, which are older.
        """
        figures = {**self._ledger(), **windows}
        try:
            self._silences = read_silences(self._run_dir)
        except SearchloopError as error:
            log.warning("%s", error)
        now = standing(figures, self._states, self._rules, self._silences, now_ms=now_ms)
        changes = transitions(self._states, now, now_ms=now_ms)
        self._states = now
        if self._keeps and changes:
            append_transitions(self._run_dir, changes)
            self._tell(changes)
        return now

    def _tell(self, changes: Sequence[Transition]) -> None:
        """Send what people do not know yet: not that an alert goes on, when its data was missing in between."""
        news = []
        for each in changes:
            if each.state in TOLD and (each.before == "silenced" or self._told.get(each.rule) != each.state):
                self._told[each.rule] = each.state
                news.append(each)
        if self._webhook is not None:
            self._webhook.tell(news)

    def close(self) -> None:
        """End the delivery; what is not sent yet stays in the run's record of changes."""
        if self._webhook is not None:
            self._webhook.close()


class AlertRounds:
    """Judges the rules of a monitor's run every `ROUND_SECONDS`, in a thread, so that the monitor never waits."""

    def __init__(self, app: App, run: str) -> None:
        """Start the thread. Raises SettingsError if the user's rules are wrong."""
        self._app = app
        self._run = run
        run_dir = app.home.run(run)
        self._looks = LedgerLooks(run_dir)
        self._desk = AlertDesk(run_dir, app.tables(AlertTable).alerts, keeps=True, ledger=lambda: self._looks.figures)
        self._staleness_max = staleness_limit(run_dir)
        self._windows: Mapping[bytes, bytes] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="alerts", daemon=True)
        self._thread.start()

    def publish(self, windows: Mapping[bytes, bytes]) -> None:
        """Take the windows that the monitor has published, for the next round."""
        self._windows = windows

    def close(self) -> None:
        """End the thread and the delivery."""
        self._stop.set()
        self._looks.close()
        self._thread.join(timeout=CLOSE_SECONDS)
        self._desk.close()

    def _work(self) -> None:
        while not self._stop.wait(ROUND_SECONDS):
            if not self._windows:
                continue
            try:
                (state,) = run_states(self._app.home, self._app.connections.kafka, [self._run])
                view = build_view(
                    self._run,
                    [decode_window(value) for value in self._windows.values()],
                    updates_wanted=0,
                    staleness_max=self._staleness_max,
                    standing=state,
                )
                self._desk.look(figures_of(view, staleness_max=self._staleness_max), now_ms=now_ms())
            except (SearchloopError, OSError) as error:
                log.warning("the alerts were not judged: %s", error)


def figures_of(view: View, *, staleness_max: int) -> dict[str, list[Point]]:
    """Return the figures of a view."""
    return window_figures(
        view.versions,
        dead_letters=sum(view.dead_letters.values()),
        staleness_max=staleness_max,
        state=view.state,
        now_ms=now_ms(),
    )


def _states_before(kept: Sequence[Transition], rules: Sequence[AlertRule]) -> tuple[AlertState, ...]:
    """Return the states that the record of changes ends with, so that a new monitor goes on from there."""
    last = {each.rule: each for each in kept}
    fired = {each.rule: each.state == "firing" for each in kept if each.state in ("ok", *TOLD)}
    return tuple(
        AlertState(
            rule=rule.name,
            severity=rule.severity,
            state=last[rule.name].state,
            beneath=last[rule.name].state,
            since_ms=last[rule.name].at_ms,
            condition=last[rule.name].condition,
            fired=fired.get(rule.name, False),
        )
        for rule in rules
        if rule.name in last
    )
