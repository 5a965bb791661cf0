"""The rules about times: which action belongs to which impression, and when that is decided.

Every rule is a function of event times alone, so the order of arrival cannot change it. With `delay` = the time of the
action minus the time of the impression:

| delay | the action | decided when the watermark reaches |
|---|---|---|
| below -window | is an orphan: its impression cannot be this one | action + window + 1 |
| from -window, below -early | is refused, `before_impression` | impression + window |
| from -early, below window | counts, if its document was shown; else it is `not_shown` | impression + window |
| from window, below window + memory | is `after_window` | action + 1 |
| from window + memory | is an orphan: its impression is forgotten | action + window + 1 |

An action without an impression is an orphan, too. An event is *in time* if its time is not below the watermark when it
comes. Every decision above falls when the watermark has passed each event that takes part. So no event that is in time
comes too late for it.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from search_env.feedback.bots import BotSettings
from streams.descriptions import describe
from streams.errors import SettingsError

BEFORE_IMPRESSION = "before_impression"
IN_WINDOW = "in_window"
AFTER_WINDOW = "after_window"
ORPHAN = "orphan"

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS
LENGTH_MS_MAX = 366 * DAY_MS


class JoinSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The lengths of the join, all in event time, and its limit on memory."""

    window_ms: Annotated[
        int,
        msgspec.Meta(ge=1, le=LENGTH_MS_MAX),
        describe("Time after an impression in which an action counts for it. A longer window makes outcomes later."),
    ] = DAY_MS
    lateness_ms: Annotated[
        int,
        msgspec.Meta(ge=0, le=LENGTH_MS_MAX),
        describe("Distance of the watermark behind the newest event. Events that are later may miss their outcome."),
    ] = DAY_MS
    early_ms: Annotated[
        int,
        msgspec.Meta(ge=0, le=LENGTH_MS_MAX),
        describe("Time by which an action may precede its impression, because two clocks differ. At most the window."),
    ] = MINUTE_MS
    memory_ms: Annotated[
        int,
        msgspec.Meta(ge=1, le=LENGTH_MS_MAX),
        describe("Time for which ids are remembered after a final outcome, to recognize copies. At least the window."),
    ] = 7 * DAY_MS
    ahead_ms: Annotated[
        int,
        msgspec.Meta(ge=0, le=LENGTH_MS_MAX),
        describe("Time by which an event may be ahead of its record in the log. One wrong clock then closes nothing."),
    ] = HOUR_MS
    held_max: Annotated[
        int,
        msgspec.Meta(ge=1, le=100_000_000),
        describe("Largest number of impressions, actions and ids in memory. Beyond it the oldest go early."),
    ] = 2_000_000
    settle_seconds: Annotated[
        float,
        msgspec.Meta(ge=0, le=600),
        describe(
            "Least time between two writes of the join's state. Decisions wait for it. A large state waits longer."
        ),
    ] = 2.0
    provisional_seconds: Annotated[
        float,
        msgspec.Meta(ge=0, le=86_400),
        describe("Time between two provisional outcomes of one impression. A shorter time makes more records."),
    ] = 60.0
    bots: BotSettings = BotSettings()

    def __post_init__(self) -> None:
        """Raise SettingsError if the lengths do not fit each other."""
        for name in ("window_ms", "memory_ms", "held_max"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("lateness_ms", "early_ms", "ahead_ms"):
            if getattr(self, name) < 0:
                raise SettingsError(f"{name}: expected at least 0, got {getattr(self, name)}")
        if self.early_ms > self.window_ms:
            raise SettingsError(f"early_ms: expected at most window_ms ({self.window_ms}), got {self.early_ms}")
        if self.memory_ms < self.window_ms:
            raise SettingsError(f"memory_ms: expected at least window_ms ({self.window_ms}), got {self.memory_ms}")


def timing(action_ms: int, final_ms: int | None, settings: JoinSettings) -> str:
    """Return where an action lies: `BEFORE_IMPRESSION`, `IN_WINDOW`, `AFTER_WINDOW` or `ORPHAN`; see the table above.

    final_ms: the end of its impression's window, where the outcome becomes final; None if no impression is known.
    """
    if final_ms is None:
        return ORPHAN
    delay = action_ms - (final_ms - settings.window_ms)
    if delay < -settings.window_ms or delay >= settings.window_ms + settings.memory_ms:
        return ORPHAN
    if delay < -settings.early_ms:
        return BEFORE_IMPRESSION
    return IN_WINDOW if delay < settings.window_ms else AFTER_WINDOW


def decided_ms(action_ms: int, final_ms: int | None, settings: JoinSettings) -> int:
    """Return the watermark at which an action's fate is decided; see the table above."""
    where = timing(action_ms, final_ms, settings)
    if where == ORPHAN or final_ms is None:
        return action_ms + settings.window_ms + 1
    return action_ms + 1 if where == AFTER_WINDOW else final_ms


def remembered_ms(action_ms: int, final_ms: int | None, settings: JoinSettings) -> int:
    """Return the horizon at which the id of a decided action may be forgotten, because no copy of it would count."""
    where = timing(action_ms, final_ms, settings)
    if where == ORPHAN or final_ms is None:
        return action_ms + settings.early_ms + settings.window_ms
    return action_ms + 1 if where == AFTER_WINDOW else final_ms
