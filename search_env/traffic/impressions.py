"""A search that another system logged, as the impression and the actions that live traffic has."""

from __future__ import annotations

import msgspec

from streams.traffic_events import Feedback, Impression, LoggedChoice, UserAction


def as_live(search: Feedback, *, logged_ms: int) -> tuple[Impression, list[UserAction]]:
    """Return a search's impression and its actions; their ids are functions of the search's.

    logged_ms: the time of its record, for a search or an action whose own time is not known.
    """
    at_ms = search.at_ms or logged_ms
    choice = LoggedChoice() if search.choice is msgspec.UNSET else search.choice
    impression = Impression(
        impression_id=search.feedback_id,
        query_id=search.query_id,
        query=search.query,
        application=search.application,
        client=search.client,
        session=search.session,
        shown=search.shown,
        at_ms=at_ms,
        policy=choice.policy,
        action_propensity=choice.action_propensity,
        offered=choice.offered,
    )
    actions = [
        UserAction(
            action_id=f"{search.feedback_id}/{number}",
            impression_id=search.feedback_id,
            kind=action.kind,
            document_id=action.document_id,
            at_ms=action.at_ms or at_ms,
        )
        for number, action in enumerate(search.actions)
    ]
    return impression, actions
