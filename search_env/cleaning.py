"""Text from outside made harmless: no control, zero-width or bidirectional characters, and never longer than allowed.

Catalogue text, queries and generated text are untrusted. They end in prompts, terminals and pages, where such
characters hide words from a reader that a model or an index still sees.
"""

from __future__ import annotations

import unicodedata
from typing import Any

# Cc control, Cf format (zero-width, bidi, soft hyphen, tags), Cs lone surrogates, Co private use, Cn unassigned.
_HIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})
_METADATA_DEPTH_MAX = 8


def clean_text(text: str, *, characters_max: int) -> str:
    """Return the text in one line of visible characters, at most `characters_max` of them.

    Line breaks, tabs and every other kind of space become one plain space; control, format (zero-width and
    bidirectional), private, unassigned and lone surrogate characters vanish. Idempotent.
    """
    if text.isprintable():  # True for nearly every field, and about 50 times faster than looking at each character.
        visible = text
    else:
        visible = "".join(
            " " if character.isspace() else character
            for character in text
            if character.isspace() or unicodedata.category(character) not in _HIDDEN_CATEGORIES
        )
    if "  " in visible or visible[:1] == " " or visible[-1:] == " ":
        visible = " ".join(visible.split())
    return visible[:characters_max].rstrip() if len(visible) > characters_max else visible


def clean_metadata(value: Any, *, characters_max: int, depth: int = 0) -> Any:
    """Return JSON data with every string (keys too) cleaned; what nests deeper than eight levels is dropped (None)."""
    if isinstance(value, str):
        return clean_text(value, characters_max=characters_max)
    if isinstance(value, dict | list) and depth >= _METADATA_DEPTH_MAX:
        return None
    if isinstance(value, dict):
        return {
            clean_text(str(key), characters_max=characters_max): clean_metadata(
                item, characters_max=characters_max, depth=depth + 1
            )
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [clean_metadata(item, characters_max=characters_max, depth=depth + 1) for item in value]
    return value
