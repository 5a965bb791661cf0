"""The figures behind a decision, from the ledger of the live run."""

from __future__ import annotations

import math
from typing import NamedTuple

import msgspec
import numpy as np

from infra.app.settings import Settings
from search_env.serving.ramp import Ramp, RampSettings, StageResult
from search_env.serving.route_learning import COMPARISONS, LOG, decide
from search_env.serving.routing import Bound, PartGains, Routes, part_of
from storage.errors import EvaluationError
from storage.offpolicy.estimators import ESS_MIN, estimate_gain, support
from storage.offpolicy.traffic import NOT_BOTH, RewardModel, Traffic, choices_for, clusters_of, comparable
from storage.online.sequences import Values, half_width, mean_difference
from storage.online.shares import share_p_value

SHARE_TOLERANCE = 1e-6
PROVEN_HIGH = "high_at_all_times"


def seen_at_stage(traffic: Traffic, ramp: Ramp, settings: RampSettings) -> StageResult:
    """Return what people did since the stage began, at searches that offered the version with the stage's share."""
    there = [
        at >= ramp.since_ms and abs(offer.get(ramp.version, 0.0) - ramp.share) < SHARE_TOLERANCE
        for at, offer in zip(traffic.at_ms, traffic.offered, strict=True)
    ]
    stage = traffic.where(there)
    treated = np.array([policy == ramp.version for policy in stage.policies], dtype=bool)
    return stage_result(_side(stage.where(treated)), _side(stage.where(~treated)), ramp, settings)


class Side(NamedTuple):
    """One side of a stage: its searches, and what they earn as independent draws, which are clients."""

    searches: int
    worth: Values


def _side(traffic: Traffic) -> Side:
    # One client always gets the same side, so clients are drawn and not searches.
    return Side(len(traffic), Values.of_clusters(traffic.utilities, clusters_of(traffic.clients)))


def stage_result(version: Side, others: Side, ramp: Ramp, settings: RampSettings) -> StageResult:
    """Return the figures of a stage from what the version's searches and the others earned."""
    # Each stage spends its part of alpha, so that the whole ramp errs with at most alpha.
    found = mean_difference(version.worth, others.worth, alpha=settings.alpha / len(settings.stages))
    mismatch = 1.0
    if version.searches + others.searches and 0 < ramp.share < 1:
        mismatch = share_p_value(
            {"version": version.worth.count, "others": others.worth.count},
            {"version": ramp.share, "others": 1 - ramp.share},
        )
    return StageResult(
        treated=version.searches,
        others=others.searches,
        worth=others.worth.mean,
        difference=found.value,
        low=found.low,
        high=found.high,
        mismatch=mismatch,
    )


def gate(traffic: Traffic, version: str, before: str, settings: RampSettings) -> tuple[bool, str, dict[str, float]]:
    """Return whether a version may come to people, why, and the figures: the off-policy estimate of its gain.

    before: the policy that people get now, "" for raw results. A log that says nothing does not open the gate.
    The gate is asked again and again. To open it too soon costs a small share of the people, whom the ramp guards. To
    take a good version for a harmful one ends it, so harm has an interval that holds at all times (`PROVEN_HIGH`).
    """
    if not any(version in offer for offer in traffic.offered):
        return False, "no logged search offered this version: serve it to a small share first (serve.epsilon)", {}
    traffic = comparable(traffic, version, before)
    if not len(traffic):
        return False, f"not evaluable: {NOT_BOTH}", {}
    try:
        model = RewardModel(traffic)
        choices = choices_for(traffic, version, model, before=before)
        base = choices_for(traffic, before, model)
        covered = support(choices)
        if covered.trouble:
            return False, covered.trouble, {"ess": covered.ess}
        found = estimate_gain(choices, base, "dr")
    except EvaluationError as error:
        return False, str(error), {}
    figures = {"gain": found.value, "low": found.low, "high": found.high, "ess": covered.ess}
    if math.isfinite(found.error):
        clients = len(np.unique(choices.clusters))
        figures[PROVEN_HIGH] = found.value + half_width(clients, found.error**2, settings.alpha)
    said = f"off-policy gain {found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}] a search"
    if found.low < -settings.gate_loss_max:
        return False, f"{said}; expected a lower end above {-settings.gate_loss_max:g} (ramp.gate_loss_max)", figures
    return True, said, figures


def routes_with_log(traffic: Traffic, routes: Routes, before: str, settings: Settings) -> Routes:
    """Return a version's routes after what people did in each part of the queries; see `route_learning`.

    A part for which the log cannot tell keeps its judged evidence alone.
    """
    known, head = frozenset(routes.known), frozenset(routes.head)
    part = {
        query: part_of(query, routes.by, known=known, head=head, categories=routes.categories)
        for query in set(traffic.queries)
    }
    names = np.array([part[query] for query in traffic.queries], dtype=object)
    sources = {source for part in routes.parts.values() for source in part.seen} | {LOG}
    level = settings.route.alpha / (COMPARISONS * max(len(routes.parts), 1) * len(sources))
    parts = {}
    for name, known_part in routes.parts.items():
        found = _log_of(traffic.where(names == name), routes.version, before, level)
        if found is None:
            parts[name] = known_part
            continue
        parts[name] = decide(
            {**known_part.seen, LOG: found}, settings.route, explore_loss_max=settings.ramp.held_out_loss_max
        )
    return msgspec.structs.replace(routes, parts=parts)


def _log_of(traffic: Traffic, version: str, before: str, level: float) -> PartGains | None:
    """Return what people did in one part of the queries, or None if the log cannot tell."""
    traffic = comparable(traffic, version, before)
    try:
        choices, base = choices_for(traffic, version, before=before), choices_for(traffic, before)
        if support(choices).trouble or sum(each == version for each in traffic.policies) < ESS_MIN:
            return None
        found = estimate_gain(choices, base, "dr", confidence=1 - 2 * level)
    except EvaluationError:
        return None
    bound = Bound(own=found.value, value=found.value, low=found.low, high=found.high)
    return PartGains(queries=len(traffic), protect=bound, gain=bound, below=bound)


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
