"""Descriptions of settings: each stands in the type of its setting, beside the range.

    groups: Annotated[int, msgspec.Meta(ge=1), describe("Groups in a batch, which is one update.")] = 16

`infra/SETTINGS.md` is made from them, and errors about a wrong value quote them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec

COMMON = "common"


def describe(text: str, *, common: bool = False) -> msgspec.Meta:
    """Return the mark that describes a setting in its type.

    text: what the setting does, its special values, and what a larger or smaller value does. Short sentences of plain
    English. The name of the setting has the unit. common: True for the few settings that most users touch.
    """
    return msgspec.Meta(description=text, extra={COMMON: True} if common else None)


def description_of(hint: Any) -> str:
    """Return the description in a setting's type; "" if it has none."""
    return next((meta.description for meta in marks(hint) if meta.description), "")


def is_common(hint: Any) -> bool:
    """Return whether a setting of this type is one that most users touch."""
    return any((meta.extra or {}).get(COMMON) for meta in marks(hint))


def choices_of(hint: Any) -> list[str]:
    """Return the words among which a setting of this type chooses, "" in quotes; [] if it takes other values, too."""
    kind = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    return [str(choice) or '""' for choice in get_args(kind)] if get_origin(kind) is Literal else []


def marks(hint: Any) -> Iterator[msgspec.Meta]:
    """Yield msgspec's marks in a setting's type: its limits, its description, and whether it is secret."""
    if get_origin(hint) is Annotated:
        yield from (meta for meta in get_args(hint)[1:] if isinstance(meta, msgspec.Meta))
