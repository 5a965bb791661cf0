"""What a log can compare: searches that could have shown both policies. Everything else proves nothing about a gain."""

from __future__ import annotations

import numpy as np
import pytest

from infra.promotion.evidence import PROVEN_HIGH, gate
from search_env.serving.ramp import RampSettings
from storage.errors import EvaluationError
from storage.offpolicy.traffic import RAW, Traffic, choices_for, comparable
from storage.offpolicy.versions import VersionValue, evaluate_versions

OLD, NEW = "1-old-000001", "1-new-000002"


def searches(count: int, offered: dict[str, float], rates: dict[str, float], *, seed: int = 0) -> Traffic:
    """Searches that one server offered these choices; each policy's results are clicked at its rate."""
    random = np.random.default_rng(seed)
    names = sorted(offered)
    policies = [names[place] for place in random.choice(len(names), size=count, p=[offered[name] for name in names])]
    return Traffic(
        queries=[f"query {number % 89}" for number in range(count)],
        clients=[f"client {seed} {number}" for number in range(count)],
        at_ms=np.arange(count, dtype=np.int64) + 1_000_000 * seed,
        policies=policies,
        propensities=np.array([offered[policy] for policy in policies]),
        offered=[offered] * count,
        utilities=np.array([float(random.random() < rates[policy]) for policy in policies]),
        left_out={},
    )


def together(*parts: Traffic) -> Traffic:
    """One log of several times, in each of which the servers chose in another way."""
    return Traffic(
        queries=[each for part in parts for each in part.queries],
        clients=[each for part in parts for each in part.clients],
        at_ms=np.concatenate([part.at_ms for part in parts]),
        policies=[each for part in parts for each in part.policies],
        propensities=np.concatenate([part.propensities for part in parts]),
        offered=[each for part in parts for each in part.offered],
        utilities=np.concatenate([part.utilities for part in parts]),
        left_out={},
    )


def of(found: list[VersionValue], policy: str) -> VersionValue:
    return next(each for each in found if each.policy == policy)


def test_a_version_that_serves_everywhere_gains_nothing_by_hiding_the_raw_results() -> None:
    rates = {RAW: 0.3, OLD: 0.3}
    tried = searches(4_000, {RAW: 0.5, OLD: 0.5}, rates, seed=1)
    served = searches(4_000, {OLD: 1.0}, rates, seed=2)
    found = evaluate_versions(together(tried, served))
    alone = evaluate_versions(tried)
    assert of(found, OLD).gains == of(alone, OLD).gains
    assert all(gain.low <= 0 <= gain.high for gain in of(found, OLD).gains.values())
    assert of(found, OLD).impressions == of(found, RAW).impressions == 4_000
    assert "no search could have shown both" in of(evaluate_versions(served), OLD).trouble


def test_a_newcomer_is_compared_with_what_serves_and_not_with_raw_results_where_it_was_not_offered() -> None:
    rates = {RAW: 0.1, OLD: 0.4, NEW: 0.4}
    log = together(
        searches(3_000, {RAW: 0.5, OLD: 0.5}, rates, seed=1),  # The old version's own ramp.
        searches(6_000, {OLD: 1.0}, rates, seed=2),  # Queries of which the newcomer has no answer.
        searches(6_000, {OLD: 0.9, NEW: 0.1}, rates, seed=3),
    )
    opened, reason, figures = gate(log, NEW, OLD, RampSettings(gate_loss_max=0.05))
    assert figures["low"] <= 0 <= figures["high"], reason
    assert opened, reason
    worse = together(log, searches(6_000, {OLD: 0.5, NEW: 0.5}, rates | {NEW: 0.05}, seed=4))
    assert gate(worse, NEW, OLD, RampSettings())[2]["high"] < 0


def test_searches_that_asked_for_a_version_by_name_do_not_open_its_gate() -> None:
    rates = {RAW: 0.3, NEW: 0.3}
    log = searches(2_000, {RAW: 0.9, NEW: 0.1}, rates, seed=1)
    asked_for = searches(5_000, {NEW: 1.0}, {NEW: 1.0}, seed=2)  # Somebody who wants it, and clicks each time.
    settings = RampSettings()
    assert gate(together(log, asked_for), NEW, RAW, settings) == gate(log, NEW, RAW, settings)
    opened, reason, _ = gate(asked_for, NEW, RAW, settings)
    assert (opened, "no search could have shown both" in reason) == (False, True)


def test_what_no_search_could_show_is_refused_and_not_guessed() -> None:
    served = searches(10, {OLD: 1.0}, {OLD: 0.5})
    with pytest.raises(EvaluationError, match="10 of 10 searches could not have shown"):
        choices_for(served, RAW)
    mixed = together(served, searches(5, {RAW: 1.0}, {RAW: 0.5}, seed=1))
    kept = comparable(mixed, OLD)
    assert (len(kept), set(kept.policies)) == (5, {RAW})
    assert len(comparable(kept, OLD)) == len(comparable(kept, RAW)) == 5


def test_who_asks_the_gate_again_and_again_rarely_takes_an_equal_for_a_harmful_version() -> None:
    rates, proven, looked = {RAW: 0.3, NEW: 0.3}, 0, 0
    for seed in range(80):
        log = searches(3_000, {RAW: 0.8, NEW: 0.2}, rates, seed=seed)
        figures = [
            gate(log.where(np.arange(3_000) < count), NEW, RAW, RampSettings())[2]
            for count in (200, 270, 360, 480, 650, 870, 1_170, 1_580, 2_100, 3_000)
        ]
        proven += any(each.get(PROVEN_HIGH, 0.0) < 0 for each in figures)
        looked += any(each.get("high", 0.0) < 0 for each in figures)
    assert proven <= 4, "at most 5 %"
    assert looked > proven, "the control: an interval for one look"
    harmful = searches(3_000, {RAW: 0.8, NEW: 0.2}, rates | {NEW: 0.15})
    assert gate(harmful, NEW, RAW, RampSettings())[2][PROVEN_HIGH] < 0
