"""Logged traffic as choices: what each impression offered, what was chosen, and what it was worth.

A version's target policy shows its results where it was offered, and elsewhere what people get beside it: that is how
a server serves it. Impressions of bots are left out by the view `trusted_outcomes`. An impression without propensities
is left out and counted.

An impression tells two policies apart only if it could have shown both. Once a version serves, raw results are offered
no more; and a search may ask for a version by name. Such impressions are left out of every gain (`comparable`): an
importance weight would take them for searches at which the other policy earned nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from storage.errors import EvaluationError
from storage.offpolicy.estimators import Choices, Floats, Integers
from streams.ids import is_candidate_choice

T = TypeVar("T")

RAW = ""
NOT_BOTH = "no search could have shown both this version's results and those beside it"
FOLDS = 5
PRIOR_IMPRESSIONS = 20.0  # With which the mean of one action is drawn towards the mean of all.


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """Impressions of a run with propensities, in the order of their times. Lists and arrays have N entries.

    offered: the probability of each choice, by policy. parts: the parts of the queries that routes told, as they were
    logged; "" if no version had routes. left_out: impressions that are not here, by the reason.
    """

    queries: list[str]
    clients: list[str]
    at_ms: Integers
    policies: list[str]
    propensities: Floats
    offered: list[dict[str, float]]
    utilities: Floats
    left_out: dict[str, int]
    parts: list[str] = []

    def __len__(self) -> int:
        return len(self.queries)

    def where(self, chosen: Sequence[bool] | npt.NDArray[np.bool_]) -> Traffic:
        """Return the chosen impressions."""
        places = np.flatnonzero(np.asarray(chosen))
        return Traffic(
            queries=[self.queries[place] for place in places],
            clients=[self.clients[place] for place in places],
            at_ms=self.at_ms[places],
            policies=[self.policies[place] for place in places],
            propensities=self.propensities[places],
            offered=[self.offered[place] for place in places],
            utilities=self.utilities[places],
            left_out=self.left_out,
            parts=[self.parts[place] for place in places] if self.parts else [],
        )

    def versions(self) -> list[str]:
        """Return every version that was offered, in the order of names; candidates of open groups are none."""
        named = {policy for offer in self.offered for policy in offer} - {RAW}
        return sorted(policy for policy in named if not is_candidate_choice(policy))


def comparable(traffic: Traffic, policy: str, before: str = RAW) -> Traffic:
    """Return the impressions that could have shown the results of both policies; see `choices_for`."""
    found = could_show(traffic, policy, before)
    return traffic if found.all() else traffic.where(found)


def could_show(traffic: Traffic, policy: str, before: str = RAW) -> npt.NDArray[np.bool_]:
    """Return [N] whether an impression could have shown the results of both policies."""
    return np.array(
        _by_offer(
            traffic.offered,
            lambda offer: wanted_of(policy, before, offer) in offer and wanted_of(before, before, offer) in offer,
        ),
        dtype=bool,
    )


def wanted_of(policy: str, before: str, offer: Mapping[str, float]) -> str:
    """Return what a version's target policy shows at a search with this offer."""
    return next((name for name in (policy, before) if name in offer), RAW)


def choices_for(traffic: Traffic, policy: str, model: RewardModel | None = None, *, before: str = RAW) -> Choices:
    """Return the traffic as seen from a version: its results where it was offered, and elsewhere what `before` shows.

    policy: the version; "" for raw results everywhere. model: the reward model of this traffic, where several versions
    share it; None fits it. The reward model of a query is fitted on other queries. before: the version that people get
    beside it, "" for raw results; where that was not offered either, raw results are shown.
    Raises EvaluationError without impressions, or if one could not have shown what is wanted; see `comparable`.
    """
    if not len(traffic):
        raise EvaluationError("not evaluable: no impression has propensities" + _said(traffic.left_out))
    wanted = _by_offer(traffic.offered, lambda offer: wanted_of(policy, before, offer))
    if missing := sum(target not in offer for target, offer in zip(wanted, traffic.offered, strict=True)):
        raise EvaluationError(
            f"not evaluable: {missing:,} of {len(wanted):,} searches could not have shown the results of "
            f"{policy or 'raw results'}, nor raw results"
        )
    model = model or RewardModel(traffic)
    return Choices(
        rewards=traffic.utilities,
        propensities=traffic.propensities,
        targets=np.array([float(chosen == target) for chosen, target in zip(traffic.policies, wanted, strict=True)]),
        modelled=model.values(traffic.policies),
        expected=model.values(wanted),
        clusters=clusters_of(traffic.clients),
    )


def _by_offer(offers: Sequence[Mapping[str, float]], of: Callable[[Mapping[str, float]], T]) -> list[T]:
    """Return [N] a function of each offer. Impressions share their offers, so each is asked once."""
    known: dict[int, T] = {}
    found = []
    for offer in offers:
        if (key := id(offer)) not in known:
            known[key] = of(offer)
        found.append(known[key])
    return found


def clusters_of(names: Sequence[str]) -> Integers:
    """Return [N] numbers from 0: the same for the same name."""
    first: dict[str, int] = {}  # To sort a million names takes seconds; the order of the numbers has no meaning.
    return np.array([first.setdefault(name, len(first)) for name in names], dtype=np.int64)


class RewardModel:
    """The mean utility of each action, learned from the queries of other folds. It is fitted once for a traffic."""

    def __init__(self, traffic: Traffic) -> None:
        fold_of = {query: _fold(query) for query in set(traffic.queries)}
        self._folds = np.array([fold_of[query] for query in traffic.queries])
        actions = sorted({*traffic.policies, *(policy for offer in traffic.offered for policy in offer)} | {RAW})
        self._numbers = {action: number for number, action in enumerate(actions)}
        taken = np.array([self._numbers[policy] for policy in traffic.policies], dtype=np.int64)
        self._means = np.zeros((FOLDS, len(actions)))
        for fold in range(FOLDS):
            others = self._folds != fold
            mean = float(traffic.utilities[others].mean()) if others.any() else 0.0
            sums = np.bincount(taken[others], weights=traffic.utilities[others], minlength=len(actions))
            counts = np.bincount(taken[others], minlength=len(actions))
            self._means[fold] = (sums + PRIOR_IMPRESSIONS * mean) / (counts + PRIOR_IMPRESSIONS)

    def values(self, actions: Sequence[str]) -> Floats:
        """Return [N] values of one action for each impression."""
        found: Floats = self._means[self._folds, np.array([self._numbers[action] for action in actions])]
        return found


def _fold(query: str) -> int:
    return int.from_bytes(hashlib.sha256(query.encode()).digest()[:4], "big") % FOLDS


def _said(left_out: Mapping[str, int]) -> str:
    told = ", ".join(f"{count:,} {reason}" for reason, count in sorted(left_out.items()))
    return f" ({told})" if told else ""
