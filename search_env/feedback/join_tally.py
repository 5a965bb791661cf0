"""The counts of a join: of events, decisions, and what was left out, by reason."""

from __future__ import annotations

from collections import Counter

import msgspec

from search_env.feedback.outcomes import JoinCounts, LeftOutAction, LeftOutImpression
from streams.events import Position
from streams.traffic_events import Impression, ImpressionOutcome, UserAction


class JoinTally:
    """Counts by name, as `JoinCounts` has them."""

    def __init__(self, kept: JoinCounts | None = None) -> None:
        """kept: the counts so far; what they say about things held now is not kept."""
        counts = msgspec.structs.asdict(kept or JoinCounts())
        self._impressions_left_out: Counter[str] = Counter(counts.pop("impressions_left_out"))
        self._actions_left_out: Counter[str] = Counter(counts.pop("actions_left_out"))
        self._bots: Counter[str] = Counter(counts.pop("bots"))
        for held_now in ("open", "waiting", "remembered"):
            del counts[held_now]
        self._counts: Counter[str] = Counter(counts)

    def __getitem__(self, name: str) -> int:
        return self._counts[name]

    def add(self, name: str, count: int = 1) -> None:
        """Count something."""
        self._counts[name] += count

    def came(self, event: Impression | UserAction) -> None:
        """Count an event that came."""
        self.add("actions" if isinstance(event, UserAction) else "impressions")

    def final(self, outcome: ImpressionOutcome) -> None:
        """Count a final outcome."""
        self.add("final")
        self.add("counted", len(outcome.actions))
        if outcome.bot:
            self._bots[outcome.bot] += 1

    def left_out(
        self, event: Impression | UserAction, position: Position, reason: str
    ) -> LeftOutImpression | LeftOutAction:
        """Count an event that is left out, and return the decision about it."""
        if isinstance(event, Impression):
            self._impressions_left_out[reason] += 1
            return LeftOutImpression(impression=event, position=position, reason=reason)
        self._actions_left_out[reason] += 1
        return LeftOutAction(action=event, position=position, reason=reason)

    def counts(self, *, open_now: int, waiting: int, remembered: int) -> JoinCounts:
        """Return all counts, with those of things held now."""
        held = JoinCounts(
            open=open_now,
            waiting=waiting,
            remembered=remembered,
            impressions_left_out=dict(sorted(self._impressions_left_out.items())),
            actions_left_out=dict(sorted(self._actions_left_out.items())),
            bots=dict(sorted(self._bots.items())),
        )
        return msgspec.structs.replace(held, **self._counts)
