"""Traffic read from a ledger, column by column: a million impressions take seconds and little memory.

Rows of Python objects for a million impressions took 26 s and 2.4 GB. Most impressions share their offer and the
pattern of their actions with many others. So the database writes both as text, each distinct text is read once, and all
impressions that have it share the answer. The pattern of actions numbers the documents, because their names do not
matter for the worth.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa

from storage.log import Log
from storage.offpolicy.estimators import Integers
from storage.offpolicy.traffic import RAW, Traffic
from storage.offpolicy.utility import utility_of
from streams.utility import UtilitySettings

SUM_TOLERANCE = 1e-6

# The names of documents are left out: the n-th distinct place of a document in the list of actions stands for it.
_TRAFFIC = """
    WITH seen AS (
        SELECT o.impression_id, o.query, o.client, o.at_ms, coalesce(o.policy, '') AS policy,
            o.action_propensity, i.offered, i.routes,
            list_transform(o.actions, lambda a: {
                'kind': a.kind,
                'document_id': list_position(list_transform(o.actions, lambda b: b.document_id), a.document_id)
            }) AS actions
        FROM trusted_outcomes o JOIN first_impressions i ON o.run = i.run AND o.impression_id = i.impression_id
        WHERE o.run = ? AND o.at_ms >= ? AND coalesce(len(i.teams), 0) = 0
    )
    SELECT query, coalesce(nullif(client, ''), impression_id) AS client, at_ms, policy, action_propensity, offered,
        offered::VARCHAR AS offered_text, actions, actions::VARCHAR AS actions_text,
        routes, routes::VARCHAR AS routes_text
    FROM seen ORDER BY at_ms, impression_id
"""

T = TypeVar("T")


class _Coded(NamedTuple):
    """A column by its distinct values. codes: [N] place of each row's value. first: a row that has each value."""

    codes: Integers
    first: Integers

    def of(self, values: list[T]) -> list[T]:
        """Return [N] the value of each row; equal ones are one object."""
        return [values[code] for code in self.codes.tolist()]


def read_traffic(log: Log, run: str, utility: UtilitySettings, *, since_ms: int = 0) -> Traffic:
    """Return a run's trusted impressions that have propensities. since_ms: earlier impressions are not read."""
    table = log.columns(_TRAFFIC, [run, since_ms])
    offers, acted, routes = (_coded(table, f"{name}_text") for name in ("offered", "actions", "routes"))
    shared_offers: list[dict[str, float]] = [dict(each or ()) for each in _at(table, "offered", offers.first)]
    worths = np.array([utility_of(each, utility) for each in _at(table, "actions", acted.first)], dtype=np.float64)
    policies = _coded(table, "policy")
    names: list[str] = _at(table, "policy", policies.first)
    propensities = table.column("action_propensity").to_numpy()
    # Whether an impression can be used depends on its offer, its choice and its propensity alone.
    kinds: dict[tuple[int, int, float | None], str] = {}
    reasons = []
    for offer, policy, propensity in zip(
        offers.codes.tolist(), policies.codes.tolist(), propensities.tolist(), strict=True
    ):
        key = (offer, policy, None if propensity is None or np.isnan(propensity) else propensity)
        if key not in kinds:
            kinds[key] = _trouble(names[policy], key[2], shared_offers[offer])
        reasons.append(kinds[key])
    found = Traffic(
        queries=_shared(table, "query", str),
        clients=_shared(table, "client", str),
        at_ms=table.column("at_ms").to_numpy().astype(np.int64),
        policies=policies.of(names),
        propensities=propensities.astype(np.float64),
        offered=offers.of(shared_offers),
        utilities=worths[acted.codes],
        parts=routes.of([parts_of(each) for each in _at(table, "routes", routes.first)]),
        left_out={reason: count for reason, count in Counter(reasons).items() if reason},
    )
    return found.where([not reason for reason in reasons]) if found.left_out else found


def parts_of(routes: Sequence[tuple[str, str]] | None) -> str:
    """Return the parts that routes told, "" without any. routes: (version, "PART: ACTION"), as impressions log them.

    Versions whose queries are parted in the same way agree; otherwise each part is named once.
    """
    return " / ".join(sorted({route.rpartition(": ")[0] for _, route in routes or ()}))


def _coded(table: pa.Table, name: str) -> _Coded:
    values = table.column(name).combine_chunks().dictionary_encode(null_encoding="encode")
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    codes = values.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    first = np.full(len(values.dictionary), len(codes), dtype=np.int64)
    np.minimum.at(first, codes, np.arange(len(codes)))
    return _Coded(codes, first)


def _at(table: pa.Table, name: str, rows: Integers) -> list[Any]:
    found: list[Any] = table.column(name).take(pa.array(rows)).to_pylist()
    return found


def _shared(table: pa.Table, name: str, make: Callable[[Any], str]) -> list[str]:
    coded = _coded(table, name)
    return coded.of([make(each) for each in _at(table, name, coded.first)])


def _trouble(policy: str, propensity: float | None, offered: Mapping[str, float]) -> str:
    """Return why an impression cannot be used; "" if it can."""
    if propensity is None or not offered:
        return "without propensities"
    if not 0 < propensity <= 1:
        return "propensity outside (0, 1]"
    if not all(0 <= each <= 1 for each in offered.values()):  # NaN is refused, too.
        return "probability of a choice outside [0, 1]"
    if abs(sum(offered.values()) - 1) > SUM_TOLERANCE:
        return "probabilities of the choices do not sum to 1"
    if abs(offered.get(policy or RAW, 0.0) - propensity) > SUM_TOLERANCE:
        return "propensity differs from that of the choice"
    return ""
