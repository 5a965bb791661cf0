"""A loaded corpus as term matrices: the source of relevance features, feedback terms and contexts.

Shapes: D documents, W terms, U distinct attribute values. All fields share one vocabulary, so that one query has one
list of term numbers. A *value* is an attribute's phrase, whatever its key; the brand counts as a value. Shoppers ask
for "black" by its word, not by `product_colour`.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse

from search_env.catalogue.analysis import STOP_WORDS, analyze, stem, surface_tokens
from search_env.catalogue.attributes import document_attributes, document_brand, is_logistic
from search_env.catalogue.corpora import Document
from search_env.catalogue.lexical import TermMatrix, Vocabulary

Integers = npt.NDArray[np.int64]


class Ragged(NamedTuple):
    """Rows of different lengths, one after the other: entry `e` belongs to row `row[e]` and lies at `entry[e]`."""

    row: Integers
    entry: Integers


class Catalogue:
    """The documents of one index and their matrices; each matrix is made at its first use.

    population: the number of documents behind the statistics.
    """

    def __init__(self, documents: Sequence[Document], like: Catalogue | None = None) -> None:
        """like: the catalogue whose statistics hold here, too.

        Then every number about one document is the one that it would have if it were the only one. A value that `like`
        lacks is left out; a term that it lacks occurs in none of its documents.
        """
        self.documents = documents
        self.ids, self.row_of = self._names()
        self._like = like
        if like is not None:
            like.settle()
        self.vocabulary: Vocabulary = Vocabulary(like.vocabulary if like is not None else None)
        self.population: int = like.population if like is not None else len(documents)

    def __len__(self) -> int:
        return len(self.documents)

    def _names(self) -> tuple[Sequence[str], Mapping[str, int]]:
        """Return the documents' ids, and the row of each."""
        ids = [document.id for document in self.documents]
        return ids, {document_id: row for row, document_id in enumerate(ids)}

    def holding(self, ids: Iterable[str]) -> Catalogue:
        """Return a catalogue that holds these documents, with the statistics of this one: here, this one."""
        return self

    @cached_property
    def contents(self) -> TermMatrix:
        """[D, W] terms of title and text together, as in the index's `contents`."""
        number = self.vocabulary.number
        return self._field(
            "contents", ([number(term) for term in analyze(f"{d.title} {d.text}")] for d in self.documents)
        )

    @cached_property
    def title(self) -> TermMatrix:
        """[D, W] terms of the title."""
        _ = self.contents  # Fixes the order of the vocabulary, so that it never depends on the first caller.
        number = self.vocabulary.number
        return self._field("title", ([number(term) for term in analyze(d.title)] for d in self.documents))

    @cached_property
    def surface_forms(self) -> list[str]:
        """[W] the most frequent word in title or text for each term; "" for terms that occur only in attributes.

        A feedback term is searched by its word, which the index analyzes back to the term. The stem would fail:
        "releases" is indexed as "releas", and "releas" would be searched as "relea".
        """
        forms = list(self._like.surface_forms) if self._like is not None else []
        forms += [""] * (len(self.contents.vocabulary.terms) - len(forms))
        counts: Counter[str] = Counter()
        for document in self.documents:
            counts.update(surface_tokens(f"{document.title} {document.text}"))
        for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
            if word not in STOP_WORDS:
                number = self.vocabulary.number_of.get(stem(word))
                if number is not None and not forms[number]:
                    forms[number] = word
        return forms

    @cached_property
    def value_phrases(self) -> list[str]:
        """[U] the values' phrases in order of first appearance: the columns of the value matrices."""
        return self._values[0]

    @cached_property
    def document_values(self) -> sparse.csr_matrix:
        """[D, U] 1 if the document has the value; columns in the order of the document's attributes."""
        return self._values[1]

    @cached_property
    def value_documents(self) -> sparse.csc_matrix:
        """[D, U] the same by columns: the documents that have a value."""
        return self.document_values.tocsc()

    @cached_property
    def value_frequencies(self) -> npt.NDArray[np.float64]:
        """[U] the documents that have a value."""
        if self._like is not None:
            return self._like.value_frequencies
        return np.asarray(np.diff(self.value_documents.indptr), dtype=np.float64)

    @cached_property
    def value_terms(self) -> list[tuple[int, ...]]:
        """[U] the distinct term numbers of each phrase, ascending."""
        if self._like is not None:
            return self._like.value_terms
        self._after_fields()
        number = self.vocabulary.number
        return [tuple(sorted({number(term) for term in analyze(phrase)})) for phrase in self.value_phrases]

    @cached_property
    def values_by_term(self) -> dict[int, list[int]]:
        """Each value, under the one of its terms that the fewest values have: enough to find all values of a query."""
        if self._like is not None:
            return self._like.values_by_term
        holders: dict[int, int] = {}
        for terms in self.value_terms:
            for term in terms:
                holders[term] = holders.get(term, 0) + 1
        found: dict[int, list[int]] = {}
        for value, terms in enumerate(self.value_terms):
            if terms:
                found.setdefault(min(terms, key=lambda term: (holders[term], term)), []).append(value)
        return found

    @cached_property
    def attributes(self) -> TermMatrix:
        """[D, W] terms of all attribute phrases and of their keys' names, without logistics."""
        self._after_fields()
        return self._field("attributes", self._attribute_terms())

    def _attribute_terms(self) -> Iterator[list[int]]:
        """Yield the term numbers of each document's attributes."""
        number = self.vocabulary.number
        known: dict[str, list[int]] = {}
        for document in self.documents:
            mine: list[int] = []
            for attribute in document_attributes(document):
                if is_logistic(attribute.key):
                    continue
                said = (
                    attribute.phrase if attribute.phrase == attribute.name else f"{attribute.name} {attribute.phrase}"
                )
                terms = known.get(said)
                if terms is None:
                    terms = known[said] = [number(term) for term in analyze(said)]
                mine.extend(terms)
            yield mine

    def _field(self, name: str, rows: Iterable[list[int]]) -> TermMatrix:
        """Return the matrix of a field from each document's term numbers; name: the attribute of this class."""
        counts = sparse_rows(rows, lambda: len(self.vocabulary.terms))
        counts.sum_duplicates()
        return TermMatrix(counts, self.vocabulary, getattr(self._like, name) if self._like is not None else None)

    @cached_property
    def _values(self) -> tuple[list[str], sparse.csr_matrix]:
        phrases: list[str] = self._like.value_phrases if self._like is not None else []
        return phrases, sparse_rows(self._value_rows(phrases), lambda: max(len(phrases), 1))

    def _value_rows(self, phrases: list[str]) -> Iterator[list[int]]:
        """Yield the values of each document, in the order of its attributes; new phrases are added to the list."""
        number_of: dict[str, int] = self._like.value_numbers if self._like is not None else {}
        for document in self.documents:
            mine: dict[int, None] = {}
            said = [a.phrase for a in document_attributes(document) if not is_logistic(a.key)]
            for phrase in (document_brand(document), *said):
                folded = phrase.lower()
                if not folded:
                    continue
                value = number_of.get(folded)
                if value is None:
                    if self._like is not None:
                        continue
                    value = number_of[folded] = len(phrases)
                    phrases.append(phrase)
                mine[value] = None
            yield list(mine)

    @cached_property
    def value_numbers(self) -> dict[str, int]:
        """The number of each value by its phrase in lower case."""
        return {phrase.lower(): number for number, phrase in enumerate(self.value_phrases)}

    def settle(self) -> None:
        """Make everything that adds to the vocabulary, so that other catalogues can be made like this one."""
        _ = self.attributes, self.value_terms

    def _after_fields(self) -> None:
        """Add title and text to the vocabulary first, so that term numbers never depend on the first caller."""
        _ = self.title


def sparse_rows(rows: Iterable[list[int]], width: Callable[[], int]) -> sparse.csr_matrix:
    """Return a sparse matrix with a 1 for each column number of each row. width: asked after the last row."""
    indices, indptr = array("i"), array("q", [0])
    for row in rows:
        indices.extend(row)
        indptr.append(len(indices))
    columns = np.frombuffer(indices, dtype=np.int32) if indices else np.zeros(0, dtype=np.int32)
    return sparse.csr_matrix(
        (np.ones(len(columns), dtype=np.float32), columns.copy(), np.asarray(indptr)), shape=(len(indptr) - 1, width())
    )


def gather_rows(indptr: npt.NDArray[np.int32], rows: Integers) -> Ragged:
    """Return the places of the entries of some rows of a CSR matrix: [entries of all these rows], row by row."""
    starts = indptr[rows].astype(np.int64)
    lengths = indptr[rows + 1].astype(np.int64) - starts
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    row = np.repeat(np.arange(len(rows), dtype=np.int64), lengths)
    entry = np.arange(total, dtype=np.int64) + np.repeat(starts - (ends - lengths), lengths)
    return Ragged(row, entry)
