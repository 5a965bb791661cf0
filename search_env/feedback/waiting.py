"""The actions that wait for a decision, by their own id and by their impression's."""

from __future__ import annotations

from collections.abc import Iterator

from search_env.feedback.snapshots import HeldAction
from streams.traffic_events import UserAction


class WaitingActions:
    """Held actions in the order in which they came."""

    def __init__(self) -> None:
        self._held: dict[str, HeldAction] = {}
        self._ids_of: dict[str, dict[str, None]] = {}  # Action ids by impression id.

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[HeldAction]:
        return iter(self._held.values())

    def get(self, action_id: str) -> HeldAction | None:
        """Return an action that waits, or None."""
        return self._held.get(action_id)

    def named(self, action_id: str) -> HeldAction:
        """Return an action that waits. Raises KeyError if it does not."""
        return self._held[action_id]

    def of(self, impression_id: str) -> list[HeldAction]:
        """Return the actions that wait for an impression."""
        return [self._held[name] for name in self._ids_of.get(impression_id, ())]

    def hold(self, held: HeldAction) -> None:
        """Let an action wait."""
        action = held.action
        self._held[action.action_id] = held
        self._ids_of.setdefault(action.impression_id, {})[action.action_id] = None

    def release(self, action: UserAction) -> None:
        """Let an action wait no more."""
        del self._held[action.action_id]
        others = self._ids_of[action.impression_id]
        del others[action.action_id]
        if not others:
            del self._ids_of[action.impression_id]
