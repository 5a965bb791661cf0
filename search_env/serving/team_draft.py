"""Team-draft interleaving: two or more rankings shown as one.

In each round every ranking, in random order, adds its best document that is not shown yet to its team (Radlinski,
Kurup and Joachims, CIKM 2008; for more than two: Schuth et al., CIKM 2014). A round in which a ranking has nothing left
goes on without it. The random numbers come from the impression's id, so the ledger can be checked against them.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence


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
