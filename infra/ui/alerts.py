"""The alerts of a run as the pages show them: every rule with its state now, and the rows behind it."""

from __future__ import annotations

import asyncio
import time

from infra.app.home import RunFolder
from infra.monitoring.alert_files import read_silences, staleness_limit
from infra.monitoring.alert_settings import AlertSettings
from infra.monitoring.alerting import alert_rules
from infra.ui.ledgers import Ledgers
from storage.monitor.alert_states import AlertState, standing
from storage.monitor.ledger_figures import ledger_figures
from streams.clock import now_ms

SECONDS_MIN = 15.0
REST = 20  # Reading the figures takes at most this part of the time: the figures of a long log take seconds.


class AlertLooks:
    """Looks at the alerts of runs, one at a time. A look within the rest after the last one gets the same states."""

    def __init__(self, ledgers: Ledgers, settings: AlertSettings) -> None:
        self._ledgers = ledgers
        self._settings = settings
        self._lock = asyncio.Lock()
        self._known: dict[str, tuple[float, list[AlertState]]] = {}

    async def states(self, run: str) -> list[AlertState]:
        """Return each rule's state at the end of a run's log, the firing ones first.

        One look has no history: a rule that must hold for some time fires as soon as its last points break it.
        Raises UnknownRun, StorageError, SettingsError.
        """
        self._ledgers.source(run)
        async with self._lock:
            until, states = self._known.get(run, (0.0, []))
            if time.monotonic() >= until:
                began = time.monotonic()
                states = await asyncio.to_thread(self._look, self._ledgers.app.home.run(run))
                ended = time.monotonic()
                self._known[run] = (ended + max(SECONDS_MIN, REST * (ended - began)), states)
        return states

    def _look(self, folder: RunFolder) -> list[AlertState]:
        rules = alert_rules(self._settings)
        with self._ledgers.log(folder) as log:
            figures = ledger_figures(log, staleness_max=staleness_limit(folder))
        states = standing(figures, (), rules, read_silences(folder), now_ms=now_ms())
        order = {"firing": 0, "silenced": 1, "recovered": 2}
        return sorted(states, key=lambda each: order.get(each.state, 3))
