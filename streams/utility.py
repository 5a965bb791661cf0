"""The worth of people's actions on results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated

import msgspec

from streams.descriptions import describe


class UtilitySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of what people's actions are worth."""

    worth: Annotated[
        dict[str, float],
        describe("Worth of an action on one document, by kind. The kind that is worth most counts; others count 0."),
    ] = msgspec.field(default_factory=lambda: {"click": 1.0, "add_to_cart": 3.0, "purchase": 10.0})
    most: Annotated[
        float, msgspec.Meta(gt=0), describe("Largest worth of one impression. It bounds what one person can do.")
    ] = 10.0


def best_actions(actions: Iterable[tuple[str, str]], settings: UtilitySettings) -> Mapping[str, float]:
    """Return the worth of each document's best action, by document. actions: (kind, document id) pairs."""
    best: dict[str, float] = {}
    for kind, document in actions:
        best[document] = max(best.get(document, 0.0), settings.worth.get(kind, 0.0))
    return best
