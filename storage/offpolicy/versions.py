"""Versions against raw results on logged traffic, whole, by window of time, and by segment of queries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Literal

import msgspec
import numpy as np

from storage.offpolicy.estimators import ESS_MIN, Choices, Estimate, Name, Support, estimate, estimate_gain, support
from storage.offpolicy.traffic import RAW, RewardModel, Traffic, choices_for

ESTIMATORS: tuple[Name, ...] = ("ips", "snips", "dr", "shrinkage")
HEAD_IMPRESSIONS = 20
LONG_WORDS = 4
Segment = Literal["all", "traffic", "words", "route"]
NO_ROUTE = "no routes"


class VersionValue(msgspec.Struct, frozen=True, kw_only=True):
    """One version in one part of the traffic, as the log tells.

    offered: share of the impressions at which it was offered. values, gains: its worth an impression by estimator, and
    its gain over raw results; both are empty if `trouble` says why nothing can be said.
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
        model = RewardModel(there)
        raw = choices_for(there, RAW, model)
        found.append(_value(there, RAW, part, raw, raw, estimators))
        for policy in there.versions():
            found.append(_value(there, policy, part, choices_for(there, policy, model), raw, estimators))
    return found


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
    first = int(traffic.at_ms[0]) if len(traffic) else 0
    windows = [f"window {(int(at) - first) // window_ms + 1:03d}" if window_ms else "" for at in traffic.at_ms]
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
