"""Judgments of people in the pages: two lists of one query, unnamed, and which one is better.

A judgment is two impressions of the application `JUDGING`, one for each list, and one action on the version's list,
whose kind is the verdict and whose id is the judgment's. So a judgment that is sent twice counts once.
"""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import msgspec

from storage.log import Log
from storage.online.interleaving import Duel, duel
from streams.traffic_events import JUDGING

Side = Literal["left", "right", "tie"]
Verdict = Literal["prefers version", "prefers raw", "tie"]
DELTAS: dict[str, float] = {"prefers version": 1.0, "prefers raw": -1.0, "tie": 0.0}

_JUDGMENTS = f"""
SELECT a.action_id AS judgment, i.query, i.policy AS version, a.kind AS verdict, a.at_ms
FROM first_user_actions a JOIN first_impressions i ON a.run = i.run AND a.impression_id = i.impression_id
WHERE a.run = ? AND i.application = '{JUDGING}' AND a.kind IN ('prefers version', 'prefers raw', 'tie')
ORDER BY a.at_ms, a.action_id
"""


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """The judgments of one version. duel: of the version against raw results. share: of judgments for the version.

    A tie is half a judgment for each. low, high: hold at all times, so somebody may look after each judgment.
    """

    version: str
    queries: list[str]
    duel: Duel
    share: float
    low: float
    high: float


def version_is_left(judgment: str) -> bool:
    """Return on which side a judgment shows the version: a coin that its id tosses, so a reload shows the same."""
    return hashlib.sha256(judgment.encode()).digest()[0] % 2 == 0


def verdict_of(judgment: str, side: Side) -> Verdict:
    """Return what a chosen side says."""
    if side == "tie":
        return "tie"
    return "prefers version" if (side == "left") == version_is_left(judgment) else "prefers raw"


def read_judgments(log: Log, run: str, *, alpha: float = 0.05) -> list[Judged]:
    """Return the judgments of each version in a run, the version with the newest judgment first."""
    by_version: dict[str, list[dict[str, Any]]] = {}
    for row in log.rows(_JUDGMENTS, [run]):
        by_version.setdefault(row["version"], []).append(row)
    found = []
    for version, rows in sorted(by_version.items(), key=lambda item: -item[1][-1]["at_ms"]):
        said = duel(version, "", [DELTAS[row["verdict"]] for row in rows], alpha=alpha)
        share, low, high = ((1 + each) / 2 for each in (said.mean, said.low, said.high))
        queries = list(dict.fromkeys(row["query"] for row in rows))
        found.append(Judged(version=version, queries=queries, duel=said, share=share, low=low, high=high))
    return found
