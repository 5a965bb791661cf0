"""The products of one split, as judged lists ask for them: who has a value, and whose title lacks it.

Rows of products lie in arrays of four bytes each, and a document is read where it lies, so that a million products with
ten values take some hundred MB.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property, reduce

import numpy as np
import numpy.typing as npt

from search_env.catalogue.analysis import analyze
from search_env.catalogue.attributes import Attribute, document_attributes, document_brand
from search_env.catalogue.corpora import Document
from search_env.catalogue.demand import Demand

Rows = npt.NDArray[np.int32]
ValueKey = tuple[str, str]


def lacks(title: str, phrase: str) -> bool:
    """Return whether a title lacks at least one word of a value."""
    return not set(analyze(phrase)) <= set(analyze(title))


class Shop:
    """The products that were added, by the values that shoppers ask for. All rows are ascending."""

    def __init__(self, documents: Sequence[Document], demand: Demand) -> None:
        """documents: of the whole catalogue."""
        self.documents = documents
        self.askable = array("i")  # Products with enough values that their titles lack.
        self._demand = demand
        self._brands: dict[str, int] = {}
        self._brand_of = array("i", bytes(4 * len(documents)))
        self._holders: defaultdict[ValueKey, array[int]] = defaultdict(lambda: array("i"))
        self._lacking: defaultdict[ValueKey, array[int]] = defaultdict(lambda: array("i"))
        self._key_holders: defaultdict[str, array[int]] = defaultdict(lambda: array("i"))
        self._phrases: dict[ValueKey, str] = {}
        self._varied: set[ValueKey] = set()  # Values that are said in several ways: true and "true".

    def add(self, row: int, document: Document, *, values_min: int) -> None:
        """Add a product, after those of lower rows. values_min: absent values of a product that can be asked for."""
        self._brand_of[row] = self._brands.setdefault(document_brand(document), len(self._brands))
        attributes = [a for a in document_attributes(document) if a.key in self._demand.weights]
        for each in attributes:
            _append(self._holders[each.key, each.value], row)
            _append(self._key_holders[each.key], row)
            if self._phrases.setdefault((each.key, each.value), each.phrase) != each.phrase:
                self._varied.add((each.key, each.value))
        absent = _absent(attributes, document.title)
        if len(absent) >= values_min:
            self.askable.append(row)
            for each in absent:
                _append(self._lacking[each.key, each.value], row)

    def absent(self, row: int) -> list[Attribute]:
        """Return the values of a product that shoppers ask for and its title lacks."""
        document = self.documents[row]
        return _absent([a for a in document_attributes(document) if a.key in self._demand.weights], document.title)

    def holders(self, value: Attribute) -> Rows:
        """Return the products with a value."""
        return _rows(self._holders.get((value.key, value.value)))

    def key_holders(self, key: str) -> Rows:
        """Return the products with any value of a key."""
        return _rows(self._key_holders.get(key))

    def holding(self, parts: Sequence[Attribute]) -> Rows:
        """Return the products with all of these values."""
        return reduce(_both, map(self.holders, parts))

    def of_brand(self, rows: Rows, brand: str) -> Rows:
        """Return those of some products that have this brand."""
        found: Rows = rows[_rows(self._brand_of)[rows] == self._brands.get(brand, -1)]
        return found

    def hidden(self, relevant: Rows, parts: Sequence[Attribute]) -> Rows:
        """Return the askable ones of the products with these values whose title lacks one of them."""
        if any((each.key, each.value) in self._varied for each in parts):
            askable = _both(relevant, _rows(self.askable)).tolist()
            titles = ((row, self.documents[row].title) for row in askable)
            return np.array([row for row, title in titles if any(lacks(title, p.phrase) for p in parts)], np.int32)
        lacking = [_rows(self._lacking.get((each.key, each.value))) for each in parts]
        return reduce(np.union1d, (_both(relevant, rows) for rows in lacking))

    def others(self, parts: Sequence[Attribute], relevant: Rows) -> Rows:
        """Return the askable products with a key of these values, without the relevant ones."""
        return self._asked([self.key_holders(each.key) for each in parts], relevant)

    def near(self, parts: Sequence[Attribute], relevant: Rows) -> Rows:
        """Return those of the others that have one of these values."""
        return self._asked([self.holders(each) for each in parts], relevant)

    def asked(self, relevant: Rows) -> Rows:
        """Return the askable products without the relevant ones."""
        return self._asked([_rows(self.askable)], relevant)

    def _asked(self, several: Sequence[Rows], relevant: Rows) -> Rows:
        """Return the askable products among several, without the relevant ones: by flags, which need no sorting."""
        flags = np.zeros(len(self.documents), dtype=np.bool_)
        for rows in several:
            flags[rows] = True
        flags &= self._flags
        flags[relevant] = False
        return np.flatnonzero(flags).astype(np.int32)

    @cached_property
    def _flags(self) -> npt.NDArray[np.bool_]:
        flags = np.zeros(len(self.documents), dtype=np.bool_)
        flags[_rows(self.askable)] = True
        return flags


def _absent(attributes: Sequence[Attribute], title: str) -> list[Attribute]:
    words = set(analyze(title))
    return [each for each in attributes if not set(analyze(each.phrase)) <= words]


def _append(rows: array[int], row: int) -> None:
    if not rows or rows[-1] != row:
        rows.append(row)


def _rows(rows: array[int] | None) -> Rows:
    return np.frombuffer(rows, dtype=np.int32) if rows else np.zeros(0, dtype=np.int32)


def _both(one: Rows, other: Rows) -> Rows:
    return np.intersect1d(one, other, assume_unique=True)
