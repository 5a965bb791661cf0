"""The events of people's searches: what they saw, what they did, and both joined. `events` says how events are made."""

from __future__ import annotations

import msgspec

JUDGING = "searchloop-judging"
"""Application of the impressions that the pages log with a judgment: nobody searched, so they teach nothing."""


class Shown(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One result that a person saw. rank starts at 1, whatever the first rank in the traffic's own log is."""

    document_id: str
    rank: int


class Action(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One action of a person on a result: "click", "add_to_cart" …

    rank: None if the log does not give it. at_ms: 0 if the log does not give it. A document that is not among the shown
    ones is an orphan: its impression was lost, so it does not count in a click rate.
    """

    kind: str
    document_id: str
    rank: int | None = None
    at_ms: int = 0


class LoggedChoice(msgspec.Struct, frozen=True, kw_only=True):
    """The choice behind a logged search, as it was logged: `policy`, `action_propensity` and `offered` of `Impression`.

    Nothing is checked here. Off-policy evaluation leaves out what is no probability, and counts it.
    """

    policy: str = ""
    action_propensity: float | None = None
    offered: dict[str, float] = {}


class Feedback(msgspec.Struct, frozen=True, kw_only=True, tag="feedback/1", tag_field="event"):
    """One search by a person: the results that were shown and the actions on them. One record is one whole search.

    feedback_id: a function of the traffic, so that the first record of one search in the log counts. application,
    client, session: as the traffic names them, "" if it does not. choice: absent if the traffic logged none.
    """

    feedback_id: str
    query_id: str
    query: str
    application: str
    shown: tuple[Shown, ...] = ()
    actions: tuple[Action, ...] = ()
    client: str = ""
    session: str = ""
    at_ms: int = 0
    made_at_ms: int = 0
    choice: LoggedChoice | msgspec.UnsetType = msgspec.UNSET


class Impression(msgspec.Struct, frozen=True, kw_only=True, gc=False, tag="impression/1", tag_field="event"):
    """The results that one search showed to one person, all in one event. (UBI logs an event for each document.)

    impression_id: unique in the log; an event with the same id is a copy. application, client, session: as the traffic
    names them, "" if it does not. at_ms: the time of the search; 0 if the traffic does not give it.
    policy: the policy version whose words helped the search, for example "a1b2-000040"; "" for the raw results.
    action_propensity: the probability with which that choice was made; None if it was not recorded.
    offered: the probability of every choice that the query had, by policy; "" names the raw results.
    index: the versioned name of the index that was searched; "" if the traffic does not give it.
    teams: of an interleaved list, the policy whose ranking chose each shown result; absent for any other list. An
    interleaved impression has no propensity, because no single policy made it.
    routes: of each version that had an answer, the part of the queries that this one belongs to, and what the version
    may show there, as "PART: ACTION"; absent if no version has routes.
    """

    impression_id: str
    query_id: str
    query: str
    application: str = ""
    client: str = ""
    session: str = ""
    shown: tuple[Shown, ...] = ()
    at_ms: int
    policy: str = ""
    action_propensity: float | None = None
    offered: dict[str, float] = {}
    index: str = ""
    made_at_ms: int = 0
    teams: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    routes: dict[str, str] | msgspec.UnsetType = msgspec.UNSET


class UserAction(msgspec.Struct, frozen=True, kw_only=True, gc=False, tag="user-action/1", tag_field="event"):
    """One action of a person on a result of an impression: "click", "add_to_cart" …

    action_id: unique in the log; an event with the same id is a copy. at_ms: the time of the action, often by the
    clock of a browser; 0 if the traffic does not give it.
    """

    action_id: str
    impression_id: str
    kind: str
    document_id: str
    at_ms: int
    made_at_ms: int = 0


class ImpressionOutcome(msgspec.Struct, frozen=True, kw_only=True, tag="impression-outcome/1", tag_field="event"):
    """An impression and the actions that count for it, in the order of their times, then ids.

    final: the outcome never changes again. Each impression has exactly one final outcome. bot: why the impression is a
    bot's, so that it trains nothing; absent for a person's. A provisional outcome has the mark of its time.
    """

    impression: Impression
    actions: tuple[UserAction, ...]
    final: bool
    made_at_ms: int = 0
    bot: str | msgspec.UnsetType = msgspec.UNSET
