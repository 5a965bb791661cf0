"""The worth of people's actions on results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

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


def utility_of(actions: Sequence[Mapping[str, Any]], settings: UtilitySettings) -> float:
    """Return what an impression's actions are worth: each document's best action, summed, at most `most`."""
    best: dict[str, float] = {}
    for action in actions or ():
        worth = settings.worth.get(action["kind"], 0.0)
        best[action["document_id"]] = max(best.get(action["document_id"], 0.0), worth)
    return min(sum(best.values()), settings.most)
