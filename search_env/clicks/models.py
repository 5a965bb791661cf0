"""Click models: position-based, user browsing, cascade, dynamic Bayesian, and trust bias.

PBM: Richardson et al., WWW 2007. UBM: Dupret and Piwowarski, SIGIR 2008. Cascade: Craswell et al., WSDM 2008. DBN:
Chapelle and Zhang, WWW 2009. Trust bias: Agarwal et al., WWW 2019. Each model gives P(click at rank r | clicks above),
from which clicks are drawn rank by rank, and from which a log's likelihood is computed. So both always agree.
"""

from __future__ import annotations

from typing import Protocol

import msgspec
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Clicks = npt.NDArray[np.bool_]


class ClickModel(Protocol):
    """A model of clicks. attraction: [S, K], the probability that a result would be clicked if it was examined."""

    @property
    def name(self) -> str:
        """The name in tables."""

    def begin(self, sessions: int) -> Floats:
        """Return the state before the first rank, [S, ·]."""

    def at(self, rank: int, attraction: Floats, state: Floats) -> Floats:
        """Return the probability of a click at a rank (from 0), [S], given the state."""

    def after(self, rank: int, attraction: Floats, clicked: Clicks, state: Floats) -> Floats:
        """Return the state after a rank, given what was clicked there, [S]."""


class PositionBased(msgspec.Struct, frozen=True, kw_only=True):
    """PBM: a result is examined with a probability that depends on its rank alone. examination: [K]."""

    examination: tuple[float, ...]
    name: str = "PBM"

    def begin(self, sessions: int) -> Floats:
        """Return nothing: there is no state."""
        return np.zeros((sessions, 0))

    def at(self, rank: int, attraction: Floats, state: Floats) -> Floats:
        """Return γ_r α."""
        return _at(self.examination, rank) * attraction

    def after(self, rank: int, attraction: Floats, clicked: Clicks, state: Floats) -> Floats:
        """Return the state as it is."""
        return state


class TrustBias(msgspec.Struct, frozen=True, kw_only=True):
    """Trust bias: people also click what is not relevant because it stands high.

    examination, relevant, irrelevant: by rank, [K]. P(click) = γ_r (ε⁺_r α + ε⁻_r (1 − α)), where α is the probability
    that the result is relevant.
    """

    examination: tuple[float, ...]
    relevant: tuple[float, ...]
    irrelevant: tuple[float, ...]
    name: str = "trust bias"

    def begin(self, sessions: int) -> Floats:
        """Return nothing: there is no state."""
        return np.zeros((sessions, 0))

    def at(self, rank: int, attraction: Floats, state: Floats) -> Floats:
        """Return γ_r (ε⁺_r α + ε⁻_r (1 − α))."""
        trusted = _at(self.relevant, rank) * attraction + _at(self.irrelevant, rank) * (1 - attraction)
        return _at(self.examination, rank) * trusted

    def after(self, rank: int, attraction: Floats, clicked: Clicks, state: Floats) -> Floats:
        """Return the state as it is."""
        return state


class UserBrowsing(msgspec.Struct, frozen=True, kw_only=True):
    """UBM: examination depends on the rank and on the distance to the last click above.

    examination: for rank r (from 0) r + 1 values: distance 1 to r to the last click, then no click above.
    """

    examination: tuple[tuple[float, ...], ...]
    name: str = "UBM"

    def begin(self, sessions: int) -> Floats:
        """Return the rank of the last click, from 1; 0 for none."""
        return np.zeros((sessions, 1))

    def at(self, rank: int, attraction: Floats, state: Floats) -> Floats:
        """Return γ_{r, d} α."""
        row = np.asarray(self.examination[min(rank, len(self.examination) - 1)])
        distance = rank - state[:, 0].astype(np.intp)  # 0 right below a click.
        return row[np.minimum(distance, len(row) - 1)] * attraction

    def after(self, rank: int, attraction: Floats, clicked: Clicks, state: Floats) -> Floats:
        """Return the rank of the last click."""
        return np.where(clicked[:, None], rank + 1.0, state)


class Cascade(msgspec.Struct, frozen=True, kw_only=True):
    """Cascade: people look from the top, click the first attractive result, and stop."""

    name: str = "cascade"

    def begin(self, sessions: int) -> Floats:
        """Return that everybody still looks."""
        return np.ones((sessions, 1))

    def at(self, rank: int, attraction: Floats, state: Floats) -> Floats:
        """Return α for those who still look."""
        return state[:, 0] * attraction

    def after(self, rank: int, attraction: Floats, clicked: Clicks, state: Floats) -> Floats:
        """Return who still looks."""
        return np.where(clicked[:, None], 0.0, state)


class DynamicBayesian(msgspec.Struct, frozen=True, kw_only=True):
    """DBN: people look from the top, go on with a probability, and stop once a clicked result satisfies them.

    going_on: γ. satisfaction: σ of a clicked result, one for all results.
    """

    going_on: float
    satisfaction: float
    name: str = "DBN"

    def begin(self, sessions: int) -> Floats:
        """Return the probability that the first result is examined."""
        return np.ones((sessions, 1))

    def at(self, rank: int, attraction: Floats, state: Floats) -> Floats:
        """Return P(examined | clicks above) α."""
        return state[:, 0] * attraction

    def after(self, rank: int, attraction: Floats, clicked: Clicks, state: Floats) -> Floats:
        """Return the probability that the next result is examined, given all clicks so far."""
        examined = state[:, 0]
        unclicked = examined * (1 - attraction) / np.maximum(1 - examined * attraction, 1e-12)
        return np.where(clicked, self.going_on * (1 - self.satisfaction), self.going_on * unclicked)[:, None]


def draw(model: ClickModel, attraction: Floats, random: np.random.Generator) -> Clicks:
    """Return drawn clicks, [S, K], on results with this attraction, [S, K]. NaN marks a rank without a result."""
    clicks = np.zeros(attraction.shape, dtype=np.bool_)
    state = model.begin(len(attraction))
    for rank in range(attraction.shape[1]):
        here = attraction[:, rank]
        probability = np.nan_to_num(model.at(rank, here, state), nan=0.0)
        clicks[:, rank] = random.random(len(here)) < probability
        state = model.after(rank, np.nan_to_num(here), clicks[:, rank], state)
    return clicks


def click_probabilities(model: ClickModel, attraction: Floats, clicks: Clicks) -> Floats:
    """Return P(click at rank r | clicks above r), [S, K]; NaN where attraction is NaN."""
    found = np.empty(attraction.shape)
    state = model.begin(len(attraction))
    for rank in range(attraction.shape[1]):
        here = attraction[:, rank]
        found[:, rank] = model.at(rank, here, state)
        state = model.after(rank, np.nan_to_num(here), clicks[:, rank], state)
    return found


def perplexity(probabilities: Floats, clicks: Clicks) -> float:
    """Return 2 to the mean negative log₂ likelihood of the clicks: 1 is perfect, 2 a coin. NaN ranks do not count."""
    there = ~np.isnan(probabilities)
    likelihood = np.where(clicks, probabilities, 1 - probabilities)[there]
    return float(2 ** -np.mean(np.log2(np.clip(likelihood, 1e-12, 1.0))))


def _at(values: tuple[float, ...], rank: int) -> float:
    """Return the value of a rank; ranks beyond the last one share its value."""
    return values[min(rank, len(values) - 1)]
