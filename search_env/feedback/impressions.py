"""The two events that are joined: what a search showed, and what a person then did."""

from __future__ import annotations

import msgspec

from streams.events import Shown


class Impression(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The results that one search showed to one person, all in one event. (UBI logs an event for each document.)

    impression_id: unique in the log; an event with the same id is a copy. application, client: "" if unknown.
    at_ms: the time of the search. policy: the policy version that took part, for example "a1b2-40"; "" if none did.
    action_propensity: the probability with which that policy chose what it did; None if it was not recorded.
    """

    impression_id: str
    query_id: str
    query: str
    application: str = ""
    client: str = ""
    shown: tuple[Shown, ...] = ()
    at_ms: int
    policy: str = ""
    action_propensity: float | None = None


class UserAction(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One action of a person on a result of an impression: "click", "add_to_cart" …

    action_id: unique in the log; an event with the same id is a copy. at_ms: the time of the action, often by the
    clock of a browser.
    """

    action_id: str
    impression_id: str
    kind: str
    document_id: str
    at_ms: int
