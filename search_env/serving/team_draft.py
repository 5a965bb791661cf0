"""Team-draft interleaving: two or more rankings shown as one, and the credit that actions on it give to each.

In each round every ranking, in random order, adds its best document that is not shown yet to its team (Radlinski,
Kurup and Joachims, CIKM 2008; for more than two: Schuth et al., CIKM 2014). A round in which a ranking has nothing left
goes on without it. The random numbers come from the impression's id, so the ledger can be checked against them.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Mapping, Sequence


def interleave(rankings: Mapping[str, Sequence[str]], *, size: int, impression_id: str) -> tuple[list[str], list[str]]:
    """Return the documents to show and, for each, the name of the ranking whose team it is in.

    rankings: documents by name, best first. size: number of documents to show. impression_id: seeds the draw.
    """
    drawn = random.Random(hashlib.sha256(impression_id.encode()).digest())
    names = sorted(rankings)  # The same names in another order draw the same.
    places = dict.fromkeys(names, 0)
    shown: list[str] = []
    teams: list[str] = []
    seen: set[str] = set()
    while len(shown) < size:
        order = names.copy()
        drawn.shuffle(order)
        before = len(shown)
        for name in order:
            ranking = rankings[name]
            while places[name] < len(ranking) and ranking[places[name]] in seen:
                places[name] += 1
            if places[name] < len(ranking) and len(shown) < size:
                document = ranking[places[name]]
                seen.add(document)
                shown.append(document)
                teams.append(name)
        if len(shown) == before:
            break
    return shown, teams


def credits(shown: Sequence[str], teams: Sequence[str], acted_on: Iterable[str]) -> dict[str, int]:
    """Return for each team the number of its documents that the person acted on; a document counts once."""
    chosen = set(acted_on)
    found = dict.fromkeys(teams, 0)
    for document, team in zip(shown, teams, strict=True):
        found[team] += document in chosen
    return found


def preference(credit: Mapping[str, int], one: str, other: str) -> int:
    """Return 1 if the first team has more credit than the second, -1 if it has less, 0 for a tie."""
    first, second = credit.get(one, 0), credit.get(other, 0)
    return (first > second) - (first < second)
