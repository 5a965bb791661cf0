"""A relevance model for a catalogue that holds only a sample: it scores the documents that a search has found."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from search_env.catalogue.term_matrices import Catalogue
from search_env.models.embeddings import Embedder, Vectors, document_text
from search_env.models.relevance import Pairs, RelevanceModel

Floats = npt.NDArray[np.float32]

Bind = Callable[[Catalogue], RelevanceModel]
"""A function from a catalogue to a model of its documents."""


class HitRelevance:
    """Scores documents of any catalogue that `catalogue.holding` gives. Not thread-safe."""

    def __init__(self, catalogue: Catalogue, sample: RelevanceModel, bind: Bind) -> None:
        """sample: scores the documents of the catalogue. bind: makes the same model for other documents."""
        self._catalogue = catalogue
        self._sample = sample
        self._bind = bind
        self.name = sample.name

    def score(self, query: str, document_ids: Sequence[str]) -> Floats:
        """Return [n] relevance in [0, 1]."""
        return self.score_many([(query, document_ids)])[0]

    def score_many(self, pairs: Pairs) -> list[Floats]:
        """Return relevance for several queries; documents outside the sample are read first."""
        held = self._catalogue.holding(name for _, ids in pairs for name in ids)
        model = self._sample if held is self._catalogue else self._bind(held)
        return model.score_many(pairs)


class KeptVectors:
    """Embeddings of documents outside the sample; the `kept` most recently used stay in memory (1.5 kB each)."""

    def __init__(self, sample: Catalogue, vectors: Vectors, embedder: Embedder, *, kept: int = 50_000) -> None:
        """vectors: [D, 384] of the sample."""
        self._sample = sample
        self._vectors = vectors
        self._embedder = embedder
        self._kept = kept
        self._more: OrderedDict[str, Floats] = OrderedDict()

    def of(self, catalogue: Catalogue) -> Vectors:
        """Return [D, 384] embeddings of a catalogue's documents."""
        if catalogue is self._sample:
            return self._vectors
        row_of = self._sample.row_of
        new = [each for each in catalogue.documents if each.id not in row_of and each.id not in self._more]
        if new:
            made = self._embedder.embed([document_text(each) for each in new])
            self._more.update(zip((each.id for each in new), made, strict=True))
        found: list[Vectors] = []
        for name in catalogue.ids:
            if name in row_of:
                found.append(self._vectors[row_of[name]])
            else:
                self._more.move_to_end(name)
                found.append(self._more[name])
        while len(self._more) > self._kept:
            self._more.popitem(last=False)
        return np.stack(found)
