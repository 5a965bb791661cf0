"""Bots: what a client does in a span of event time, and the limits beyond which it is no person.

A bot's events are kept as they are, and its impressions get their outcomes. Each such outcome carries the reason as its
mark (`ImpressionOutcome.bot`), and the view `trusted_outcomes` leaves it out, so that it trains nothing.

*Event time.* Time is cut into spans of `window_ms`, from 1970 on. A verdict falls with the final outcome of its
impression, and regards its client's impressions and actions in the impression's span, and the impression's own actions
until the end of its window. A span is at most `join.window_ms - join.early_ms` long, so each of these events that is in
time has come by then. So the order of arrival of events in time changes no verdict. Events that are not in time may
miss a verdict; a replay of the same log gives the same verdicts all the same.

*Clients.* An impression names its client, or at least its session. Of one that names neither, only its own actions are
regarded. A client that invents a new id for each search escapes the counts: a limit for each address belongs into the
gateway.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from itertools import pairwise
from typing import Annotated

import msgspec

from streams.descriptions import describe
from streams.traffic_events import JUDGING, Impression, UserAction

MANY_IMPRESSIONS = "many_impressions"
MANY_ACTIONS = "many_actions"
EVERYTHING = "everything"
TOO_FAST = "too_fast"
JUDGED = "judged"

BOT_REASONS = {
    MANY_IMPRESSIONS: "the client had more than join.bots.impressions_max impressions in one span of time",
    MANY_ACTIONS: "the client had more than join.bots.actions_max actions in one span of time",
    EVERYTHING: "nearly every document that was shown has an action, of the impression or of the client's span",
    TOO_FAST: "clicks on different documents are closer together than a person's",
    JUDGED: "somebody judged two lists of results in the pages, and nobody searched",
}
"""The reasons why an impression is a bot's."""

SECOND_MS = 1_000


class BotSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The most that a person does. The defaults are guesses on the safe side: look at your own clients first."""

    window_ms: Annotated[
        int,
        msgspec.Meta(ge=1, le=86_400_000),
        describe("Span of event time over which a client's events are counted, at most join.window_ms - early_ms."),
    ] = 3_600_000
    impressions_max: Annotated[
        int,
        msgspec.Meta(ge=0, le=1_000_000_000),
        describe("Most impressions of a person in a span. A client with more is a bot there. 0: no limit."),
    ] = 600
    actions_max: Annotated[
        int,
        msgspec.Meta(ge=0, le=1_000_000_000),
        describe("Most actions of a person in a span. A client with more is a bot there. 0: no limit."),
    ] = 300
    everything_share: Annotated[
        float,
        msgspec.Meta(ge=0, le=1),
        describe("Share of the shown documents with an action from which on it is a bot's. 0 switches this off."),
    ] = 0.9
    everything_min: Annotated[
        int,
        msgspec.Meta(ge=1, le=1_000_000),
        describe("Shown documents from which on that share is regarded. A person may open all of three results."),
    ] = 10
    dwell_ms: Annotated[
        int,
        msgspec.Meta(ge=0, le=60_000),
        describe("Least time of a person between two clicks on different documents. 0 switches this off."),
    ] = 100
    fast_max: Annotated[
        int,
        msgspec.Meta(ge=0, le=1_000),
        describe("Pairs of clicks below dwell_ms that an impression may have before it is a bot's."),
    ] = 1
    clicks: Annotated[
        tuple[str, ...],
        describe("Kinds of action that a hand does one by one. Others, such as a purchase of several, may be at once."),
    ] = ("click",)


class ClientTally(msgspec.Struct, array_like=True):
    """The acts of one client in one span: counts of impressions, actions, shown documents, and those with an action."""

    impressions: int = 0
    actions: int = 0
    shown: int = 0
    touched: int = 0


KeptTally = tuple[int, str, ClientTally]  # Beginning of the span, client, counts.


class Clients:
    """The tallies of all clients. `shown` and `acted` count, also backwards; `reason` judges an impression."""

    def __init__(self, settings: BotSettings, *, window_ms: int, early_ms: int) -> None:
        """window_ms, early_ms: those of the join."""
        self.settings = settings
        self._span_ms = max(1, min(settings.window_ms, window_ms - early_ms))
        self._window_ms = window_ms
        self._spans: dict[int, dict[str, ClientTally]] = {}
        self._beginnings: list[int] = []
        # Actions by impression id, then document and span: a document counts once. Gone with the final outcome.
        self._touches: dict[str, dict[tuple[str, int], int]] = {}

    def shown(self, impression: Impression, by: int = 1) -> None:
        """Count an impression; by: -1 takes it back."""
        if name := client_of(impression):
            tally = self._tally(self._span(impression.at_ms), name)
            tally.impressions += by
            tally.shown += by * len(impression.shown)

    def acted(self, impression: Impression, action: UserAction, by: int = 1) -> None:
        """Count an action that lies in the window of its impression; by: -1 takes it back."""
        if name := client_of(impression):
            span = self._span(action.at_ms)
            tally = self._tally(span, name)
            tally.actions += by
            tally.touched += self._touch(impression, action, span, by)

    def settled(self, impression_id: str) -> None:
        """Forget which documents of a final impression have actions; the counts stay."""
        self._touches.pop(impression_id, None)

    def reason(self, impression: Impression, actions: Sequence[UserAction]) -> str:
        """Return why an impression is a bot's, a key of `BOT_REASONS`, or "".

        actions: those that count for it, in the order of their times.
        """
        if impression.application == JUDGING:
            return JUDGED
        rules = self.settings
        tally = self._spans.get(self._span(impression.at_ms), {}).get(client_of(impression), ClientTally())
        if 0 < rules.impressions_max < tally.impressions:
            return MANY_IMPRESSIONS
        if 0 < rules.actions_max < tally.actions:
            return MANY_ACTIONS
        touched = len({action.document_id for action in actions})
        if self._is_everything(tally.shown, tally.touched) or self._is_everything(len(impression.shown), touched):
            return EVERYTHING
        return TOO_FAST if self._is_too_fast(impression, actions) else ""

    def forget(self, watermark_ms: int) -> None:
        """Drop the spans of which every impression in time is final."""
        while self._beginnings and self._beginnings[0] + self._span_ms + self._window_ms <= watermark_ms:
            self._spans.pop(heappop(self._beginnings), None)

    def kept(self) -> tuple[KeptTally, ...]:
        """Return all tallies, for a snapshot."""
        return tuple(
            (span, name, tally) for span in sorted(self._spans) for name, tally in sorted(self._spans[span].items())
        )

    def restore(self, kept: Sequence[KeptTally], actions: Sequence[tuple[Impression, UserAction]]) -> None:
        """Take tallies from a snapshot. actions: those in the window of an impression that is not final yet."""
        for span, name, tally in kept:
            self._spans.setdefault(span, {})[name] = tally
        self._beginnings = list(self._spans)
        heapify(self._beginnings)
        for impression, action in actions:
            if client_of(impression):
                self._touch(impression, action, self._span(action.at_ms), 1)

    def _touch(self, impression: Impression, action: UserAction, span: int, by: int) -> int:
        """Note an action on a document, and return by how much it changes the number of documents with one."""
        if span != self._span(impression.at_ms) or not _has_shown(impression, action):
            return 0
        touches = self._touches.setdefault(impression.impression_id, {})
        place = (action.document_id, span)
        before = touches.get(place, 0)
        touches[place] = before + by
        return int(before + by > 0) - int(before > 0)

    def _is_everything(self, shown: int, touched: int) -> bool:
        rules = self.settings
        return 0 < rules.everything_share * shown <= touched and shown >= rules.everything_min

    def _is_too_fast(self, impression: Impression, actions: Sequence[UserAction]) -> bool:
        # An action at the time of its impression, to the millisecond, was logged without a time.
        clicks = [each for each in actions if each.kind in self.settings.clicks and each.at_ms != impression.at_ms]
        fast = sum(
            second.at_ms - first.at_ms < self.settings.dwell_ms
            and first.document_id != second.document_id
            # A log in whole seconds tells no shorter time.
            and not (first.at_ms % SECOND_MS == 0 == second.at_ms % SECOND_MS)
            for first, second in pairwise(clicks)
        )
        return fast > self.settings.fast_max

    def _span(self, at_ms: int) -> int:
        return at_ms - at_ms % self._span_ms

    def _tally(self, span: int, name: str) -> ClientTally:
        clients = self._spans.get(span)
        if clients is None:
            clients = self._spans[span] = {}
            heappush(self._beginnings, span)
        return clients.setdefault(name, ClientTally())


def client_of(impression: Impression) -> str:
    """Return the name of an impression's client, or else of its session, in its application; "" if it has none."""
    name = impression.client or impression.session
    return f"{impression.application}\0{name}" if name else ""


def _has_shown(impression: Impression, action: UserAction) -> bool:
    return any(shown.document_id == action.document_id for shown in impression.shown)
