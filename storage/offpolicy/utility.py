"""The worth of an impression, from the rows of its actions. What an action is worth: `streams.utility`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from streams.utility import UtilitySettings, best_actions


def utility_of(actions: Sequence[Mapping[str, Any]], settings: UtilitySettings) -> float:
    """Return what an impression's actions are worth: each document's best action, summed, at most `most`."""
    best = best_actions(((action["kind"], action["document_id"]) for action in actions or ()), settings)
    return min(sum(best.values()), settings.most)
