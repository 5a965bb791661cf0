"""The check of a ramp's state against the log: a state that no decision made was written by somebody else."""

from __future__ import annotations

from infra.app.app import App
from search_env.serving.ramp import Ramp, Status
from storage.log import open_log
from streams.errors import SettingsError
from streams.ranges import read_events
from streams.serving_events import Decision

SHARE_TOLERANCE = 1e-9
STATUS: dict[str, Status] = {
    "start": "ramping",
    "advance": "ramping",
    "hold": "held",
    "finish": "serves",
    "roll back": "rolled back",
}


def require_decided(app: App, run: str, ramp: Ramp) -> None:
    """Raise SettingsError if no decision in Kafka or in the ledger led to this version, status and share.

    A state that is older than the last decision is sound: the process died before it kept the new one.
    """
    with open_log(app.home.existing_run(run)) as log:
        rows = log.rows("SELECT version, kind, share FROM first_decisions WHERE run = ?", [run])
    known = {(row["version"], row["kind"], row["share"]) for row in rows}
    known |= {(each.version, each.kind, each.share) for each in read_events(app.connections.kafka, run, Decision)}
    for version, kind, share in known:
        same = version == ramp.version and STATUS.get(kind) == ramp.status
        if same and abs(share - ramp.share) < SHARE_TOLERANCE:
            return
    raise SettingsError(
        f"run {run}: ramp.json says that version {ramp.version[:100]!r} stands at {ramp.share:.1%} ({ramp.status}), "
        "but no decision in the log says so: somebody else wrote the file. Look: searchloop promote --why. Then move "
        "the file away, and promote the version again"
    )
