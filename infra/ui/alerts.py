"""The alerts of a run as the pages show them: every rule with its state now, and the rows behind it."""

from __future__ import annotations

from infra.app.home import RunFolder
from infra.monitoring.alert_files import alert_rules, read_silences, staleness_limit
from infra.ui.ledgers import Ledgers
from storage.monitor.alert_states import AlertState, standing
from storage.monitor.ledger_figures import ledger_figures
from streams.clock import now_ms

ORDER = {"firing": 0, "silenced": 1, "recovered": 2}


def states_of(ledgers: Ledgers, folder: RunFolder) -> list[AlertState]:
    """Return each rule's state at the end of a run's log, the firing ones first.

    One look has no history: a rule that must hold for some time fires as soon as its last points break it.
    Raises UnknownRun, StorageError, SettingsError.
    """
    rules = alert_rules(ledgers.app.settings.alerts)
    with ledgers.log(folder) as log:
        figures = ledger_figures(log, staleness_max=staleness_limit(folder))
    states = standing(figures, (), rules, read_silences(folder), now_ms=now_ms())
    return sorted(states, key=lambda each: ORDER.get(each.state, 3))
