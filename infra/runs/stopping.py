"""The end of a run's workers: in the order of the stream, and the ledger whole even if its sink dies meanwhile."""

from __future__ import annotations

from collections.abc import Sequence

from infra.app.app import App
from infra.app.interrupts import received
from infra.runs.sinks import run_sink_worker
from infra.runs.supervisor import Supervisor
from streams.stopping import Stop


def stop_in_order(app: App, workers: Supervisor, *, run: str, roles: Sequence[str]) -> None:
    """Stop the last of the roles first; a sink that did not end by itself is followed by one in this process.

    Until then whoever dies is restarted, but from here on nobody is: what a dead sink had not written yet would stay
    out of the ledger until the run goes on, and `verify` would say so. After Ctrl-C there are only seconds: all but the
    sink stop at once, and a sink that is cut short is made up for when the run goes on.
    """
    first = [role for role in reversed(roles) if role != "sink"]
    for group in [first] if received() else [[role] for role in first]:
        workers.stop(group)
    if "sink" in roles:
        ended_well = workers.stop(["sink"])
        if not ended_well and not received():
            stop = Stop()
            stop.set()
            run_sink_worker(app, run=run, worker=0, stop=stop)
