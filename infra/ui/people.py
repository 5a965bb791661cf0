"""What people get and do, by the product's own functions: a version's ramp, versions with intervals, drift."""

from __future__ import annotations

from functools import partial

import msgspec
from aiohttp import web

from infra.monitoring.alert_files import alert_rules
from infra.ui.answers import LEDGERS, json_answer, run_of
from infra.ui.ledgers import Ledgers
from infra.ui.ramps import RampState, read_ramp_state
from storage.monitor.drift import DriftLine, drift_lines
from storage.monitor.ledger_figures import read_clicks
from storage.online.arms import LiveArm, read_arms
from storage.online.interleaving import Duel, read_duels


class LivePeople(msgspec.Struct, frozen=True, kw_only=True):
    """What a run of live traffic says. alpha: of the intervals, which hold at all times at once."""

    arms: list[LiveArm]
    duels: list[Duel]
    drift: list[DriftLine]
    alpha: float = 0.05


async def people(request: web.Request) -> web.Response:
    """Answer with versions, interleaved comparisons and drift of a run."""
    ledgers, run = request.app[LEDGERS], run_of(request)
    found = await ledgers.rested(run, "people", lambda: ledgers.apart(partial(_people, ledgers, run)))
    return json_answer({"people": found.answer, "rest": found.rest})


async def ramp(request: web.Request) -> web.Response:
    """Answer with the state of the version that was decided on last; null without a decision."""
    ledgers, run = request.app[LEDGERS], run_of(request)
    found = await ledgers.rested(run, "ramp", lambda: ledgers.apart(partial(_ramp, ledgers, run)))
    return json_answer({"ramp": found.answer, "rest": found.rest})


def _people(ledgers: Ledgers, run: str) -> LivePeople:
    settings = ledgers.app.settings
    with ledgers.log(ledgers.app.home.run(run)) as log:
        return LivePeople(
            arms=read_arms(log, run, settings.utility),
            duels=read_duels(log, run),
            drift=drift_lines(read_clicks(log), alert_rules(settings.alerts)),
        )


def _ramp(ledgers: Ledgers, run: str) -> RampState | None:
    settings = ledgers.app.settings
    with ledgers.log(ledgers.app.home.run(run)) as log:
        return read_ramp_state(log, run, settings.ramp, settings.utility)
