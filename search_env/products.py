"""A document as a policy that writes about products is shown it, and the texts that stand for it without a policy."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from search_env.attributes import document_attributes, is_logistic
from search_env.corpora import Document, Query
from search_env.summaries import Count, SummarySettings, fit_text, fit_values
from streams.events import Product

SEPARATOR = ", "


def product_of(document: Document) -> Product:
    """Return a document's title, text and attribute values as they are said, none twice, logistics left out."""
    values = {each.phrase: each.name for each in document_attributes(document) if not is_logistic(each.key)}
    return Product(
        document_id=document.id,
        title=document.title,
        values=tuple((name, phrase) for phrase, name in values.items()),
        text=document.text,
    )


def description_of(product: Product) -> str:
    """Return everything that is known beside the title: all values, or the running text where there are none.

    A text beside values is left out: in icecat it repeats the title.
    """
    return SEPARATOR.join(value for _, value in product.values) or product.text


def lead(product: Product, settings: SummarySettings, count: Count) -> str:
    """Return the description's first words within the budget."""
    return fit_text(description_of(product), settings, count).text


def random_values(product: Product, settings: SummarySettings, count: Count, *, seed: int) -> str:
    """Return values drawn without replacement as long as one fits; the same product and seed draw the same."""
    numbers = list(range(1, len(product.values) + 1))
    random.Random(f"{seed} {product.document_id}").shuffle(numbers)
    return fit_values(product, numbers, settings, count).text


def asked_names(queries: Iterable[Query], names: Mapping[str, str]) -> Counter[str]:
    """Return how often training queries ask for each attribute name. names: name by attribute key."""
    asked: Counter[str] = Counter()
    for query in queries:
        for key, _ in query.metadata.get("attributes", ()):
            asked[names.get(key, key)] += 1
    return asked


def most_asked_values(product: Product, asked: Mapping[str, int], settings: SummarySettings, count: Count) -> str:
    """Return the values whose names queries ask for most (the key prior), as many as fit; supervised, without RL."""
    order: Sequence[int] = sorted(
        range(1, len(product.values) + 1), key=lambda number: (-asked.get(product.values[number - 1][0], 0), number)
    )
    return fit_values(product, order, settings, count).text
