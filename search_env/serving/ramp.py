"""A version's way to people: 1, 5, 10, 25, 50, 100 % of the searches, and back at once if it harms. All of it is pure.

At each stage the version's searches are compared with the others of the same stage. The interval of the difference
holds at all times (`storage/online/sequences.py`), and each stage spends its part of the error. So somebody may look
after every search, and a version that is no worse is rolled back with at most the probability `alpha`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from streams.descriptions import describe
from streams.errors import SettingsError

Share = Annotated[float, msgspec.Meta(gt=0, le=1)]
Status = Literal["ramping", "held", "serves", "rolled back"]


class RampSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the ramp on which a new version comes to people."""

    stages: Annotated[
        tuple[Share, ...],
        msgspec.Meta(min_length=1),
        describe("Share of the searches at each stage, rising from below 1; the last one ends the ramp."),
    ] = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0)
    impressions_min: Annotated[
        int, msgspec.Meta(ge=2), describe("Searches with the version that a stage needs before the next one.")
    ] = 200
    harm_max: Annotated[
        float,
        msgspec.Meta(gt=0),
        describe(
            "Loss that is tolerated, as a share of what the other searches earn. A stage ends once the interval "
            "rules it out. A version that loses this much is rolled back in the end."
        ),
    ] = 0.05
    alpha: Annotated[
        float, msgspec.Meta(gt=0, lt=1), describe("Probability of rolling back a version that does no harm.")
    ] = 0.05
    mismatch_alpha: Annotated[
        float,
        msgspec.Meta(gt=0, lt=1),
        describe("Probability of holding a sound ramp because its shares seem not to match."),
    ] = 0.001
    gate_loss_max: Annotated[
        float,
        msgspec.Meta(ge=0),
        describe("Loss of worth a search up to which a ramp starts, by the off-policy estimate."),
    ] = 0.02
    held_out_loss_max: Annotated[
        float,
        msgspec.Meta(ge=0, le=1),
        describe(
            "Loss in the protected measure (route.protect) on held-out queries, up to which a small share of people "
            "may see a version."
        ),
    ] = 0.02

    def __post_init__(self) -> None:
        """Raise SettingsError if the shares do not rise, or if the first one leaves nobody to compare with."""
        if self.stages[0] >= 1 or any(
            after <= before for before, after in zip(self.stages, self.stages[1:], strict=False)
        ):
            raise SettingsError(
                f"ramp.stages: expected shares that rise from below 1, such as 0.01, 0.1, 1, got {self.stages}"
            )


class Ramp(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a version's ramp, as the server reads it.

    version: the policy version. before: what the other searches get, "" for raw results. stage: its number from 0.
    share: of the searches that the version gets now. since_ms: when this stage began. status: "held" changes nothing
    until somebody goes on; "rolled back" and "serves" are ends.
    """

    version: Annotated[str, msgspec.Meta(min_length=1)]
    before: str = ""
    stage: Annotated[int, msgspec.Meta(ge=0)] = 0
    share: Annotated[float, msgspec.Meta(ge=0, le=1)]
    since_ms: Annotated[int, msgspec.Meta(ge=0)]
    status: Status = "ramping"


class StageResult(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of one stage. difference: of worth a search (version less before), with its interval.

    treated, others: searches of each side. worth: what one of the others earns. mismatch: p-value of their numbers
    under the planned share, at all times.
    """

    treated: int
    others: int
    worth: float
    difference: float
    low: float
    high: float
    mismatch: float


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of the rules: a kind of decision with its reason, or None for going on as it is."""

    kind: Literal["advance", "hold", "roll back", "finish"] | None
    reason: str


def next_step(ramp: Ramp, seen: StageResult, settings: RampSettings) -> Step:
    """Return what follows from what people did at this stage. Without data nothing changes."""
    if ramp.status != "ramping":
        return Step(kind=None, reason=f"the ramp is {ramp.status}")
    if seen.mismatch < settings.mismatch_alpha:
        planned = f"planned {ramp.share:.0%}, got {seen.treated:,} of {seen.treated + seen.others:,} searches"
        return Step(kind="hold", reason=f"the shares do not match, so no figure can be believed: {planned}")
    if seen.high < 0:
        return Step(
            kind="roll back",
            reason=f"people are worse off: {seen.difference:+.3f} [{seen.low:+.3f}, {seen.high:+.3f}] a search",
        )
    if seen.treated < settings.impressions_min:
        missing = f"{seen.treated:,} of {settings.impressions_min:,} searches"
        return Step(kind=None, reason=f"stage {ramp.stage + 1} waits for data: {missing}")
    if seen.low <= -settings.harm_max * max(seen.worth, 0.0):
        return Step(
            kind=None,
            reason=f"stage {ramp.stage + 1} cannot rule out a loss of {settings.harm_max:.2%} of {seen.worth:.3f}: "
            f"{seen.difference:+.3f} [{seen.low:+.3f}, {seen.high:+.3f}]",
        )
    # With all searches nobody is left to compare with, so that share ends the ramp.
    last = ramp.stage + 1 >= len(settings.stages) or settings.stages[ramp.stage + 1] >= 1
    return Step(
        kind="finish" if last else "advance",
        reason=f"a loss of {settings.harm_max:.2%} of {seen.worth:.3f} is ruled out: {seen.difference:+.3f} "
        f"[{seen.low:+.3f}, {seen.high:+.3f}] a search over {seen.treated:,} searches",
    )


def taken(ramp: Ramp, step: Step, settings: RampSettings, *, now_ms: int) -> Ramp:
    """Return the ramp after a step."""
    if step.kind == "advance":
        stage = ramp.stage + 1
        return msgspec.structs.replace(ramp, stage=stage, share=settings.stages[stage], since_ms=now_ms)
    if step.kind == "finish":
        return msgspec.structs.replace(ramp, status="serves", share=1.0, since_ms=now_ms)
    if step.kind == "roll back":
        return msgspec.structs.replace(ramp, status="rolled back", share=0.0, since_ms=now_ms)
    if step.kind == "hold":
        return msgspec.structs.replace(ramp, status="held", since_ms=now_ms)
    return ramp


def took_back(ramp: Ramp | None, version: str, admitted_ms: int) -> bool:
    """Return whether a ramp took a version back after its gate had admitted it; then that admission counts no more.

    The routes of a version that is rolled back are withdrawn, too, but in another file, and a crash may come before.
    """
    return (
        ramp is not None and ramp.version == version and ramp.status == "rolled back" and admitted_ms <= ramp.since_ms
    )


def offered_by(ramp: Ramp, available: set[str]) -> dict[str, float]:
    """Return the probability of each choice for one search.

    available: the versions that have an answer for its query. A version without an answer is not offered.
    """
    before = ramp.before if ramp.before in available else ""
    if ramp.version not in available or ramp.share <= 0:
        return {before: 1.0}
    if ramp.share >= 1:
        return {ramp.version: 1.0}
    return {before: 1 - ramp.share, ramp.version: ramp.share}
