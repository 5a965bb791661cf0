"""The category of a query, from its words alone: that of the products whose texts use them. All of it is pure.

A category is an attribute of the catalogue's documents. A word has a category if at least half of the documents that
use it and have a category have this one. The words of a query vote, and its last word breaks a tie: the kind of thing
stands last in a query such as "hp laser printer". Nothing is searched and no judgment is read.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from search_env.catalogue.analysis import analyze, plain_words
from search_env.catalogue.attributes import raw_attributes
from search_env.catalogue.corpora import Document

OTHER = "other"
FIELDS = ("product_type", "category", "type")
"""Attributes that name the kind of a product; the first that a document has counts."""

SHARE_MIN = 0.5
DOCUMENTS_MIN = 5
WORDS_MAX = 20_000
NAME_CHARACTERS_MAX = 40


def learn_categories(documents: Iterable[Document], *, field: str, count: int) -> dict[str, str]:
    """Return the category of each word that has one, {index term: category}; empty if no document has a category.

    field: the attribute that holds it; "" takes the first of `FIELDS`. count: the most common categories that are told
    apart. Words of others have none.
    """
    sizes: Counter[str] = Counter()
    by_word: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for document in documents:
        if name := _category(document, (field,) if field else FIELDS):
            sizes[name] += 1
            for word in set(analyze(f"{document.title} {name}")):
                by_word[word][name] += 1
    kept = set(sorted(sizes, key=lambda name: (-sizes[name], name))[:count])
    found: dict[str, tuple[int, str]] = {}
    for word, names in by_word.items():
        name = min(names, key=lambda each: (-names[each], each))
        holders = names.total()
        if name in kept and holders >= DOCUMENTS_MIN and names[name] >= SHARE_MIN * holders:
            found[word] = holders, name
    most = sorted(found, key=lambda word: (-found[word][0], word))[:WORDS_MAX]
    return {word: found[word][1] for word in sorted(most)}


def category_of(query: str, categories: Mapping[str, str]) -> str:
    """Return a query's category; `OTHER` if no word of it has one."""
    names = [name for word in analyze(query) if (name := categories.get(word))]
    votes = Counter(names)
    most = max(votes.values(), default=0)
    return next((name for name in reversed(names) if votes[name] == most), OTHER)


def _category(document: Document, fields: Iterable[str]) -> str:
    attributes = raw_attributes(document)
    for field in fields:
        value = attributes.get(field, document.metadata.get(field))
        if isinstance(value, list) and value:
            value = value[0]
        if isinstance(value, str) and (name := plain_words(value)[:NAME_CHARACTERS_MAX].strip()):
            return name
    return ""
