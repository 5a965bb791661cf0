"""What a selector wrote, as numbers: the one reading of pointers that expansions and summaries share."""

from __future__ import annotations

import re

_POINTERS = re.compile(r"(?:<v[0-9]{1,3}>)*")
_POINTER = re.compile(r"<v([0-9]{1,3})>")


def read_pointers(text: str) -> list[int] | None:
    """Return the numbers that `<v3><v1>` points to, in order, none for an empty text; None if it is anything else."""
    return [int(number) for number in _POINTER.findall(text)] if _POINTERS.fullmatch(text) else None
