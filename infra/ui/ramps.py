"""A version's way to people as the pages show it: the decisions in the ledger, and what people did since then."""

from __future__ import annotations

from typing import Any

import msgspec

from infra.promotion.decided import STATUS
from infra.promotion.evidence import seen_at_stage
from search_env.serving.ramp import Ramp, RampSettings, StageResult, next_step
from storage.log import Log
from storage.offpolicy.reading import read_traffic
from streams.utility import UtilitySettings

SHARE_TOLERANCE = 1e-9

_DECISIONS = """
SELECT version, kind, share, reason, evidence, "by", at_ms FROM first_decisions WHERE run = ?
ORDER BY at_ms DESC, record_offset DESC
"""


class LastDecision(msgspec.Struct, frozen=True, kw_only=True):
    """The newest decision about the version."""

    kind: str
    reason: str
    by: str
    at_ms: int


class RampState(msgspec.Struct, frozen=True, kw_only=True):
    """Where a version stands. status: as on the ramp, or "explored" or "refused" before it.

    stage: from 1; 0 if it is on none. stages: their shares. seen: what people did at this stage, while it lasts.
    waits: what the rules say of that.
    """

    version: str
    status: str
    share: float
    stage: int
    stages: tuple[float, ...]
    since_ms: int
    last: LastDecision
    seen: StageResult | None = None
    waits: str = ""


def read_ramp_state(log: Log, run: str, settings: RampSettings, utility: UtilitySettings) -> RampState | None:
    """Return the state of the version that was decided on last, or None without a decision. Raises StorageError.

    A ramp that goes on is judged as `searchloop promote` judges it, by the same rules.
    """
    rows = log.rows(_DECISIONS, [run])
    if not rows:
        return None
    newest = rows[0]
    status = STATUS.get(newest["kind"], "explored" if newest["kind"] == "admit" else "refused")
    stages = settings.stages
    stage = _stage(newest, stages) if newest["kind"] in STATUS else 0
    state = RampState(
        version=newest["version"],
        status=status,
        share=newest["share"],
        stage=stage,
        stages=stages,
        since_ms=newest["at_ms"],
        last=LastDecision(kind=newest["kind"], reason=newest["reason"], by=newest["by"], at_ms=newest["at_ms"]),
    )
    if status != "ramping":
        return state
    ramp = Ramp(version=state.version, stage=max(stage - 1, 0), share=state.share, since_ms=state.since_ms)
    seen = seen_at_stage(read_traffic(log, run, utility, since_ms=state.since_ms), ramp, settings)
    return msgspec.structs.replace(state, seen=seen, waits=next_step(ramp, seen, settings).reason)


def _stage(decision: dict[str, Any], stages: tuple[float, ...]) -> int:
    """Return the number of the stage with the decision's share, from 1; 0 if none has it."""
    return next((n for n, share in enumerate(stages, 1) if abs(share - decision["share"]) < SHARE_TOLERANCE), 0)
