"""The alerts of a run as the pages show them: every rule with its state now, and the rows behind it."""

from __future__ import annotations

import asyncio
from functools import partial

from aiohttp import web

from infra.monitoring.alert_files import alert_rules, read_silences, staleness_limit
from infra.ui.answers import LEDGERS, json_answer, run_of
from infra.ui.ledgers import Ledgers
from storage.monitor.alert_states import AlertState, standing
from storage.monitor.edges import reach_of
from storage.monitor.figures import Figures
from storage.monitor.ledger_figures import ledger_figures
from streams.clock import now_ms

ORDER = {"firing": 0, "silenced": 1, "recovered": 2}


async def alerts(request: web.Request) -> web.Response:
    """Answer with the state of every alert rule at the end of the run's log.

    The figures rest; rules and silences are read each time.
    """
    ledgers, run = request.app[LEDGERS], run_of(request)
    found = await ledgers.rested(run, "figures", lambda: ledgers.apart(partial(_figures, ledgers, run)))
    states = await asyncio.to_thread(states_of, ledgers, run, found.answer)
    return json_answer({"alerts": states, "rest": found.rest})


def states_of(ledgers: Ledgers, run: str, figures: Figures) -> list[AlertState]:
    """Return each rule's state by the figures of a run, the firing ones first.

    One look has no history: a rule that must hold for some time fires as soon as its last points break it.
    Raises SettingsError.
    """
    rules = alert_rules(ledgers.app.settings.alerts)
    states = standing(figures, (), rules, read_silences(ledgers.app.home.run(run)), now_ms=now_ms())
    return sorted(states, key=lambda each: ORDER.get(each.state, 3))


def _figures(ledgers: Ledgers, run: str) -> Figures:
    folder = ledgers.app.home.run(run)
    with ledgers.log(folder) as log:
        reach = reach_of(alert_rules(ledgers.app.settings.alerts))
        return ledger_figures(log, staleness_max=staleness_limit(folder), reach=reach)
