"""The end of a run's workers: in the order of the stream, with a whole ledger even if the sink dies meanwhile."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from infra.app.app import App
from infra.app.interrupts import received
from infra.runs.elsewhere import wait_until_drained
from infra.runs.sinks import run_sink_worker
from infra.runs.supervisor import Supervisor
from streams.stopping import Stop


def stop_in_order(
    app: App, workers: Supervisor, *, run: str, roles: Sequence[str], elsewhere: Collection[str] = ()
) -> None:
    """Stop the roles, the last of them first. If the sink fails, another one runs in this process.

    Before this call every dead worker is restarted; from here on none is. Records that a dead sink had not written
    would stay out of the ledger until the run goes on, and `verify` would report them. After Ctrl-C there are only
    seconds: all roles but the sink stop at once. If a sink is cut short, the run writes its records when it goes on.
    elsewhere: the roles whose workers another machine has; they are not stopped, but may finish their work.
    """
    first = [role for role in reversed(roles) if role != "sink"]
    for group in [first] if received() else [[role] for role in first]:
        if set(group) <= set(elsewhere):
            wait_until_drained(app, run, group[0])
        else:
            workers.stop(group)
    if "sink" in roles:
        ended_well = workers.stop(["sink"])
        if not ended_well and not received():
            stop = Stop()
            stop.set()
            run_sink_worker(app, run=run, worker=0, stop=stop)
