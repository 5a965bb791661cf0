"""Simulated users: they know which documents are relevant, and click by a click model. Nothing else knows either."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from search_env.clicks.models import draw
from search_env.clicks.published import PublishedModel


class SimulatedUsers:
    """People who look at results and click. The same seed and the same calls draw the same clicks."""

    def __init__(self, published: PublishedModel, grades: Mapping[str, Mapping[str, int]], seed: int) -> None:
        """published: how they click. grades: the hidden relevance, {query id: {document id: grade}}."""
        self._model = published.model
        self._attraction = np.asarray(published.attraction)
        self._grades = grades
        self._highest = max((grade for row in grades.values() for grade in row.values()), default=1)
        self._random = np.random.default_rng(seed)

    def clicks(self, query_id: str, shown: Sequence[str]) -> list[str]:
        """Return the documents that the next person clicks, in the order of ranks. An unjudged document has grade 0."""
        if not shown:
            return []
        row = self._grades.get(query_id, {})
        scale = (len(self._attraction) - 1) / max(self._highest, 1)
        levels = [round(max(row.get(name, 0), 0) * scale) for name in shown]
        clicked = draw(self._model, self._attraction[levels][None, :], self._random)[0]
        return [name for name, is_clicked in zip(shown, clicked, strict=True) if is_clicked]
