"""Pointers, the text of a selector's answer: `<v3><v1>` names the third and the first value that its prompt showed.

Pointers travel inside completions: the policy package writes them, and the environment package reads them.
"""

from __future__ import annotations

import re

_POINTERS = re.compile(r"(?:<v[0-9]{1,3}>)*")
_POINTER = re.compile(r"<v([0-9]{1,3})>")


def pointer(number: int) -> str:
    """Return the token that points to the value with this number, counted from 1."""
    return f"<v{number}>"


def read_pointers(text: str) -> list[int] | None:
    """Return the numbers that `<v3><v1>` points to, in order, none for an empty text; None for any other text."""
    return [int(number) for number in _POINTER.findall(text)] if is_selection(text) else None


def is_selection(text: str) -> bool:
    """Return whether a text consists only of pointers; an empty text is an answer too."""
    return _POINTERS.fullmatch(text) is not None
