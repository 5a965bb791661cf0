"""Clicked lists as counts: each pair of a query and a document, by the place where people examined it.

A *cell* is what decides whether a result was examined: its rank (position-based model), its rank and the distance to
the last click above (user browsing model), or whether it stands at or above the last click (dynamic Bayesian network in
its simplified form; a list without a click was examined as a whole). Without a model, there is one cell.

*One client's share.* Whoever asks one query again and again, or asks more than everybody else, says no more than others
do. Each impression of a pair has a weight, so that one client's impressions of the pair sum to `pair_max` at most, and
its lists to `lists_max` at most. Impressions and clicks get the same weight, so a rate of clicks stays what it was for
this client; only its share among all clients shrinks. A list that names no client counts as a client of its own, and
cannot be bounded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse

Doubles = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
BiasModel = Literal["none", "pbm", "ubm", "dbn"]

RANKS_MAX = 50  # Deeper ranks count as this one: few people see them.
CELLS = {"none": 1, "pbm": RANKS_MAX, "ubm": RANKS_MAX * RANKS_MAX, "dbn": 2}
NOT_EXAMINED = 1  # The second cell of the dynamic Bayesian network.


class ShownList(NamedTuple):
    """The results of one search. shown: (document id, rank from 1) pairs. clicked: ids of documents. client: or ""."""

    query: str
    shown: Sequence[tuple[str, int]]
    clicked: frozenset[str]
    client: str = ""


class ClientBounds(NamedTuple):
    """Bounds on what one client counts: impressions of one pair, and lists altogether. 0: without a bound."""

    pair_max: float = 0.0
    lists_max: float = 0.0


class CountedClicks(NamedTuple):
    """The numbers of the lists, for the description of a fit.

    lists: with a result. clicks: on shown documents, each once a list. clients: with a name. nameless: lists without
    one. bounded: lists whose weight is below 1. weight: the sum of all lists' weights. largest_share: the largest share
    of one client in all lists, before the bounds, and after them.
    """

    lists: int
    clicks: int
    clients: int
    nameless: int
    bounded: int
    weight: float
    largest_share: tuple[float, float]


class PairCounts(NamedTuple):
    """Weighted impressions and clicks of each pair in each cell, sparse [P, C], and the pairs in order.

    ranks: [P] number of distinct ranks of each pair. rank_cells: weighted impressions by rank and cell, [K, C].
    """

    shown: sparse.csr_matrix
    clicked: sparse.csr_matrix
    pairs: list[tuple[str, str]]
    ranks: Integers
    rank_cells: sparse.csr_matrix
    told: CountedClicks


class _Occurrences(NamedTuple):
    """Every shown document of every list, [N]: pair, list, rank from 0, click, rank of the last click above from 1."""

    pair: Integers
    of_list: Integers
    rank: Integers
    clicked: npt.NDArray[np.bool_]
    above: Integers
    last: Integers


def count_pairs(lists: Iterable[ShownList], model: BiasModel, bounds: ClientBounds | None = None) -> PairCounts:
    """Return the counts of all lists. A document that one list shows twice counts at its first rank."""
    bounds = bounds or ClientBounds()
    place_of: dict[tuple[str, str], int] = {}
    number_of: dict[str, int] = {}
    clients: list[int] = []
    named = 0
    columns: tuple[list[int], ...] = ([], [], [], [], [], [])
    for each in lists:
        if not each.shown:
            continue
        if each.client:
            clients.append(number_of.setdefault(each.client, len(number_of)))
            named += 1
        else:
            clients.append(-len(clients) - 1)
        _add_list(each, len(clients) - 1, place_of, columns)
    if not clients:
        empty = sparse.csr_matrix((0, CELLS[model]))
        none = CountedClicks(0, 0, 0, 0, 0, 0.0, (0.0, 0.0))
        return PairCounts(empty, empty, [], np.zeros(0, np.int64), sparse.csr_matrix((RANKS_MAX, CELLS[model])), none)
    pair, of_list, rank, clicks, above, last = (np.array(column, dtype=np.int64) for column in columns)
    found = _Occurrences(pair, of_list, rank, clicks.astype(np.bool_), above, last)
    client = np.array(clients, dtype=np.int64)
    weight = _weights(found, client, bounds)
    size, cells = (len(place_of), CELLS[model]), _cells(found, model)
    shown = sparse.csr_matrix((weight, (found.pair, cells)), size)  # Sums what falls on one place.
    clicked = sparse.csr_matrix((weight * found.clicked, (found.pair, cells)), size)
    at_ranks = np.unique(found.pair * RANKS_MAX + found.rank) // RANKS_MAX
    by_list = np.bincount(found.of_list, weights=weight) / np.bincount(found.of_list)
    told = CountedClicks(
        lists=len(client),
        clicks=int(found.clicked.sum()),
        clients=len(number_of),
        nameless=len(client) - named,
        bounded=int((by_list < 1 - 1e-9).sum()),
        weight=float(by_list.sum()),
        largest_share=(_largest(client, np.ones(len(client))), _largest(client, by_list)),
    )
    return PairCounts(
        shown=shown,
        clicked=clicked,
        pairs=list(place_of),
        ranks=np.bincount(at_ranks, minlength=size[0]),
        rank_cells=sparse.csr_matrix((weight, (found.rank, cells)), (RANKS_MAX, CELLS[model])),
        told=told,
    )


def _add_list(
    each: ShownList, number: int, place_of: dict[tuple[str, str], int], columns: tuple[list[int], ...]
) -> None:
    """Append one list's documents, in the order of their ranks, to the columns of `_Occurrences`."""
    pairs, lists, ranks, clicks, aboves, lasts = columns
    above, seen = 0, set[str]()
    begin = len(pairs)
    for document, rank in sorted(each.shown, key=lambda pair: pair[1]):
        if document in seen:
            continue
        seen.add(document)
        place = min(max(rank, 1), RANKS_MAX)
        pairs.append(place_of.setdefault((each.query, document), len(place_of)))
        lists.append(number)
        ranks.append(place - 1)
        clicked = document in each.clicked
        clicks.append(int(clicked))
        aboves.append(above)
        above = place if clicked else above
    lasts.extend([above] * (len(pairs) - begin))


def _cells(found: _Occurrences, model: BiasModel) -> Integers:
    if model == "none":
        return np.zeros_like(found.rank)
    if model == "pbm":
        return found.rank
    if model == "ubm":
        by_last: Integers = found.rank * RANKS_MAX + np.maximum(found.rank - found.above, 0)
        return by_last
    below = (found.last > 0) & (found.rank + 1 > found.last)
    cells: Integers = np.where(below, NOT_EXAMINED, 0).astype(np.int64)
    return cells


def _weights(found: _Occurrences, client: Integers, bounds: ClientBounds) -> Doubles:
    """Return the weight of each occurrence, [N]. client: of each list; numbers below 0 are nobody's."""
    weight = np.ones(len(found.pair))
    if bounds.lists_max:
        _, place, count = np.unique(client, return_inverse=True, return_counts=True)
        weight *= np.minimum(bounds.lists_max / count[place], 1.0)[found.of_list]
    if bounds.pair_max:
        of = np.unique(client, return_inverse=True)[1][found.of_list]
        keys = of * (int(found.pair.max()) + 1) + found.pair
        _, place = np.unique(keys, return_inverse=True)
        total = np.bincount(place, weights=weight)
        weight *= np.minimum(bounds.pair_max / total, 1.0)[place]
    return weight


def _largest(client: Integers, weight: Doubles) -> float:
    named = client >= 0
    if not named.any():
        return 0.0
    return float(np.bincount(client[named], weights=weight[named]).max() / weight.sum())
