"""The documents that have each attribute value, as arrays of rows: what queries can ask for, and what answers them.

A facet is one (key, value). Memory: some 30 bytes for each attribute of each document, and nothing of the documents.
"""

from __future__ import annotations

from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from search_env.catalogue.attributes import Attribute, document_attributes, document_brand, is_logistic
from search_env.catalogue.corpora import Document

Integers = npt.NDArray[np.int64]
Rows = npt.NDArray[np.int32]
Bits = npt.NDArray[np.uint8]
BITS_BYTES_MAX = 64 * 1024 * 1024  # Facets as bits that stay in memory.
FEW_SHARE = 1 / 64  # Up to this share of the documents, a list of rows is tested row by row.

Facet = tuple[str, str]
BRAND = "\0brand"  # No key of an attribute: a document's brand is kept apart from them.


class Facets:
    """The facets of a catalogue and their documents."""

    def __init__(self, documents: Iterable[Document]) -> None:
        """Read the documents once."""
        self.number_of: dict[Facet, int] = {}
        self._entries, lengths, brands = array("i"), array("i"), array("i")
        number_of = self.number_of
        brand_of: dict[str, int] = {}
        for document in documents:
            before = len(self._entries)
            for attribute in document_attributes(document):
                if not is_logistic(attribute.key):
                    facet = (attribute.key, attribute.value)
                    self._entries.append(number_of.setdefault(facet, len(number_of)))
            lengths.append(len(self._entries) - before)
            brands.append(brand_of.setdefault(document_brand(document), len(brand_of)))
        self.documents = len(lengths)
        self._attributes = len(number_of)
        for brand in brand_of:
            number_of[BRAND, brand] = len(number_of)
        self._indptr = np.concatenate([[0], np.cumsum(np.frombuffer(lengths, dtype=np.int32), dtype=np.int64)])
        self._columns, self._begins = self._by_facet(np.frombuffer(brands, dtype=np.int32))
        self._bits: OrderedDict[int, Bits] = OrderedDict()

    @property
    def attributes(self) -> list[Facet]:
        """All facets of attributes, without the brands, in the order of their numbers."""
        return list(self.number_of)[: self._attributes]

    def count(self, facet: Facet) -> int:
        """Return how many documents have a facet."""
        return len(self.rows(facet))

    def counts(self) -> Integers:
        """Return how many documents have each facet of `attributes`."""
        return np.diff(self._begins)[: self._attributes]

    def rows(self, facet: Facet) -> Rows:
        """Return the documents that have a facet, ascending."""
        number = self.number_of[facet]
        return self._columns[self._begins[number] : self._begins[number + 1]]

    def rows_of_several(self, facets: set[Facet], *, least: int) -> Integers:
        """Return the documents with at least so many attributes among these facets, ascending."""
        wanted = np.zeros(len(self.number_of), dtype=np.int64)
        wanted[[self.number_of[facet] for facet in facets]] = 1
        entries = np.frombuffer(self._entries, dtype=np.int32) if self._entries else np.zeros(0, dtype=np.int32)
        sums = np.concatenate([[0], np.cumsum(wanted[entries])])
        return np.flatnonzero(sums[self._indptr[1:]] - sums[self._indptr[:-1]] >= least)

    def having_all(self, facets: Sequence[Facet], *, most: int) -> Sequence[int] | None:
        """Return the documents that have all facets, ascending; None if there are more than `most`."""
        first, *others = sorted(dict.fromkeys(facets), key=self.count)
        rows = self.rows(first)
        if len(rows) <= self.documents * FEW_SHARE:
            for facet in others:
                bits = self._as_bits(facet)
                rows = rows[(bits[rows >> 3] >> (7 - (rows & 7)).astype(np.uint8)) & 1 == 1]
            return rows.tolist() if len(rows) <= most else None
        both = self._as_bits(first)
        for facet in others:
            both = both & self._as_bits(facet)
        if int(np.bitwise_count(both).sum()) > most:
            return None
        return np.flatnonzero(np.unpackbits(both, count=self.documents)).tolist()

    def _as_bits(self, facet: Facet) -> Bits:
        number = self.number_of[facet]
        known = self._bits.get(number)
        if known is None:
            flags = np.zeros(self.documents, dtype=bool)
            flags[self.rows(facet)] = True
            known = self._bits[number] = np.packbits(flags)
            while len(self._bits) > max(BITS_BYTES_MAX // len(known), 4):
                self._bits.popitem(last=False)
        else:
            self._bits.move_to_end(number)
        return known

    def _by_facet(self, brands: Rows) -> tuple[Rows, Integers]:
        """Return the documents of each facet, one facet after the other, and where each facet begins."""
        entries = np.frombuffer(self._entries, dtype=np.int32) if self._entries else np.zeros(0, dtype=np.int32)
        rows = np.repeat(np.arange(self.documents, dtype=np.int32), np.diff(self._indptr))
        # A document may say one value twice; it then counts once.
        order = np.argsort(entries, kind="stable")
        entries, rows = entries[order], rows[order]
        first = np.ones(len(entries), dtype=bool)
        first[1:] = (entries[1:] != entries[:-1]) | (rows[1:] != rows[:-1])
        entries, rows = entries[first], rows[first]
        of_brand = np.argsort(brands, kind="stable").astype(np.int32)
        numbers = np.concatenate([entries, brands[of_brand] + self._attributes])
        begins = np.concatenate([[0], np.cumsum(np.bincount(numbers, minlength=len(self.number_of)))])
        return np.concatenate([rows, of_brand]), begins


def askable(facets: Facets, *, least: int, share_max: float, key_values_share_max: float) -> set[Facet]:
    """Return the facets of attributes that a query may ask for; the limits are those of `IntentSettings`."""
    key_documents: Counter[str] = Counter()
    key_values: Counter[str] = Counter()
    counted = list(zip(facets.attributes, facets.counts().tolist(), strict=True))
    for (key, _), count in counted:
        key_documents[key] += count
        key_values[key] += 1
    most = max(share_max * facets.documents, least)
    return {
        facet
        for facet, count in counted
        if least <= count <= most and key_values[facet[0]] <= key_values_share_max * key_documents[facet[0]]
    }


def asked_for(document: Document, facets: set[Facet]) -> list[Attribute]:
    """Return a document's attributes among these facets, in their own order."""
    return [each for each in document_attributes(document) if (each.key, each.value) in facets]
