"""Documents as products for a policy, and the baseline texts of a product, which need no policy."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence

from search_env.catalogue.attributes import Attribute, document_attributes, is_logistic, query_keys
from search_env.catalogue.corpora import Document, Query
from search_env.summaries.reading import Count, SummarySettings, fit_text, fit_values
from streams.events import Product

SEPARATOR = ", "


def said_values(document: Document) -> list[Attribute]:
    """Return a document's attribute values as phrases, in its own order, without repeats and logistics."""
    found: dict[str, Attribute] = {}
    for attribute in document_attributes(document):
        if not is_logistic(attribute.key):
            found.setdefault(attribute.phrase.lower(), attribute)
    return list(found.values())


def product_of(document: Document, values: Sequence[Attribute] | None = None) -> Product:
    """Return a document as a policy sees it: title, text, and values in their order (all phrases, if None).

    A value is (name, phrase), and its pointer is its place in this order.
    """
    shown = said_values(document) if values is None else values
    return Product(
        document_id=document.id,
        title=document.title,
        values=tuple((each.name, each.phrase) for each in shown),
        text=document.text,
    )


def description_of(product: Product) -> str:
    """Return a product's whole content beside the title: all values, or the running text if there are none.

    A text beside values is left out, because in icecat it repeats the title.
    """
    return SEPARATOR.join(value for _, value in product.values) or product.text


def lead(product: Product, settings: SummarySettings, count: Count) -> str:
    """Return the description's first words within the budget."""
    return fit_text(description_of(product), settings, count).text


def random_values(product: Product, settings: SummarySettings, count: Count, *, seed: int) -> str:
    """Return values drawn without replacement within the budget; the same product and seed give the same values."""
    numbers = list(range(1, len(product.values) + 1))
    random.Random(f"{seed} {product.document_id}").shuffle(numbers)
    return fit_values(product, numbers, settings, count).text


def asked_keys(queries: Iterable[Query]) -> Counter[str]:
    """Return the number of queries that ask for each attribute key."""
    return Counter(key for query in queries for key in query_keys(query))
