"""The check of a ramp's state against the log: a state that no decision made was written by somebody else.

The other way round, a decision may have no state: whoever made it was killed before the state was kept. A hold or a
roll-back of which that is true is finished, because people were promised it.
"""

from __future__ import annotations

from typing import NamedTuple

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
SAFE = ("held", "rolled back")


class Decided(NamedTuple):
    """One decision of the log, as far as a state follows from it."""

    version: str
    kind: str
    share: float


def decisions_of(app: App, run: str) -> list[Decided]:
    """Return the decisions of a run in the order of the log: those of its ledger, and those that only Kafka has yet."""
    with open_log(app.home.existing_run(run)) as log:
        rows = log.rows("SELECT * FROM first_decisions WHERE run = ? ORDER BY record_offset", [run])
    stored = {row["decision_id"] for row in rows}
    found = [Decided(row["version"], row["kind"], row["share"]) for row in rows]
    for each in read_events(app.connections.kafka, run, Decision):
        if each.decision_id not in stored:
            stored.add(each.decision_id)
            found.append(Decided(each.version, each.kind, each.share))
    return found


def require_decided(run: str, ramp: Ramp, decisions: list[Decided]) -> None:
    """Raise SettingsError if no decision led to this version, status and share, or to what people get beside it.

    A state that is older than the last decision is sound: the process died before it kept the new one.
    """
    if not any(
        each.version == ramp.version
        and STATUS.get(each.kind) == ramp.status
        and abs(each.share - ramp.share) < SHARE_TOLERANCE
        for each in decisions
    ):
        raise SettingsError(
            f"run {run}: ramp.json says that version {ramp.version[:100]!r} stands at {ramp.share:.1%} "
            f"({ramp.status}), but no decision in the log says so{FORGED}"
        )
    if ramp.before and not any(each.version == ramp.before and each.kind == "finish" for each in decisions):
        raise SettingsError(
            f"run {run}: ramp.json says that people get version {ramp.before[:100]!r} beside {ramp.version[:100]!r}, "
            f"but no decision in the log finished its ramp{FORGED}"
        )


FORGED = (
    ": somebody else wrote the file. Look: searchloop promote --why. Then move the file away, and promote the "
    "version again"
)


def promised(ramp: Ramp, decisions: list[Decided]) -> Decided | None:
    """Return the hold or the roll-back that was decided last on the ramp's version, if its state was never kept."""
    last = next((each for each in reversed(decisions) if each.version == ramp.version and each.kind in STATUS), None)
    if last is None or STATUS[last.kind] not in SAFE or ramp.status in (STATUS[last.kind], "rolled back"):
        return None
    return last
