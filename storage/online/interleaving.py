"""Interleaved impressions: which of two versions people prefer, at any moment, and whether offline figures foretold it.

Δ of an impression is +1 if the first version's documents got more actions, −1 if fewer, 0 for a tie. Its mean has a
confidence sequence, so the comparison may be looked at after every impression and stopped at any time.

People differ in what they prefer, and one of them may search all day. So clients are what is drawn, as on a ramp: where
they searched more than once, the interval is at least as wide as that of a mean over clients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from scipy.stats import kendalltau

from storage.log import Log
from storage.offpolicy.traffic import clusters_of
from storage.online.credits import credits, preference
from storage.online.sequences import Values, arm_mean, bounded_sequence

_INTERLEAVED = """
    SELECT o.impression_id, o.shown, o.actions, i.teams, coalesce(nullif(o.client, ''), o.impression_id) AS client
    FROM trusted_outcomes o JOIN first_impressions i ON o.run = i.run AND o.impression_id = i.impression_id
    WHERE o.run = ? AND len(i.teams) > 0 ORDER BY o.at_ms, o.impression_id
"""


class Duel(msgspec.Struct, frozen=True, kw_only=True):
    """One pair of versions. wins, losses: of the first; ties: impressions in which both got the same.

    mean: of Δ, with its interval, which holds at all times.
    """

    one: str
    other: str
    wins: int
    losses: int
    ties: int
    mean: float
    low: float
    high: float

    @property
    def winner(self) -> str | None:
        """The version that people prefer; None while the interval holds 0."""
        return self.one if self.low > 0 else self.other if self.high < 0 else None


class Foretold(msgspec.Struct, frozen=True, kw_only=True):
    """Whether offline values foretold the duels: Kendall's τ over versions, with a bootstrap interval over versions."""

    versions: int
    tau: float
    low: float
    high: float


def read_duels(log: Log, run: str, *, alpha: float = 0.05) -> list[Duel]:
    """Return every pair of versions that was interleaved in a run, in the order of names."""
    found: dict[tuple[str, str], list[tuple[float, str]]] = {}
    for row in log.rows(_INTERLEAVED, [run]):
        one, other = sorted(set(row["teams"])) if len(set(row["teams"])) == 2 else (None, None)
        if one is not None and other is not None:
            found.setdefault((one, other), []).append((_delta(row, one, other), row["client"]))
    return [
        duel(one, other, [delta for delta, _ in rows], clients=[client for _, client in rows], alpha=alpha)
        for (one, other), rows in sorted(found.items())
    ]


def duel(
    one: str, other: str, deltas: Sequence[float], *, clients: Sequence[str] | None = None, alpha: float = 0.05
) -> Duel:
    """Return the state of a comparison after these Δ, in the order of their impressions.

    clients: of each impression; None if each is another draw.
    """
    values = np.asarray(deltas, dtype=np.float64)
    mean, low, high = bounded_sequence(values, low=-1, high=1, alpha=alpha).last
    if clients is not None and len(set(clients)) < len(values):
        people = arm_mean(Values.of_clusters(values, clusters_of(clients)), spread=0.0, alpha=alpha)
        low, high = max(min(low, people.low), -1.0), min(max(high, people.high), 1.0)
    return Duel(
        one=one,
        other=other,
        wins=int((values > 0).sum()),
        losses=int((values < 0).sum()),
        ties=int((values == 0).sum()),
        mean=mean,
        low=low,
        high=high,
    )


def foretold(offline: Mapping[str, float], online: Mapping[str, float], *, samples: int = 2_000) -> Foretold | None:
    """Return the rank correlation of versions' offline values with their results among people.

    None for fewer than three versions: two of them are in the same order half of the time by chance.
    """
    versions = sorted(set(offline) & set(online))
    if len(versions) < 3:
        return None
    one = np.array([offline[version] for version in versions])
    other = np.array([online[version] for version in versions])
    random = np.random.default_rng(0)
    drawn = []
    for _ in range(samples):
        places = random.integers(len(versions), size=len(versions))
        tau = kendalltau(one[places], other[places]).statistic
        if not np.isnan(tau):
            drawn.append(float(tau))
    low, high = np.percentile(drawn, [2.5, 97.5]) if drawn else (-1.0, 1.0)
    return Foretold(
        versions=len(versions), tau=float(kendalltau(one, other).statistic), low=float(low), high=float(high)
    )


def _delta(row: Mapping[str, Any], one: str, other: str) -> float:
    shown = [each["document_id"] for each in sorted(row["shown"], key=lambda each: each["rank"])]
    credit = credits(shown, row["teams"], [action["document_id"] for action in row["actions"] or ()])
    return float(preference(credit, one, other))
