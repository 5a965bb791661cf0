"""What late events altered between provisional and final outcomes."""

from __future__ import annotations

import msgspec
import pytest

from search_env.feedback.attribution import JoinSettings
from search_env.feedback.changes import OutcomeChange, OutcomeChanges, what_changed
from search_env.feedback.joining import Joiner
from search_env.feedback.snapshots import FeedbackError
from streams.events import Position
from streams.traffic_events import Impression, ImpressionOutcome, Shown, UserAction

LAMP = Impression(impression_id="i", query_id="q", query="lamp", shown=(Shown(document_id="a", rank=1),), at_ms=100)


def click(name: str, *, kind: str = "click", impression: str = "i") -> UserAction:
    return UserAction(action_id=name, impression_id=impression, kind=kind, document_id="a", at_ms=105)


def outcome(*actions: UserAction, impression: Impression = LAMP, final: bool = False) -> ImpressionOutcome:
    return ImpressionOutcome(impression=impression, actions=actions, final=final)


def test_nothing_changed_if_no_late_event_came() -> None:
    before, after = outcome(click("1")), outcome(click("1"), final=True)
    assert what_changed([before], [after]) == OutcomeChanges(
        changes=(), by_field={}, altered=0, unaltered=1, not_final=0, new=0
    )


def test_a_late_action_alters_the_field_of_its_kind_alone() -> None:
    bought = click("2", kind="purchase")
    found = what_changed([outcome(click("1"))], [outcome(click("1"), bought, final=True)])
    assert found.changes == (OutcomeChange(impression_id="i", field="actions.purchase", before=(), after=(bought,)),)
    assert found.by_field == {"actions.purchase": 1}
    assert (found.altered, found.unaltered) == (1, 0)


def test_an_earlier_copy_of_an_impression_alters_its_fields_and_the_actions_that_it_no_longer_shows() -> None:
    chair = msgspec.structs.replace(LAMP, query="chair", shown=(Shown(document_id="b", rank=1),))
    found = what_changed([outcome(click("1"))], [outcome(impression=chair, final=True)])
    assert [(change.field, change.before, change.after) for change in found.changes] == [
        ("actions.click", (click("1"),), ()),
        ("query", "lamp", "chair"),
        ("shown", LAMP.shown, chair.shown),
    ]
    assert found.altered == 1


@pytest.mark.parametrize("field", [name for name in Impression.__struct_fields__ if name != "impression_id"])
def test_every_field_of_an_impression_is_compared(field: str) -> None:
    other = msgspec.structs.replace(LAMP, **{field: None})
    if getattr(LAMP, field) is None:
        other = msgspec.structs.replace(LAMP, **{field: 0.5})
    assert what_changed([outcome()], [outcome(impression=other, final=True)]).by_field == {field: 1}


def test_outcomes_on_one_side_alone_are_counted_and_not_compared() -> None:
    others = [msgspec.structs.replace(LAMP, impression_id=name) for name in ("open", "late-1", "late-2")]
    final = [outcome(impression=each, final=True) for each in (*others[1:], LAMP)]
    found = what_changed([outcome(), outcome(impression=others[0])], final)
    assert (found.altered, found.unaltered, found.not_final, found.new) == (0, 1, 1, 2)


def test_two_outcomes_of_one_impression_and_final_ones_that_are_not_are_refused() -> None:
    with pytest.raises(FeedbackError, match="one provisional outcome for each impression, got two of 'i'"):
        what_changed([outcome(), outcome(click("1"))], [])
    with pytest.raises(FeedbackError, match="expected final outcomes, got a provisional one of impression 'i'"):
        what_changed([], [outcome()])


def test_the_changes_of_a_join_are_those_that_came_after_the_provisional_outcomes() -> None:
    joiner = Joiner(JoinSettings(window_ms=10, lateness_ms=8, early_ms=2, memory_ms=20))
    for offset, event in enumerate([LAMP, click("1"), msgspec.structs.replace(LAMP, impression_id="other")]):
        assert joiner.add(event, Position(topic="t", partition=0, offset=offset)) == []
    used = joiner.provisional()
    assert joiner.add(click("2"), Position(topic="t", partition=0, offset=3)) == []
    final = [each for each in joiner.finish() if isinstance(each, ImpressionOutcome)]
    found = what_changed(used, final)
    assert found.changes == (
        OutcomeChange(impression_id="i", field="actions.click", before=(click("1"),), after=(click("1"), click("2"))),
    )
    assert (found.altered, found.unaltered) == (1, 1)
