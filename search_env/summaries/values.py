"""A product's values from which summaries choose, the query log's counts, and the baselines that learn nothing.

Every arm of an experiment chooses among the same values of a product (those that its title lacks) and has the same
budget, so that arms differ only in their choice.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

from search_env.catalogue.attributes import Attribute, document_attributes, is_logistic
from search_env.catalogue.named_documents import NamedDocuments
from search_env.queries.shops import lacks
from search_env.summaries.products import product_of, said_values
from streams.events import Product

KeyCounts = Mapping[str, int]
ValuesOrder = Literal["rates", "counts", "document"]
# Weight of the mean rate, in products, so that a key of few products is not trusted at once.
PRIOR_HOLDERS = 50
SHOWN_MAX = 20_000  # Products that stay in memory: some 60 MB.


class ProductValues:
    """The products of a catalogue with the values that their titles lack, and orders of them by a log's counts.

    An order is a list of a product's value numbers, from 1, best first; the method's name gives the criterion.
    """

    def __init__(self, documents: NamedDocuments, counts: KeyCounts, *, order: ValuesOrder = "rates") -> None:
        """counts: how often training queries ask for each key. order: order of the values in a product."""
        self.counts = counts
        self.order = order
        self.documents = documents
        self._holders: Counter[str] = Counter()
        self._key_holders: Counter[str] = Counter()
        self._pair_holders: Counter[tuple[str, str]] = Counter()
        for document in documents.rows:
            pairs = {(each.key, each.phrase.lower()) for each in document_attributes(document)}
            self._pair_holders.update(pairs)
            self._key_holders.update({key for key, _ in pairs})
            self._holders.update({phrase for _, phrase in pairs})
        self._mean_rate = sum(self.counts.values()) / max(sum(self._key_holders.values()), 1)
        self._shown: dict[str, tuple[Product, tuple[Attribute, ...]]] = {}

    def product(self, document_id: str) -> Product:
        """Return the product with the values that its title lacks, in the order of the prompt."""
        return self._product(document_id)[0]

    def keys(self, document_id: str) -> tuple[str, ...]:
        """Return the keys of the product's values, in their order."""
        return tuple(each.key for each in self._product(document_id)[1])

    def by_key_counts(self, document_id: str) -> list[int]:
        """Return the order by the query log's count of the key, highest first (ties in the document's order)."""
        return self._numbers(document_id, self._by_log(self._beside(document_id)))

    def by_key_counts_per_word(self, document_id: str) -> list[int]:
        """Return the order by the log's count of the key divided by the value's number of words, highest first."""
        values, keys = self.product(document_id).values, self.keys(document_id)
        worth = [-self.counts.get(k, 0) / len(v.split()) for k, (_, v) in zip(keys, values, strict=True)]
        return sorted(self.by_key_counts(document_id), key=lambda number: worth[number - 1])

    def by_key_rates(self, document_id: str) -> list[int]:
        """Return the order by the log's count of the key divided by the number of products with it, highest first.

        A count says how often a key is asked for over all products; a rate says how often for a product that has it. A
        value that most holders of its key share comes last, because it distinguishes no products.
        """
        return self._numbers(document_id, self._by_rate(self._beside(document_id)))

    def rate(self, key: str, value: str) -> float:
        """Return how often the log asks for a key per product with it, smoothed; a common value gets a twentieth."""
        holders = self._key_holders[key]
        rate = (self.counts.get(key, 0) + PRIOR_HOLDERS * self._mean_rate) / (holders + PRIOR_HOLDERS)
        return 0.05 * rate if self._pair_holders[key, value.lower()] > 0.5 * holders else rate

    def by_rarity(self, document_id: str) -> list[int]:
        """Return the order by the value's idf among all documents, rarest first."""
        values = self.product(document_id).values
        return sorted(
            range(1, len(values) + 1), key=lambda number: (self._holders[values[number - 1][1].lower()], number)
        )

    def by_chance(self, document_id: str) -> list[int]:
        """Return an order that depends only on the product's id."""

        def draw(number: int) -> bytes:
            return hashlib.sha256(f"{document_id}\t{number}".encode()).digest()

        return sorted(range(1, len(self.product(document_id).values) + 1), key=draw)

    def asked(self, document_id: str, keys: Sequence[str]) -> list[int]:
        """Return the order with values of these keys first, then by the log: the choice of a summary for one query."""
        mine = self.keys(document_id)
        return sorted(self.by_key_counts(document_id), key=lambda number: mine[number - 1] not in keys)

    def description(self, document_id: str) -> str:
        """Return the catalogue's whole content beside the title: the text and all values with their names."""
        document = self.documents[document_id]
        said = [
            a.phrase if a.phrase == a.name else f"{a.name} {a.phrase}"
            for a in document_attributes(document)
            if not is_logistic(a.key)
        ]
        text = "" if document.text == document.title else document.text
        return ", ".join([*([text] if text else []), *said])

    def expected_queries(self, document_id: str) -> str:
        """Return likely queries about a product, as in Doc2Query: pairs of values in the log's order of their keys.

        Doc2Query (arXiv:1904.08375) generates queries with a model trained on a log. Queries here are values of keys
        that the log asks for, so the best guesses come directly from these: two-value queries in the log's order.
        """
        values = self.product(document_id).values
        spoken = [values[number - 1][1] for number in self.by_key_counts(document_id)]
        pairs = [f"{one} {other}" for one, other in zip(spoken[0::2], spoken[1::2], strict=False)]
        return " ".join(pairs)

    def _product(self, document_id: str) -> tuple[Product, tuple[Attribute, ...]]:
        known = self._shown.get(document_id)
        if known is None:
            shown = self._beside(document_id)
            if self.order != "document":
                shown = self._by_rate(shown) if self.order == "rates" else self._by_log(shown)
            known = (product_of(self.documents[document_id], shown), tuple(shown))
            if len(self._shown) >= SHOWN_MAX:
                self._shown.clear()
            self._shown[document_id] = known
        return known

    def _beside(self, document_id: str) -> list[Attribute]:
        """Return the values that a product's title lacks, in the document's order."""
        document = self.documents[document_id]
        return [each for each in said_values(document) if lacks(document.title, each.phrase)]

    def _by_log(self, values: Sequence[Attribute]) -> list[Attribute]:
        return sorted(values, key=lambda each: -self.counts.get(each.key, 0))

    def _by_rate(self, values: Sequence[Attribute]) -> list[Attribute]:
        return sorted(values, key=lambda each: -self.rate(each.key, each.phrase))

    def _numbers(self, document_id: str, best: Sequence[Attribute]) -> list[int]:
        """Return the numbers, as the prompt shows them, of a product's values in another order."""
        number_of = {each: number for number, each in enumerate(self._product(document_id)[1], start=1)}
        return [number_of[each] for each in best]
