"""The figures behind a decision, from the ledger of the live run."""

from __future__ import annotations

import math

import numpy as np

from search_env.serving.ramp import Ramp, RampSettings, StageResult
from storage.errors import EvaluationError
from storage.offpolicy.estimators import estimate_gain, support
from storage.offpolicy.traffic import RewardModel, Traffic, choices_for
from storage.online.sequences import Values, mean_difference
from storage.online.shares import share_p_value

SHARE_TOLERANCE = 1e-6


def seen_at_stage(traffic: Traffic, ramp: Ramp, settings: RampSettings) -> StageResult:
    """Return what people did since the stage began, at searches that offered the version with the stage's share."""
    there = [
        at >= ramp.since_ms and abs(offer.get(ramp.version, 0.0) - ramp.share) < SHARE_TOLERANCE
        for at, offer in zip(traffic.at_ms, traffic.offered, strict=True)
    ]
    stage = traffic.where(there)
    treated = np.array([policy == ramp.version for policy in stage.policies], dtype=bool)
    return stage_result(Values.of(stage.utilities[treated]), Values.of(stage.utilities[~treated]), ramp, settings)


def stage_result(version: Values, others: Values, ramp: Ramp, settings: RampSettings) -> StageResult:
    """Return the figures of a stage from what the version's searches and the others earned."""
    # Each stage spends its part of alpha, so that the whole ramp errs with at most alpha.
    found = mean_difference(version, others, alpha=settings.alpha / len(settings.stages))
    mismatch = 1.0
    if version.count + others.count and 0 < ramp.share < 1:
        mismatch = share_p_value(
            {"version": version.count, "others": others.count},
            {"version": ramp.share, "others": 1 - ramp.share},
        )
    return StageResult(
        treated=version.count,
        others=others.count,
        worth=others.mean,
        difference=found.value,
        low=found.low,
        high=found.high,
        mismatch=mismatch,
    )


def gate(traffic: Traffic, version: str, before: str, settings: RampSettings) -> tuple[bool, str, dict[str, float]]:
    """Return whether a version may come to people, why, and the figures: the off-policy estimate of its gain.

    before: the policy that people get now, "" for raw results. A log that says nothing does not open the gate.
    """
    if not any(version in offer for offer in traffic.offered):
        return False, "no logged search offered this version: serve it to a small share first (serve.epsilon)", {}
    try:
        model = RewardModel(traffic)
        choices, base = choices_for(traffic, version, model), choices_for(traffic, before, model)
        covered = support(choices)
        if covered.trouble:
            return False, covered.trouble, {"ess": covered.ess}
        found = estimate_gain(choices, base, "dr")
    except EvaluationError as error:
        return False, str(error), {}
    figures = {"gain": found.value, "low": found.low, "high": found.high, "ess": covered.ess}
    said = f"off-policy gain {found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}] a search"
    if found.low < -settings.gate_loss_max:
        return False, f"{said}; expected a lower end above {-settings.gate_loss_max:g} (ramp.gate_loss_max)", figures
    return True, said, figures


def figures_of(seen: StageResult) -> dict[str, float]:
    """Return the figures of a stage for an event; infinite ends are left out."""
    figures = {
        "treated": float(seen.treated),
        "others": float(seen.others),
        "worth": seen.worth,
        "difference": seen.difference,
        "low": seen.low,
        "high": seen.high,
        "mismatch": seen.mismatch,
    }
    return {name: value for name, value in figures.items() if math.isfinite(value)}
