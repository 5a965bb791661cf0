"""Term counts of a whole corpus as sparse matrices, and BM25 on them.

Shapes: D documents, W distinct terms, Q terms of a query. Relevance features and feedback terms use the matrices, and
tests use them as the oracle of the index's own scores. The engine itself always does the search.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, MutableMapping, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy import sparse

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

    counts: sparse [D, W] by rows. lengths: [D] terms per document; log_lengths: [D] log(1 + length).
    bm25: [D, W] by columns: the whole score of one occurrence of a query term. row_weights: the same numbers in the
    order of the entries of `counts`.
    idf: [W] as in Lucene's BM25Similarity: ln(1 + (N − n + 0.5) / (n + 0.5)), N = documents with this field non-empty.
    frequencies, totals: [W] documents that have a term, and its occurrences in them.
    """

    def __init__(self, counts: sparse.csr_matrix, vocabulary: Vocabulary, like: TermMatrix | None = None) -> None:
        """like: the matrix whose statistics hold here, too; a term that it lacks occurs in none of its documents."""
        self.counts = counts
        self.vocabulary = vocabulary
        columns = counts.tocsc()
        self.lengths: Floats = np.asarray(counts.sum(axis=1), dtype=np.float32).ravel()
        if like is None:
            self.frequencies: Integers = np.diff(columns.indptr).astype(np.int32)
            self.totals: Doubles = np.asarray(counts.sum(axis=0), dtype=np.float64).ravel()
            self.nonempty, self.length_mean = length_statistics(self.lengths)
        else:
            more = counts.shape[1] - len(like.frequencies)
            self.frequencies = np.pad(like.frequencies, (0, more))
            self.totals = np.pad(like.totals, (0, more))
            self.nonempty, self.length_mean = like.nonempty, like.length_mean
        self.idf: Floats = idf_of(self.frequencies, self.nonempty)
        saturation = saturation_of(self.lengths, self.length_mean)
        weights = columns.astype(np.float32)
        weights.data = weights_of(weights.data, saturation[weights.indices])
        weights.data *= np.repeat(self.idf, np.diff(weights.indptr))
        self.bm25 = weights

    @cached_property
    def row_weights(self) -> Floats:
        """BM25 weights in the order of the entries of `counts`, which are sorted within each row."""
        rows = self.bm25.tocsr()
        rows.sort_indices()
        self.counts.sort_indices()
        return np.asarray(rows.data, dtype=np.float32)

    @cached_property
    def log_lengths(self) -> Floats:
        """[D] log(1 + length) of each document."""
        return np.log1p(self.lengths)

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


def length_statistics(lengths: Floats) -> tuple[int, float]:
    """Return the number of documents with this field (at least 1), and their mean length."""
    nonempty = max(int((lengths > 0).sum()), 1)
    return nonempty, float(lengths.sum()) / nonempty


def idf_of(frequencies: Integers, documents: int) -> Floats:
    """Return [W] Lucene's idf of terms from the documents that have them."""
    return np.log1p((documents - frequencies + 0.5) / (frequencies + 0.5)).astype(np.float32)


def saturation_of(lengths: Floats, length_mean: float) -> Floats:
    """Return [D] BM25's k1 · (1 − b + b · length / mean)."""
    return np.asarray(BM25_K1 * (1 - BM25_B + BM25_B * lengths / max(length_mean, 1e-9)), dtype=np.float32)


def weights_of(counts: Floats, saturation: Floats) -> Floats:
    """Return BM25's weight of each count without its idf; saturation: of the count's document.

    Lucene 8 dropped the constant factor (k1 + 1), but Elasticsearch keeps it; the scores must be equal.
    """
    return np.asarray((BM25_K1 + 1) * counts / (counts + saturation), dtype=np.float32)


def top_documents(scores: Floats, ids: Sequence[str], *, count: int) -> list[int]:
    """Return the positions of the best documents with a score above 0, ties by document id ascending."""
    positive = int((scores > 0).sum())
    count = min(count, positive)
    if count == 0:
        return []
    threshold = np.partition(scores, -count)[-count]
    candidates = np.flatnonzero(scores >= max(threshold, np.nextafter(np.float32(0), np.float32(1))))
    return sorted(candidates.tolist(), key=lambda position: (-scores[position], ids[position]))[:count]
