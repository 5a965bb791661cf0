"""Simulated users: they know which documents are relevant, and click by a click model. Nothing else knows either."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from search_env.clicks.models import draw
from search_env.clicks.published import PublishedModel


class SimulatedUsers:
    """People who look at results and click. The same seed and the same calls draw the same clicks."""

    def __init__(self, published: PublishedModel, grades: Mapping[str, Mapping[str, int]], seed: int) -> None:
        """published: how they click. grades: the hidden relevance, {query id: {document id: grade}}."""
        self._published = published
        self._grades = grades
        self._highest = max((grade for row in grades.values() for grade in row.values()), default=1)
        self._random = np.random.default_rng(seed)

    def clicks(self, query_id: str, shown: Sequence[str]) -> list[str]:
        """Return the documents that the next person clicks, in the order of ranks. An unjudged document has grade 0."""
        if not shown:
            return []
        row = self._grades.get(query_id, {})
        attraction = attractions(self._published, row, shown, highest=self._highest)
        clicked = draw(self._published.model, attraction[None, :], self._random)[0]
        return [name for name, is_clicked in zip(shown, clicked, strict=True) if is_clicked]


def attractions(
    published: PublishedModel, grades: Mapping[str, int], shown: Sequence[str], *, highest: int
) -> npt.NDArray[np.float64]:
    """Return [n] the attraction of these documents. grades: of one query; highest: the largest grade of any query."""
    scale = (len(published.attraction) - 1) / max(highest, 1)
    levels = [round(max(grades.get(name, 0), 0) * scale) for name in shown]
    return np.asarray(published.attraction)[levels]
