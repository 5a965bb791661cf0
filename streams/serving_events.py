"""The events of serving: each decision about which version people see. `events` says how events are made."""

from __future__ import annotations

from typing import Literal

import msgspec

DecisionKind = Literal["admit", "start", "refuse", "advance", "hold", "roll back", "finish"]


class Decision(msgspec.Struct, frozen=True, kw_only=True, tag="decision/1", tag_field="event"):
    """One decision about a version in front of people, with its reason and the figures behind it.

    decision_id: a function of the content, so that an event with the same id is a copy. version: the policy version.
    kind: "admit" is the held-out gate's, which lets a small share of the people see the version, to learn more.
    share: the share of its searches that people are served with it after the decision, from 0 to 1. evidence: figures
    by name. by: "rule", or "person" for a decision that somebody gave.
    """

    decision_id: str
    version: str
    kind: DecisionKind
    share: float
    reason: str
    evidence: dict[str, float] = {}
    by: Literal["rule", "person"] = "rule"
    at_ms: int
    made_at_ms: int = 0
