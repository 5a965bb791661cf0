"""The ramp of a version: every rule, equals that are rarely rolled back, harm that is found, and missing data."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from infra.promotion.evidence import gate, seen_at_stage
from search_env.serving.ramp import Ramp, RampSettings, StageResult, Step, next_step, offered_by, taken
from storage.offpolicy.traffic import RAW, Traffic

VERSION = "1-new-000001"
SETTINGS = RampSettings(impressions_min=100, harm_max=0.05)
RAMP = Ramp(version=VERSION, stage=1, share=0.05, since_ms=0)


def seen(**changes: Any) -> StageResult:
    given = {
        "treated": 500,
        "others": 9_500,
        "worth": 1.0,
        "difference": 0.0,
        "low": -0.03,
        "high": 0.03,
        "mismatch": 0.7,
    }
    return StageResult(**(given | changes))


@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        ({}, "advance", "a loss of 5.00% of 1.000 is ruled out"),
        ({"difference": -0.1, "low": -0.15, "high": -0.01}, "roll back", "people are worse off"),
        ({"mismatch": 1e-6, "high": -0.5}, "hold", "the shares do not match"),
        ({"treated": 99}, None, "waits for data: 99 of 100 searches"),
        ({"treated": 0, "others": 0, "low": -np.inf, "high": np.inf}, None, "waits for data: 0 of 100"),
        ({"worth": 0.5}, None, "cannot rule out a loss of 5.00% of 0.500"),
        ({"worth": 0.0, "low": 0.0, "high": 0.0}, None, "cannot rule out a loss"),
        ({"low": -0.06}, None, "cannot rule out a loss of 5.00% of 1.000"),
        ({"treated": 20, "difference": -0.9, "low": -1.0, "high": -0.4}, "roll back", "people are worse off"),
    ],
)
def test_each_state_of_the_data_has_its_step(changes: dict[str, Any], kind: str | None, said: str) -> None:
    step = next_step(RAMP, seen(**changes), SETTINGS)
    assert step.kind == kind
    assert said in step.reason


def test_a_ramp_without_harm_goes_through_every_share_and_serves() -> None:
    ramp, shares = msgspec.structs.replace(RAMP, stage=0, share=0.01), []
    while ramp.status == "ramping":
        shares.append(ramp.share)
        ramp = taken(ramp, next_step(ramp, seen(), SETTINGS), SETTINGS, now_ms=len(shares))
    assert shares == [0.01, 0.05, 0.1, 0.25, 0.5]
    assert (ramp.status, ramp.share) == ("serves", 1.0)
    assert next_step(ramp, seen(), SETTINGS).kind is None


def test_what_is_offered_follows_the_ramp() -> None:
    assert offered_by(RAMP, {VERSION}) == {RAW: 0.95, VERSION: 0.05}
    assert offered_by(RAMP, set()) == {RAW: 1.0}, "the version has no answer for this query"
    before = msgspec.structs.replace(RAMP, before="0-old-000000")
    assert offered_by(before, {VERSION, "0-old-000000"}) == {"0-old-000000": 0.95, VERSION: 0.05}
    assert offered_by(before, {VERSION}) == {RAW: 0.95, VERSION: 0.05}
    assert offered_by(msgspec.structs.replace(RAMP, share=0.0, status="rolled back"), {VERSION}) == {RAW: 1.0}
    assert offered_by(msgspec.structs.replace(RAMP, share=1.0, status="serves"), {VERSION}) == {VERSION: 1.0}


def traffic(random: np.random.Generator, count: int, share: float, rates: tuple[float, float]) -> Traffic:
    """Searches in which raw results and the version are clicked at these rates."""
    treated = random.random(count) < share
    return Traffic(
        queries=[f"q{n % 50}" for n in range(count)],
        clients=[f"c{n}" for n in range(count)],
        at_ms=np.arange(count, dtype=np.int64),
        policies=[VERSION if each else RAW for each in treated],
        propensities=np.where(treated, share, 1 - share),
        offered=[{RAW: 1 - share, VERSION: share}] * count,
        utilities=(random.random(count) < np.where(treated, rates[1], rates[0])).astype(float),
        left_out={},
    )


def went(random: np.random.Generator, rates: tuple[float, float]) -> str:
    """Follow a ramp with eight looks at each stage, and return its end."""
    settings = RampSettings(impressions_min=200, harm_max=0.05)
    ramp = Ramp(version=VERSION, share=settings.stages[0], since_ms=0)
    while ramp.status == "ramping":
        stage = traffic(random, 8_000, ramp.share, rates)
        for looked in (250, 500, 1_000, 2_000, 3_000, 4_000, 6_000, 8_000):
            step = next_step(ramp, seen_at_stage(stage.where(np.arange(8_000) < looked), ramp, settings), settings)
            if step.kind is not None:
                break
        else:  # More traffic of the same kind would come; the next stage stands for it here.
            step = Step(kind="advance" if ramp.stage < 4 else "finish", reason="")
        ramp = taken(ramp, step, settings, now_ms=0)
    return ramp.status


def test_equals_are_rarely_rolled_back_and_harm_is_found() -> None:
    random = np.random.default_rng(0)
    equal = [went(random, (0.3, 0.3)) for _ in range(40)]
    # With a probability of .05 each, more than six of 40 come with a probability below .005.
    assert equal.count("rolled back") <= 6
    assert [went(random, (0.3, 0.2)) for _ in range(10)] == ["rolled back"] * 10


def test_only_searches_of_this_stage_count() -> None:
    random = np.random.default_rng(1)
    stage = traffic(random, 1_000, 0.05, (0.3, 0.3))
    assert seen_at_stage(stage, RAMP, SETTINGS).treated == stage.policies.count(VERSION)
    assert seen_at_stage(stage, msgspec.structs.replace(RAMP, since_ms=1_000), SETTINGS).others == 0
    assert seen_at_stage(stage, msgspec.structs.replace(RAMP, share=0.1), SETTINGS).others == 0


def test_the_gate_opens_for_a_version_for_which_the_log_speaks_and_for_no_other() -> None:
    random = np.random.default_rng(2)
    good = traffic(random, 8_000, 0.3, (0.3, 0.4))
    opened, reason, figures = gate(good, VERSION, RAW, RampSettings())
    assert opened, reason
    assert figures["low"] <= 0.1 <= figures["gain"] + 0.05
    bad = traffic(random, 8_000, 0.3, (0.4, 0.3))
    opened, reason, figures = gate(bad, VERSION, RAW, RampSettings())
    assert not opened
    assert "ramp.gate_loss_max" in reason and figures["gain"] < 0
    for log, said in (
        (good.where([False] * 8_000), "no logged search offered this version"),
        (traffic(random, 60, 0.1, (0.3, 0.4)), "not evaluable"),
    ):
        opened, reason, _ = gate(log, VERSION, RAW, RampSettings())
        assert not opened
        assert said in reason
