"""Features that compare a query with a document: the input of the gradient-boosted relevance model.

Shapes: n documents of one query, Q distinct query terms, F features. All computations are sparse gathers over the
requested documents, about a millisecond for some hundred of them. Only the query's text is analyzed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from search_env.catalogue.analysis import analyze
from search_env.catalogue.lexical import TermMatrix
from search_env.catalogue.term_matrices import Catalogue, gather_rows

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]

FEATURES_VERSION = 2  # Grows when a feature of the same name is computed differently.
FIELDS = ("title", "contents", "attributes")
FEATURES = (
    *(f"{field}_{what}" for field in FIELDS for what in ("bm25", "share", "coverage", "log_length")),
    "any_share",  # query terms found in any field
    "any_coverage",  # the same, weighted by idf
    "values",  # attribute values of the document that the query names completely
    "values_coverage",  # query terms that such values explain, weighted by idf
    "values_lacked",  # share of values that the query names and another document has, but this one lacks
    "query_terms",
    "query_idf_mean",
    "cosine",  # of MiniLM embeddings; 0 if they are not used
)


class FeatureMaker:
    """Computes features of (query, document) pairs of one catalogue. Not thread-safe, because it has scratch arrays."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        self.fields: list[TermMatrix] = [catalogue.title, catalogue.contents, catalogue.attributes]
        self.values_by_term = catalogue.values_by_term
        terms = len(catalogue.vocabulary.terms)
        documents = max(catalogue.population, 1)
        frequency = np.zeros(terms, dtype=np.float32)
        for field in self.fields:
            frequency[: len(field.frequencies)] = np.maximum(frequency[: len(field.frequencies)], field.frequencies)
        self.idf: Floats = np.log1p((documents - frequency + 0.5) / (frequency + 0.5)).astype(np.float32)
        self.idf_max = float(np.log1p((documents + 0.5) / 0.5))
        self._place = np.full(terms + 1, -1, dtype=np.int64)  # term number → its place in the query, −1 elsewhere
        self._weights = [field.row_weights for field in self.fields]
        self._log_lengths = [field.log_lengths for field in self.fields]
        self._value_place = np.full(max(len(catalogue.value_phrases), 1), -1, dtype=np.int64)

    def features(self, query: str, rows: Sequence[int] | Integers, cosine: Floats | None = None) -> Floats:
        """Return [n, F] features of one query and the documents in these rows; cosine is [n] or None."""
        rows = np.asarray(rows, dtype=np.int64)
        found = np.zeros((len(rows), len(FEATURES)), dtype=np.float32)
        terms = list(dict.fromkeys(analyze(query)))
        if not len(rows) or not terms:
            return found
        number_of = self.catalogue.vocabulary.number_of
        numbers = np.array([number_of.get(term, -1) for term in terms], dtype=np.int64)  # [Q]; −1 is unknown here
        idf = np.where(numbers >= 0, self.idf[numbers], self.idf_max).astype(np.float32)  # [Q]
        idf_sum = float(idf.sum())
        known = numbers[numbers >= 0]
        self._place[known] = np.flatnonzero(numbers >= 0)
        anywhere = np.zeros((len(rows), len(terms)), dtype=np.float32)  # [n, Q]
        for position, (field, weights) in enumerate(zip(self.fields, self._weights, strict=True)):
            column = 4 * position
            gathered = gather_rows(field.counts.indptr, rows)
            place = self._place[field.counts.indices[gathered.entry]]
            hit = np.flatnonzero(place >= 0)
            in_row, in_place = gathered.row[hit], place[hit]
            present = np.zeros((len(rows), len(terms)), dtype=np.float32)
            present[in_row, in_place] = 1.0
            np.maximum(anywhere, present, out=anywhere)
            found[:, column] = np.bincount(in_row, weights=weights[gathered.entry[hit]], minlength=len(rows))
            found[:, column + 1] = present.mean(axis=1)
            found[:, column + 2] = present @ idf / idf_sum
            found[:, column + 3] = self._log_lengths[position][rows]
        found[:, 12] = anywhere.mean(axis=1)
        found[:, 13] = anywhere @ idf / idf_sum
        self._values(known, idf, idf_sum, rows, found)
        found[:, 17] = len(terms)
        found[:, 18] = idf_sum / len(terms)
        if cosine is not None:
            found[:, 19] = cosine
        self._place[known] = -1
        return found

    def named_values(self, terms: Integers) -> list[int]:
        """Return the values whose every term is among these term numbers, in order of their number."""
        wanted = set(terms.tolist())
        value_terms = self.catalogue.value_terms
        return sorted(
            value
            for term in wanted
            for value in self.values_by_term.get(term, ())
            if wanted.issuperset(value_terms[value])
        )

    def _values(self, known: Integers, idf: Floats, idf_sum: float, rows: Integers, found: Floats) -> None:
        named = self.named_values(known)
        if not named:
            return
        matrix = self.catalogue.document_values
        self._value_place[named] = np.arange(len(named))
        gathered = gather_rows(matrix.indptr, rows)
        place = self._value_place[matrix.indices[gathered.entry]]
        hit = np.flatnonzero(place >= 0)
        has = np.zeros((len(rows), len(named)), dtype=np.float32)  # [n, named values]
        has[gathered.row[hit], place[hit]] = 1.0
        says = np.zeros((len(named), len(idf)), dtype=np.float32)  # [named values, Q]
        for position, value in enumerate(named):
            says[position, self._place[list(self.catalogue.value_terms[value])]] = 1.0
        explained = np.minimum(has @ says, 1.0)  # [n, Q]
        explainable = np.minimum(says.sum(axis=0), 1.0)  # [Q]
        found[:, 14] = has.sum(axis=1)
        found[:, 15] = explained @ idf / idf_sum
        found[:, 16] = np.maximum(1.0 - (explained @ idf) / max(float(explainable @ idf), 1e-9), 0.0)
        self._value_place[named] = -1
