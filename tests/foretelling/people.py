"""Simulated people on kept rankings: logged traffic with propensities, interleaved lists, and searches of one version.

A person's clicks follow a published click model on the hidden grades; the estimators see clicks alone. The rankings are
Elasticsearch's. Choosing, interleaving and crediting are the product's own code.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from search_env.clicks.models import draw
from search_env.clicks.published import EYE_TRACKED, PublishedModel
from search_env.serving.choosing import probabilities
from search_env.serving.team_draft import interleave
from storage.offpolicy.traffic import RAW, Traffic
from storage.online.credits import credits, preference
from tests.foretelling.rankings import Rankings

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


class People:
    """People who ask the rankings' queries by Zipf's law. One seed draws everything."""

    def __init__(self, rankings: Rankings, seed: int, published: PublishedModel = EYE_TRACKED) -> None:
        self.rankings = rankings
        self._random = np.random.default_rng(seed)
        self._model = published.model
        self._attraction = np.array([published.attraction[0], published.attraction[-1]])
        asked = 1 / np.arange(1, rankings.held_out + 1)
        self.asked: Floats = asked / asked.sum()

    def queries(self, count: int) -> Integers:
        """Return the queries of so many searches."""
        return self._random.choice(len(self.asked), size=count, p=self.asked)

    def clicks(self, grades: Integers) -> npt.NDArray[np.bool_]:
        """Return clicks on results of these grades, [N, 10]; -1 is no result."""
        attraction = np.where(grades >= 0, self._attraction[np.clip(grades, 0, 1)], np.nan)
        return draw(self._model, attraction, self._random)

    def clicks_of(self, version: int, count: int) -> Integers:
        """Return how many results are clicked in each of so many searches that one version answers, [count]."""
        grades: Integers = self.rankings.graded[version, self.queries(count)]
        return self.clicks(grades).sum(axis=1)

    def log(self, count: int, *, epsilon: float, clients: int, scores: dict[str, float]) -> Traffic:
        """Return logged traffic: the server's choice among all versions, with its propensities.

        scores: what the server believes of versions when it serves; others have 0.
        """
        names = list(self.rankings.versions)
        offer = probabilities({name: scores.get(name, 0.0) for name in names}, epsilon=epsilon, temperature=1.0)
        shares = np.array([offer[name] for name in names])
        queries, chosen = self.queries(count), self._random.choice(len(names), size=count, p=shares)
        worth = self.clicks(self.rankings.graded[chosen, queries]).sum(axis=1)
        return Traffic(
            queries=[f"q{query}" for query in queries],
            clients=[f"c{client}" for client in self._random.integers(clients, size=count)],
            at_ms=np.arange(count, dtype=np.int64),
            policies=[names[number] for number in chosen],
            propensities=shares[chosen],
            offered=[offer] * count,
            utilities=worth.astype(np.float64),
            left_out={},
        )

    def deltas(self, version: int, count: int) -> list[float]:
        """Return, for so many lists interleaved with raw results, +1 where the version's results got more clicks."""
        queries = self.queries(count)
        raw = self.rankings.versions.index(RAW)
        lists = []
        for number, query in enumerate(queries.tolist()):
            ranked = {
                name: [str(each) for each in self.rankings.shown[place, query] if each >= 0]
                for name, place in (("raw", raw), ("version", version))
            }
            drawn = f"{version}/{number}/{self._random.integers(2**32)}"
            lists.append(interleave(ranked, size=self.rankings.shown.shape[2], impression_id=drawn))
        grades = np.full((count, self.rankings.shown.shape[2]), -1, dtype=np.int64)
        for number, (query, (shown, _)) in enumerate(zip(queries.tolist(), lists, strict=True)):
            grades[number, : len(shown)] = [self.rankings.grades[query][int(each)] for each in shown]
        clicks = self.clicks(grades)
        return [
            float(
                preference(
                    credits(shown, teams, [each for each, hit in zip(shown, row, strict=False) if hit]),
                    "version",
                    "raw",
                )
            )
            for (shown, teams), row in zip(lists, clicks.tolist(), strict=True)
        ]
