"""A guess at which fields of somebody's index hold a document's title, its texts and its attributes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from search_env.catalogue.attributes import is_logistic
from search_env.engine.ownership import IndexingError

TITLES = ("title", "name", "product_title", "product_name", "label", "headline", "subject")
TEXTS_MAX = 5
ATTRIBUTES_MAX = 100
_SEARCHED = frozenset({"text", "match_only_text", "search_as_you_type", "semantic_text"})
_ATTRIBUTE = frozenset({"keyword", "constant_keyword", "flattened"})


class Fields(NamedTuple):
    """The fields of a document's parts; see `Attachment`."""

    title: str
    texts: tuple[str, ...]
    attributes: tuple[str, ...]


def guess_fields(types: Mapping[str, str], *, id_field: str) -> Fields:
    """Return title, texts and attributes by the types and names of the fields.

    The title is the text field with the most usual name, or the only one. Raises IndexingError if there is no text
    field, or none that looks like a title.
    """
    own = {name: kind for name, kind in types.items() if not _is_view(name, types)}
    texts = [name for name, kind in own.items() if kind in _SEARCHED]
    if not texts:
        known = ", ".join(sorted(f"{name} ({kind})" for name, kind in types.items())[:20]) or "none"
        raise IndexingError(f"expected a text field, got none (fields: {known}). Name the fields: --title, --text")
    named = sorted((TITLES.index(_last(name)), name) for name in texts if _last(name) in TITLES)
    if not named and len(texts) > 1:
        raise IndexingError(
            f"expected a text field named {', '.join(TITLES[:4])} or alike, got {', '.join(sorted(texts)[:20])}. "
            "Name the title's field: --title FIELD"
        )
    title = named[0][1] if named else texts[0]
    attributes = [
        name for name, kind in own.items() if kind in _ATTRIBUTE and name != id_field and not is_logistic(_last(name))
    ]
    return Fields(
        title=title,
        texts=tuple(sorted(name for name in texts if name != title)[:TEXTS_MAX]),
        attributes=tuple(sorted(attributes)[:ATTRIBUTES_MAX]),
    )


def _is_view(name: str, types: Mapping[str, str]) -> bool:
    """Return whether a field is a second view of another one ("title.raw"), which no document holds by this name."""
    parent = name.rpartition(".")[0]
    return bool(parent) and types.get(parent, "object") not in ("object", "nested", "unmapped")


def _last(name: str) -> str:
    return name.rpartition(".")[2].lower()
