"""The versions in front of people: what each earns a search, with intervals that hold however often somebody looks.

People differ more than their searches do, so clients are what is drawn, as on a ramp. Interleaved lists belong to no
single version and are left out. The versions were not offered to the same queries, so a difference here is no proof of
an effect: the ramp compares within a stage, and `searchloop compare` weighs by the logged probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from storage.log import Log
from storage.online.sequences import ArmDifference, ArmMean, Values, arm_mean, mean_difference
from streams.utility import UtilitySettings

RAW = ""

# A row for each client of a version. What an action is worth: `storage.offpolicy.utility`, here as SQL.
_CLIENTS = """
WITH searches AS (
    SELECT coalesce(o.policy, '') AS version, coalesce(nullif(o.client, ''), o.impression_id) AS client, o.actions
    FROM trusted_outcomes o JOIN first_impressions i ON o.run = i.run AND o.impression_id = i.impression_id
    WHERE o.run = ? AND coalesce(len(i.teams), 0) = 0
)
SELECT version, count(*) AS searches, sum((coalesce(len(actions), 0) > 0)::INTEGER)::DOUBLE AS clicked,
    sum(least(most, coalesce(list_sum(list_transform(list_distinct([a.document_id for a in actions]),
        lambda d: greatest(list_max([coalesce(map_extract(of_kind, a.kind)[1], 0.0) for a in actions
            if a.document_id = d]), 0.0))), 0.0))) AS worth
FROM searches, (SELECT map(?::VARCHAR[], ?::DOUBLE[]) AS of_kind, ?::DOUBLE AS most) GROUP BY version, client
"""


class LiveArm(msgspec.Struct, frozen=True, kw_only=True):
    """One version, "" for raw results. click_rate: share of the searches with an action. worth: utility of a search.

    click_gain, worth_gain: the difference to raw results; None for raw results themselves, or without any.
    """

    version: str
    searches: int
    clients: int
    click_rate: ArmMean
    worth: ArmMean
    click_gain: ArmDifference | None = None
    worth_gain: ArmDifference | None = None


def read_arms(log: Log, run: str, utility: UtilitySettings, *, alpha: float = 0.05) -> list[LiveArm]:
    """Return every version that people saw in a run, raw results first. Raises StorageError."""
    given = [run, list(utility.worth), list(utility.worth.values()), utility.most]
    by_version: dict[str, list[dict[str, Any]]] = {}
    for row in log.rows(_CLIENTS, given):
        by_version.setdefault(row["version"], []).append(row)
    clicks = {version: _values(rows, "clicked") for version, rows in by_version.items()}
    worths = {version: _values(rows, "worth") for version, rows in by_version.items()}
    spread = {name: _spread(list(values.values())) for name, values in (("clicks", clicks), ("worths", worths))}
    found = []
    for version in sorted(by_version):
        others = version != RAW and RAW in by_version
        found.append(
            LiveArm(
                version=version,
                searches=sum(row["searches"] for row in by_version[version]),
                clients=len(by_version[version]),
                click_rate=_within(arm_mean(clicks[version], spread=spread["clicks"], alpha=alpha), most=1.0),
                worth=_within(arm_mean(worths[version], spread=spread["worths"], alpha=alpha), most=utility.most),
                click_gain=mean_difference(clicks[version], clicks[RAW], alpha=alpha) if others else None,
                worth_gain=mean_difference(worths[version], worths[RAW], alpha=alpha) if others else None,
            )
        )
    return found


def _values(rows: Sequence[dict[str, Any]], name: str) -> Values:
    sums = np.array([row[name] for row in rows], dtype=np.float64)
    return Values.of_sums(sums, np.array([row["searches"] for row in rows], dtype=np.float64))


def _spread(arms: Sequence[Values]) -> float:
    """Return the variance of all arms' values together."""
    count = sum(each.count for each in arms)
    if not count:
        return 0.0
    mean = sum(each.count * each.mean for each in arms) / count
    return sum(each.count * (each.variance + (each.mean - mean) ** 2) for each in arms) / count


def _within(found: ArmMean, *, most: float) -> ArmMean:
    """Return the interval cut at what is possible."""
    return msgspec.structs.replace(found, low=max(found.low, 0.0), high=min(found.high, most))
