"""Versions against raw results on logged traffic, whole, by window of time, and by segment of queries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Literal

import msgspec
import numpy as np

from storage.offpolicy.estimators import ESS_MIN, Choices, Estimate, Name, Support, estimate, estimate_gain, support
from storage.offpolicy.traffic import NOT_BOTH, RAW, RewardModel, Traffic, choices_for, could_show

ESTIMATORS: tuple[Name, ...] = ("ips", "snips", "dr", "shrinkage")
HEAD_IMPRESSIONS = 20
LONG_WORDS = 4
Segment = Literal["all", "traffic", "words", "route"]
NO_ROUTE = "no routes"


class VersionValue(msgspec.Struct, frozen=True, kw_only=True):
    """One version in one part of the traffic, as the log tells.

    impressions: those that could have shown this version's results (or raw ones in their place) and raw ones; no others
    say anything. offered: share of them at which it was offered. values, gains: its worth an impression by estimator,
    and its gain over raw results; both are empty if `trouble` says why nothing can be said.
    """

    policy: str
    part: str
    impressions: int
    offered: float
    support: Support
    trouble: str
    values: dict[str, Estimate]
    gains: dict[str, Estimate]


def evaluate_versions(
    traffic: Traffic, *, window_ms: int = 0, segment: Segment = "all", estimators: tuple[Name, ...] = ESTIMATORS
) -> list[VersionValue]:
    """Return every offered version, and raw results, in every part of the traffic, in the order of parts and names.

    window_ms: length of a window of time; 0 takes all time as one. segment: "traffic" tells head queries (at least
    `HEAD_IMPRESSIONS` impressions in this log) from the tail, "words" short queries from long ones, and "route" takes
    the parts that the servers logged with each search.
    Raises EvaluationError if no impression can be used.
    """
    labels = _parts(traffic, window_ms, segment)
    found = []
    for part in sorted(set(labels)) or [""]:
        there = traffic.where([label == part for label in labels])
        if not len(there):
            choices_for(there, RAW)  # Raises with the reasons.
        made: dict[bytes, tuple[Traffic, RewardModel, Choices]] = {}
        for policy in [RAW, *there.versions()]:
            could = could_show(there, policy)
            if not could.any():
                found.append(_nothing(there, policy, part))
                continue
            # Versions that were offered at the same searches share these, their model and their raw choices.
            if (key := could.tobytes()) not in made:
                both = there if could.all() else there.where(could)
                model = RewardModel(both)
                made[key] = both, model, choices_for(both, RAW, model)
            both, model, raw = made[key]
            found.append(_value(both, policy, part, choices_for(both, policy, model), raw, estimators))
    return found


def _nothing(traffic: Traffic, policy: str, part: str) -> VersionValue:
    """Return the row of a version that no search can compare with raw results."""
    return VersionValue(
        policy=policy,
        part=part,
        impressions=0,
        offered=float(np.mean([policy in offer for offer in traffic.offered])),
        support=Support(impressions=0, ess=0.0, largest=0.0, matched=0.0, mean_weight=0.0),
        trouble=f"not evaluable: {NOT_BOTH}",
        values={},
        gains={},
    )


def _value(
    traffic: Traffic, policy: str, part: str, choices: Choices, raw: Choices, estimators: tuple[Name, ...]
) -> VersionValue:
    offered = [policy in offer for offer in traffic.offered]
    covered, raw_trouble = support(choices), support(raw).trouble
    trouble = covered.trouble or (f"raw results: {raw_trouble}" if raw_trouble else "")
    # Where the version is not offered both policies show raw results, so only the rest tells them apart.
    matched = sum(chosen == policy for chosen in traffic.policies)
    if not trouble and policy != RAW and matched < ESS_MIN:
        trouble = f"not evaluable: shown {matched} times, expected at least {ESS_MIN:g}"
    return VersionValue(
        policy=policy,
        part=part,
        impressions=len(traffic),
        offered=float(np.mean(offered)) if policy != RAW else 1.0,
        support=covered,
        trouble=trouble,
        values={} if trouble else {name: estimate(choices, name) for name in estimators},
        gains={} if trouble or policy == RAW else {name: estimate_gain(choices, raw, name) for name in estimators},
    )


def _parts(traffic: Traffic, window_ms: int, segment: Segment) -> list[str]:
    names = _segments(traffic, segment)
    if not window_ms or not len(traffic):
        return names
    numbers = [(int(at) - int(traffic.at_ms[0])) // window_ms + 1 for at in traffic.at_ms]
    digits = max(3, len(str(max(numbers))))  # Parts are shown in the order of their names.
    windows = [f"window {number:0{digits}d}" for number in numbers]
    return [" ".join(filter(None, pair)) for pair in zip(windows, names, strict=True)]


def _segments(traffic: Traffic, segment: Segment) -> list[str]:
    if segment == "route":
        return [part or NO_ROUTE for part in traffic.parts or [""] * len(traffic)]
    asked = Counter(traffic.queries)
    name: Callable[[str], str] = {
        "all": lambda _: "",
        "traffic": lambda query: "head" if asked[query] >= HEAD_IMPRESSIONS else "tail",
        "words": lambda query: "long" if len(query.split()) >= LONG_WORDS else "short",
    }[segment]
    return [name(query) for query in traffic.queries]
