"""The difference between provisional outcomes, as somebody used them, and the final ones: what late events altered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import msgspec

from search_env.feedback.snapshots import FeedbackError
from streams.traffic_events import Impression, ImpressionOutcome, UserAction

ACTIONS = "actions."


class OutcomeChange(msgspec.Struct, frozen=True, kw_only=True):
    """One field of one outcome that differs.

    field: a field of `Impression`, "bot", or "actions." and a kind of action; then the values are its
    actions.
    """

    impression_id: str
    field: str
    before: Any
    after: Any


class OutcomeChanges(msgspec.Struct, frozen=True, kw_only=True):
    """All differences, and counts: provisional outcomes = altered + unaltered + not_final.

    changes: by impression id, then field. by_field: outcomes in which a field differs. altered: outcomes with a
    difference. not_final: provisional outcomes without a final one; they are not compared. new: final outcomes without
    a provisional one, because their impression came later.
    """

    changes: tuple[OutcomeChange, ...]
    by_field: dict[str, int]
    altered: int
    unaltered: int
    not_final: int
    new: int


def what_changed(provisional: Iterable[ImpressionOutcome], final: Iterable[ImpressionOutcome]) -> OutcomeChanges:
    """Return which provisional outcomes late events altered until they became final, by field.

    provisional: the outcomes that were used at some time, one for each impression. One that was final already counts as
    unaltered. Raises FeedbackError if an impression occurs twice on a side, or if an outcome in `final` is not final.
    """
    before, after = _by_id(provisional, "provisional"), _by_id(final, "final")
    for outcome in after.values():
        if not outcome.final:
            raise FeedbackError(
                f"expected final outcomes, got a provisional one of impression {outcome.impression.impression_id!r}. "
                "Wait until the watermark has passed its window"
            )
    compared = sorted(before.keys() & after.keys())
    differing = {name: _differences(before[name], after[name]) for name in compared}
    changes = tuple(change for name in compared for change in differing[name])
    altered = sum(bool(found) for found in differing.values())
    return OutcomeChanges(
        changes=changes,
        by_field=dict(sorted(Counter(change.field for change in changes).items())),
        altered=altered,
        unaltered=len(compared) - altered,
        not_final=len(before.keys() - after.keys()),
        new=len(after.keys() - before.keys()),
    )


def _by_id(outcomes: Iterable[ImpressionOutcome], side: str) -> dict[str, ImpressionOutcome]:
    found: dict[str, ImpressionOutcome] = {}
    for outcome in outcomes:
        name = outcome.impression.impression_id
        if name in found:
            raise FeedbackError(
                f"expected one {side} outcome for each impression, got two of {name!r}. Pass those that were used at "
                "one time"
            )
        found[name] = outcome
    return found


def _differences(before: ImpressionOutcome, after: ImpressionOutcome) -> list[OutcomeChange]:
    name, left, right = after.impression.impression_id, _fields(before), _fields(after)
    return [
        OutcomeChange(impression_id=name, field=field, before=left.get(field, ()), after=right.get(field, ()))
        for field in sorted(left.keys() | right.keys())
        if left.get(field, ()) != right.get(field, ())
    ]


def _fields(outcome: ImpressionOutcome) -> dict[str, Any]:
    """Return the fields of the impression, and the actions by kind; a kind without actions is absent."""
    kinds: dict[str, list[UserAction]] = {}
    for action in outcome.actions:
        kinds.setdefault(ACTIONS + action.kind, []).append(action)
    fields: dict[str, Any] = {name: getattr(outcome.impression, name) for name in Impression.__struct_fields__}
    fields["bot"] = outcome.bot or ""
    return fields | {kind: tuple(actions) for kind, actions in kinds.items()}
