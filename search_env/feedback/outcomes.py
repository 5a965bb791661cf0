"""The results of the join: outcomes of impressions, events that are in no outcome with the reason, and counts."""

from __future__ import annotations

import msgspec

from search_env.feedback.attribution import AFTER_WINDOW, BEFORE_IMPRESSION, ORPHAN
from streams.events import Position
from streams.traffic_events import Impression, ImpressionOutcome, UserAction

NOT_SHOWN = "not_shown"
TOO_LATE = "too_late"
FORGOTTEN = "forgotten"
AHEAD = "ahead"
WITHOUT_TIME = "without_time"

REASONS = {
    ORPHAN: "no impression with this id came, or only one whose time is far from the action's",
    NOT_SHOWN: "an orphan action: the impression did not show this document",
    BEFORE_IMPRESSION: "the action is earlier than its impression by more than the tolerance",
    AFTER_WINDOW: "the action is later than the window of its impression",
    TOO_LATE: "the action belongs to an impression, but came after the final outcome",
    FORGOTTEN: "the event came so late that nobody can tell whether its impression is final already",
    AHEAD: "the event's time is ahead of its record's time by more than the tolerance, so its clock is wrong",
    WITHOUT_TIME: "the event has no time",
}
"""The reasons why an event is in no outcome."""


class LeftOutAction(msgspec.Struct, frozen=True, kw_only=True):
    """An action that is in no outcome. reason: a key of `REASONS`. position: its record."""

    action: UserAction
    position: Position
    reason: str


class LeftOutImpression(msgspec.Struct, frozen=True, kw_only=True):
    """An impression that gets no outcome. reason: `FORGOTTEN`, `AHEAD` or `WITHOUT_TIME`. position: its record."""

    impression: Impression
    position: Position
    reason: str


Decided = ImpressionOutcome | LeftOutAction | LeftOutImpression
"""A decision that stands for ever."""


class JoinCounts(msgspec.Struct, frozen=True, kw_only=True):
    """The counts of a join. Every record that came is counted once:

    impressions = final + open + impressions_doubled + the sum of impressions_left_out;
    actions = counted + waiting + actions_doubled + the sum of actions_left_out.

    open, waiting, remembered: in memory now: impressions without a final outcome, actions without a decision, and ids
    that recognize copies. counted: actions in final outcomes. left out: by reason. evicted: ids that were remembered
    and are forgotten now; evicted_early: those of them that the limit on memory evicted. final_early: final outcomes
    that the limit on memory brought forward. bots: final outcomes with the mark of a bot, by reason.
    """

    impressions: int = 0
    open: int = 0
    final: int = 0
    impressions_doubled: int = 0
    impressions_left_out: dict[str, int] = {}
    actions: int = 0
    waiting: int = 0
    counted: int = 0
    actions_doubled: int = 0
    actions_left_out: dict[str, int] = {}
    remembered: int = 0
    evicted: int = 0
    evicted_early: int = 0
    final_early: int = 0
    bots: dict[str, int] = {}
