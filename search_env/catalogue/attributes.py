"""A catalogue's structured attributes, and the phrases that shoppers use for them.

An attribute is one (key, value) of `metadata.attributes`; `metadata.brand` (or an attribute `brand`) is kept apart. A
value becomes a phrase: "Pigment-based ink", or "touchscreen" for a true boolean. A number means nothing without its
unit or its name, so it becomes "4 gb" or "processor threads 2".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeGuard

from search_env.catalogue.corpora import Document, Query
from streams.inputs.json_rows import json_kind

PHRASE_CHARACTERS_MAX = 60
PHRASE_WORDS_MAX = 7
VALUES_PER_DOCUMENT_MAX = 200

# Words in keys of logistics or bookkeeping: no shopper asks for a pallet's layer.
LOGISTIC_WORDS = frozenset({
    "package", "packaging", "packed", "pallet", "pallets", "master", "outer", "shipping", "gross", "harmonized", "hs",
    "code", "codes", "oem", "ean", "gtin", "upc", "sku", "asin", "url", "link", "date", "change", "status", "launch",
    "eccn", "ccats", "warranty", "certification", "certificates", "compliance", "conflict", "stepping", "tray", "layer",
    "tjunction", "tcase", "bios", "segment", "embedded", "marketing", "id", "order", "carton", "cases", "box", "nato",
    # Measures that nobody types as an exact number.
    "width", "height", "depth", "weight", "dimensions", "dimension", "thickness", "temperature", "humidity", "altitude",
    "shock", "vibration", "archival", "years",
})  # fmt: skip

# The end of a key determines the unit. Only units common to many catalogues; other numbers are said with their key.
UNITS = {
    "internal_memory": "gb", "total_storage_capacity": "gb",
    "hdd_capacity": "gb", "ssd_capacity": "gb", "display_diagonal": "inch", "processor_frequency": "ghz",
    "processor_boost_frequency": "ghz", "processor_cores": "cores", "processor_threads": "threads",
    "processor_cache": "mb cache", "cable_length": "m", "page_yield": "pages", "power_supply": "w",
    "output_power": "w", "hard_drive_speed": "rpm", "rotation_speed": "rpm", "print_speed": "ppm",
    "quantity_per_pack": "pack", "brightness": "lumens",
}  # fmt: skip

_TRUE = frozenset({"y", "yes", "true"})
_FALSE = frozenset({"n", "no", "false", "none", "n/a", "-", "not supported", "not applicable"})
_PARENTHESIS = re.compile(r"__[a-z0-9]{1,2}_[a-z0-9]{1,2}$")
_LETTERS = re.compile(r"[^\W\d_]{2}")


class Attribute(NamedTuple):
    """One structured value: `key` and `value` name it exactly; `phrase` and `name` are a shopper's words for it."""

    key: str
    value: str
    phrase: str
    name: str


class Unread(NamedTuple):
    """Attributes in an unknown form: the number of documents, the first of them, and the form found there."""

    documents: int
    example: str
    found: str


def raw_attributes(document: Document) -> Mapping[str, Any]:
    """Return `metadata.attributes` unchanged; empty if it is missing or not an object."""
    attributes = document.metadata.get("attributes")
    return attributes if isinstance(attributes, dict) else {}


def document_attributes(document: Document) -> list[Attribute]:
    """Return a document's attributes as phrases, in their own order; empty if the catalogue has none."""
    found: list[Attribute] = []
    for key, value in raw_attributes(document).items():
        for item in _several(value):
            if isinstance(item, str | bool | int | float) and (
                attribute := _attribute(key, item, isinstance(item, bool))
            ):
                found.append(attribute)
        if len(found) >= VALUES_PER_DOCUMENT_MAX:
            break
    return found


def _several(value: Any) -> Sequence[Any]:
    """Return the values under one key: the items of a list, or the single value."""
    return value if isinstance(value, list) else (value,)


@lru_cache(maxsize=200_000)
def _attribute(key: str, value: str | bool | float, boolean: bool) -> Attribute | None:
    """Return a value with its phrase; `boolean` separates True from 1 in the cache."""
    phrase = value_phrase(key, value)
    return Attribute(key, _exact(value), phrase, key_name(key)) if phrase else None


def document_brand(document: Document) -> str:
    """Return the brand, or "" if there is none."""
    brand = document.metadata.get("brand")
    if not isinstance(brand, str):
        brand = raw_attributes(document).get("brand")
    return brand if isinstance(brand, str) else ""


def unread_attributes(documents: Iterable[Document]) -> Unread | None:
    """Return the attributes whose form `document_attributes` cannot read; None if it reads them all.

    null means that there is no attribute, so it is not an unknown form.
    """
    found = [(document.id, what) for document in documents if (what := _unread(document.metadata.get("attributes")))]
    return Unread(len(found), *found[0]) if found else None


def _unread(attributes: Any) -> str:
    """Return a description of a value that is not an object of values; "" if there is none."""
    if attributes is None:
        return ""
    if not isinstance(attributes, dict):
        return f"{json_kind(attributes)} for an object"
    for key, value in attributes.items():
        for item in _several(value):
            if isinstance(item, dict | list):
                return f"{json_kind(item)} as a value of {key!r}"
    return ""


def query_attributes(query: Query) -> list[tuple[str, str]]:
    """Return the (key, value) pairs from which a query was made, as intents store them in `metadata.attributes`.

    Empty for a query with any other metadata, since a file of queries may contain anything there.
    """
    match query.metadata.get("attributes"):
        case [*pairs] if all(_is_texts(pair) and len(pair) == 2 for pair in pairs):
            return [(key, value) for key, value in pairs]
    return []


def query_keys(query: Query) -> list[str]:
    """Return the attribute keys that a query asks for: `metadata.keys` of judged lists, or its attributes' keys."""
    keys = query.metadata.get("keys")
    return list(keys) if _is_texts(keys) else [key for key, _ in query_attributes(query)]


def _is_texts(value: Any) -> TypeGuard[Sequence[str]]:
    return isinstance(value, list | tuple) and all(isinstance(each, str) for each in value)


def has_attributes(documents: Iterable[Document]) -> bool:
    """Return whether any document has attributes that have a phrase."""
    return any(document_attributes(document) for document in documents)


@lru_cache(maxsize=50_000)
def key_name(key: str) -> str:
    """Return an attribute's key as words: `display_diagonal` → "display diagonal"."""
    return " ".join(re.sub(r"[\W_]+", " ", _PARENTHESIS.sub("", key)).lower().split())


def value_phrase(key: str, value: Any) -> str:
    """Return a shopper's phrase for a value; "" if it has none (false, too long, or without a word and a name)."""
    name = key_name(key)
    if not name:
        return ""
    if isinstance(value, bool):
        return name if value else ""
    if isinstance(value, int | float):
        return _number_phrase(key, name, _exact(value))
    if not isinstance(value, str):
        return ""
    text = value.strip()
    if text.lower() in _TRUE:
        return name
    if text.lower() in _FALSE or len(text) > PHRASE_CHARACTERS_MAX or len(text.split()) > PHRASE_WORDS_MAX:
        return ""
    if _LETTERS.search(text):
        return text
    return _number_phrase(key, name, text) if text else ""


@lru_cache(maxsize=50_000)
def is_logistic(key: str) -> bool:
    """Return whether a key is about packing, codes or dates rather than the product."""
    return any(word in LOGISTIC_WORDS for word in key_name(key).split())


def _number_phrase(key: str, name: str, number: str) -> str:
    unit = _unit(key)
    return f"{number} {unit}" if unit else f"{name} {number}"


@lru_cache(maxsize=50_000)
def _unit(key: str) -> str:
    return next((unit for end, unit in UNITS.items() if key.endswith(end)), "")


def _exact(value: Any) -> str:
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return str(value)
