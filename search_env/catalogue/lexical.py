"""Term counts of a whole corpus as sparse matrices, and BM25 on them.

Shapes: D documents, W distinct terms, Q terms of a query. Relevance features and feedback terms use the matrices, and
tests use them as the oracle of the index's own scores. The engine itself always does the search.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, MutableMapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy import sparse

from search_env.catalogue.analysis import analyze

BM25_K1 = 1.2
BM25_B = 0.75

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int32]


class Vocabulary:
    """Terms and their numbers, in order of first appearance."""

    def __init__(self, base: Vocabulary | None = None) -> None:
        """base: its terms keep their numbers, and it stays as it is."""
        self.number_of: MutableMapping[str, int] = {} if base is None else ChainMap({}, base.number_of)
        self.terms: list[str] = [] if base is None else list(base.terms)

    def number(self, term: str) -> int:
        """Return the term's number; a new term gets the next number."""
        known = self.number_of.get(term)
        if known is None:
            known = self.number_of[term] = len(self.terms)
            self.terms.append(term)
        return known

    def known(self, terms: Iterable[str]) -> list[int]:
        """Return the numbers of the known terms among these."""
        return [self.number_of[term] for term in terms if term in self.number_of]


class TermMatrix:
    """The count of each term in each document of one field.

    counts: sparse [D, W] by rows; columns: the same by columns (for scoring); lengths: [D] terms per document.
    idf: [W] as in Lucene's BM25Similarity: ln(1 + (N − n + 0.5) / (n + 0.5)), N = documents with this field non-empty.
    frequencies, totals: [W] documents that have a term, and its occurrences in them.
    """

    def __init__(self, counts: sparse.csr_matrix, vocabulary: Vocabulary, like: TermMatrix | None = None) -> None:
        """like: the matrix whose statistics hold here, too; a term that it lacks occurs in none of its documents."""
        self.counts = counts
        self.vocabulary = vocabulary
        self.columns = counts.tocsc()
        self.lengths: Floats = np.asarray(counts.sum(axis=1), dtype=np.float32).ravel()
        if like is None:
            self.frequencies: Integers = np.diff(self.columns.indptr).astype(np.int32)
            self.totals: Doubles = np.asarray(counts.sum(axis=0), dtype=np.float64).ravel()
            self.nonempty = max(int((self.lengths > 0).sum()), 1)
            self.length_mean = float(self.lengths.sum()) / self.nonempty
        else:
            more = counts.shape[1] - len(like.frequencies)
            self.frequencies = np.pad(like.frequencies, (0, more))
            self.totals = np.pad(like.totals, (0, more))
            self.nonempty, self.length_mean = like.nonempty, like.length_mean
        documents = self.nonempty
        self.idf: Floats = np.log1p((documents - self.frequencies + 0.5) / (self.frequencies + 0.5)).astype(np.float32)
        saturation = BM25_K1 * (1 - BM25_B + BM25_B * self.lengths / max(self.length_mean, 1e-9))
        weights = self.columns.astype(np.float32)
        rows = weights.indices
        # Lucene 8 dropped the constant factor (k1 + 1), but Elasticsearch keeps it; the scores must be equal.
        weights.data = (BM25_K1 + 1) * weights.data / (weights.data + saturation[rows])
        weights.data *= np.repeat(self.idf, np.diff(weights.indptr))
        self.bm25 = weights  # [D, W] by columns: the whole score of one occurrence of a query term.

    @property
    def documents(self) -> int:
        """The number of documents, D."""
        return int(self.counts.shape[0])

    def bm25_scores(self, terms: Sequence[int]) -> Floats:
        """Return [D] BM25 scores of a query given as term numbers (a repeated term counts twice, as in Lucene)."""
        scores = np.zeros(self.documents, dtype=np.float32)
        indptr, indices, data = self.bm25.indptr, self.bm25.indices, self.bm25.data
        for term in terms:
            if term >= len(indptr) - 1:  # A term that a later field added to the shared vocabulary.
                continue
            start, end = indptr[term], indptr[term + 1]
            scores[indices[start:end]] += data[start:end]
        return scores


def term_matrix(
    texts: Iterable[str], vocabulary: Vocabulary | None = None, like: TermMatrix | None = None
) -> TermMatrix:
    """Return the term counts of texts, analyzed with `english`; a given vocabulary grows, so that fields share it.

    like: as in `TermMatrix`.
    """
    vocabulary = vocabulary or Vocabulary()
    number = vocabulary.number
    indices: list[int] = []
    indptr = [0]
    for text in texts:
        indices.extend([number(term) for term in analyze(text)])
        indptr.append(len(indices))
    counts = sparse.csr_matrix(
        (np.ones(len(indices), dtype=np.float32), np.asarray(indices, dtype=np.int32), np.asarray(indptr)),
        shape=(len(indptr) - 1, len(vocabulary.terms)),
    )
    counts.sum_duplicates()
    return TermMatrix(counts, vocabulary, like)


def top_documents(scores: Floats, ids: Sequence[str], *, count: int) -> list[int]:
    """Return the positions of the best documents with a score above 0, ties by document id ascending."""
    positive = int((scores > 0).sum())
    count = min(count, positive)
    if count == 0:
        return []
    threshold = np.partition(scores, -count)[-count]
    candidates = np.flatnonzero(scores >= max(threshold, np.nextafter(np.float32(0), np.float32(1))))
    return sorted(candidates.tolist(), key=lambda position: (-scores[position], ids[position]))[:count]
