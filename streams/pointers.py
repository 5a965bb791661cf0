"""Pointers, the text of a selector's answer: `<v3><v1>` names the third and the first value that its prompt showed.

They travel inside completions: the policy's room writes them, the environment's reads them.
"""

from __future__ import annotations

import re

_POINTERS = re.compile(r"(?:<v[0-9]{1,3}>)*")
_POINTER = re.compile(r"<v([0-9]{1,3})>")


def pointer(number: int) -> str:
    """Return the token that points to the value of this number, counted from 1."""
    return f"<v{number}>"


def read_pointers(text: str) -> list[int] | None:
    """Return the numbers that `<v3><v1>` points to, in order, none for an empty text; None if it is anything else."""
    return [int(number) for number in _POINTER.findall(text)] if is_selection(text) else None


def is_selection(text: str) -> bool:
    """Say whether a text is pointers alone; none at all are an answer too."""
    return _POINTERS.fullmatch(text) is not None
