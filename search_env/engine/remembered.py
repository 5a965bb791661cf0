"""Rankings of an index version, remembered by the search: a version never changes, so neither does its answer.

Each epoch asks the same raw queries again, and a policy that has learned writes the same expansions again.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict

from search_env.catalogue.corpora import Ranking

DIGEST_BYTES = 16


class RememberedRankings:
    """The rankings of the searches that were asked last, by the search's own bytes. Thread-safe."""

    def __init__(self, count: int) -> None:
        """count: the largest number of rankings; 0 remembers none."""
        self._count = count
        self._rankings: OrderedDict[bytes, Ranking] = OrderedDict()
        self._lock = threading.Lock()
        self.found = self.asked = 0

    def get(self, body: bytes) -> Ranking | None:
        """Return the ranking of a search, the caller's own copy; None if it is not known."""
        if not self._count:
            return None
        key = _key(body)
        with self._lock:
            self.asked += 1
            ranking = self._rankings.get(key)
            if ranking is not None:
                self.found += 1
                self._rankings.move_to_end(key)
        return Ranking(list(ranking.ids), list(ranking.scores)) if ranking is not None else None

    def put(self, body: bytes, ranking: Ranking) -> None:
        """Remember a copy of a search's ranking, in place of the one that was asked longest ago."""
        if not self._count:
            return
        with self._lock:
            self._rankings[_key(body)] = Ranking(list(ranking.ids), list(ranking.scores))
            while len(self._rankings) > self._count:
                self._rankings.popitem(last=False)


def _key(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=DIGEST_BYTES).digest()
