"""Sanitized text from outside: no control, zero-width or bidirectional characters, and never longer than allowed.

Catalog text, queries and generated text are untrusted. They end in prompts, terminals and pages. There such characters
hide words from a reader that a model or an index still sees.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from typing import Any

# Cc control, Cf format (zero-width, bidi, soft hyphen, tags), Cs lone surrogates, Co private use, Cn unassigned.
_HIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})
_METADATA_DEPTH_MAX = 8
QUERY_CHARACTERS_MAX = 512  # The limit for a query from any kind of file.


def clean_text(text: str, *, characters_max: int) -> str:
    """Return the text in one line of visible characters, at most `characters_max` of them.

    Line breaks, tabs and every other kind of space become one plain space. Control, format (zero-width and
    bidirectional), private, unassigned and lone surrogate characters are removed. The rest is in Unicode's composed
    form (NFC): "e" with a combining accent and the single letter for both are one word. Idempotent.
    """
    visible = visible_text(text)
    return visible[:characters_max].rstrip() if len(visible) > characters_max else visible


def visible_text(text: str) -> str:
    """Return the text as `clean_text` does, without a limit on its length."""
    if text.isprintable():  # True for nearly every field, and about 50 times faster than looking at each character.
        visible = text
    else:
        visible = "".join(
            " " if character.isspace() else character
            for character in text
            if character.isspace() or unicodedata.category(character) not in _HIDDEN_CATEGORIES
        )
    # Compose after the hidden characters are removed: one of them may have stood between a letter and its accent.
    if not visible.isascii() and not unicodedata.is_normalized("NFC", visible):
        visible = unicodedata.normalize("NFC", visible)
    if "  " in visible or visible[:1] == " " or visible[-1:] == " ":
        visible = " ".join(visible.split())
    return visible


class Cuts:
    """Cleans texts, and counts cut and dropped items; `first` holds the place of the first one."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self.first: dict[tuple[str, str], str] = {}

    def clean(self, text: str, *, characters_max: int, what: str, where: str) -> str:
        """Return the clean text; count a text that had to be cut as a `what`."""
        visible = visible_text(text)
        if len(visible) <= characters_max:
            return visible
        self.add(what, f"cut at {characters_max:,} characters", where)
        return visible[:characters_max].rstrip()

    def add(self, what: str, fate: str, where: str) -> None:
        """Count an item that was changed."""
        self.counts[what, fate] += 1
        self.first.setdefault((what, fate), where)

    def told(self) -> list[str]:
        """Return a line for each kind of change: "2 texts were cut at 50,000 characters (the first: document 'a')"."""
        return [
            f"{count:,} {what}{'s were' if count > 1 else ' was'} {fate} (the first: {self.first[what, fate]})"
            for (what, fate), count in self.counts.items()
        ]


def clean_metadata(
    value: Any, *, characters_max: int, depth: int = 0, cuts: Cuts | None = None, where: str = ""
) -> Any:
    """Return JSON data with every string (keys too) cleaned; data nested deeper than eight levels is dropped (None).

    cuts: counts the cut and dropped items. where: the place, for its message.
    """
    cuts = cuts or Cuts()
    if isinstance(value, str):
        return cuts.clean(value, characters_max=characters_max, what="metadata text", where=where)
    if not isinstance(value, dict | list):
        return value
    if depth >= _METADATA_DEPTH_MAX:
        cuts.add("metadata value", f"left out, nested deeper than {_METADATA_DEPTH_MAX} levels", where)
        return None

    def below(item: Any) -> Any:
        return clean_metadata(item, characters_max=characters_max, depth=depth + 1, cuts=cuts, where=where)

    if isinstance(value, list):
        return [below(item) for item in value]
    return {
        cuts.clean(str(key), characters_max=characters_max, what="metadata key", where=where): below(item)
        for key, item in value.items()
    }
