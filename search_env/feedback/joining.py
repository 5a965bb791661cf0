"""The join of impressions with the actions on them, which come in any order, doubled and late.

*Watermark.* It is the largest event time that came, minus the allowed lateness. No clock moves it, so a replay decides
as the first run did. One join has one watermark for all applications, for two reasons. An action does not name its
application, so an action that precedes its impression could not move the right one. And a quiet application would wait
for its own next event before its outcomes became final. To keep applications apart, give each a join of its own. An
event that is ahead of its own record in the log does not move the watermark and is left out.

*Decisions.* `attribution` says what is decided and when. A decision stands for ever. An impression gets one final
outcome, when the watermark reaches its time plus the window. An action that would belong to it and comes after that is
left out as `too_late`. Events that are in time never are, so any order of them gives the same decisions in the same
order, namely those of the ordered log.

*Copies.* Of events with the same id, the one with the lowest position in the log counts. If it comes second, it
replaces the other, unless that one is decided already. So the order of arrival matters only if copies contradict each
other about the time. A record that Kafka delivers again is a copy of itself. An id that comes again after it was
forgotten, with a time after the horizon, names a new event.

*Memory.* The horizon is the watermark minus the memory. These things go, each with a count:

- an impression, with its final outcome; only its id stays;
- an action, with its decision; only its id stays;
- the id of an impression, when the horizon reaches the end of its window;
- the id of an action, when no copy of it could be joined any more: with the id of its impression; if it came after the
  window, when the horizon has passed it; if it is an orphan, when every impression that fits would be forgotten.

An impression whose window ends at or before the horizon may be a copy of a forgotten one. It is left out as
`forgotten`: a second final outcome would be worse than none. So is an action before the horizon if its impression is
not known. So memory holds the events of lateness + window, and the ids of lateness + window + memory. If more than
`held_max` things are held, the horizon moves on towards the watermark, and the oldest ids go. If that is not enough,
the watermark itself moves on, as if a later event had come. Only then do decisions about events in time depend on the
order of arrival.

*Bots.* Each outcome says whether its impression is a bot's: `bots` has the rules. They leave no event out.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush

import msgspec

from search_env.feedback.attribution import (
    BEFORE_IMPRESSION,
    IN_WINDOW,
    JoinSettings,
    decided_ms,
    remembered_ms,
    timing,
)
from search_env.feedback.bots import Clients
from search_env.feedback.join_tally import JoinTally
from search_env.feedback.outcomes import AHEAD, FORGOTTEN, NOT_SHOWN, TOO_LATE, WITHOUT_TIME, Decided, JoinCounts
from search_env.feedback.snapshots import HeldAction, HeldImpression, JoinState, decode_state, encode_state
from search_env.feedback.waiting import WaitingActions
from streams.events import Position
from streams.inputs.values import TIME_MS_MAX
from streams.traffic_events import Impression, ImpressionOutcome, UserAction

_IMPRESSION, _ACTION = 0, 1  # At one time, an impression is decided before actions.
_BY_OUTCOME = (BEFORE_IMPRESSION, IN_WINDOW)
_Deadline = tuple[int, int, str]  # time, _IMPRESSION or _ACTION, id


class Joiner:
    """Joins events as they come: `add` returns what is decided now, `provisional` what has changed meanwhile."""

    def __init__(self, settings: JoinSettings | None = None) -> None:
        self.settings = settings or JoinSettings()
        self._watermark_ms: int | None = None
        self._horizon_ms: int | None = None
        self._open: dict[str, HeldImpression] = {}
        self._waiting = WaitingActions()
        self._final: dict[str, int] = {}  # Impression id: end of its window.
        self._decided: dict[str, int] = {}  # Action id: horizon at which it is forgotten.
        self._changed: dict[str, None] = {}
        # Deadlines may be out of date: the first valid one counts (`_next_deadline`, `_next_forgotten`).
        self._deadlines: list[_Deadline] = []
        self._forgetting: list[_Deadline] = []
        self._tally = JoinTally()
        self._clients = Clients(self.settings.bots, window_ms=self.settings.window_ms, early_ms=self.settings.early_ms)

    @property
    def watermark_ms(self) -> int | None:
        """Return the watermark; None before the first event."""
        return self._watermark_ms

    def add(self, event: Impression | UserAction, position: Position, *, logged_ms: int | None = None) -> list[Decided]:
        """Take one event, and return every decision that it brought about, in the order of their deadlines.

        position: the event's record; of copies the lowest counts. logged_ms: the time of that record in Kafka;
        None trusts the event's own time until 2100.
        """
        decided: list[Decided] = []
        if refusal := self._refusal(event.at_ms, logged_ms):
            decided.append(self._tally.left_out(event, position, refusal))
        elif isinstance(event, Impression):
            self._add_impression(event, position, decided)
        else:
            self._add_action(event, position, decided)
        self._tally.came(event)
        if not refusal:
            self._move_to(event.at_ms - self.settings.lateness_ms)
            self._decide(decided)
            self._forget()
            self._press(decided)
        return decided

    def provisional(self) -> list[ImpressionOutcome]:
        """Return the outcome so far of each open impression that changed since the last call."""
        changed, self._changed = self._changed, {}
        return [self._outcome(self._open[impression_id].impression, final=False) for impression_id in changed]

    def finish(self) -> list[Decided]:
        """Decide everything that is held, as if the watermark had passed it: the log has ended. Later events are late.

        Returns the decisions in the order of their deadlines.
        """
        decided: list[Decided] = []
        while (deadline := self._next_deadline()) is not None:
            self._move_to(deadline)
            self._decide(decided)
        self._forget()
        return decided

    def counts(self) -> JoinCounts:
        """Return the counts of all events so far, and of what is held now."""
        return self._tally.counts(
            open_now=len(self._open),
            waiting=len(self._waiting),
            remembered=len(self._final) + len(self._decided),
        )

    def snapshot(self) -> bytes:
        """Return the whole state. A join restored from it goes on with the next event as this one would."""
        return encode_state(
            JoinState(
                settings=self.settings,
                watermark_ms=self._watermark_ms,
                horizon_ms=self._horizon_ms,
                open=tuple(self._open.values()),
                waiting=tuple(self._waiting),
                final=self._final,
                decided=self._decided,
                changed=tuple(self._changed),
                counts=self.counts(),
                clients=self._clients.kept(),
            )
        )

    @classmethod
    def restore(cls, snapshot: bytes) -> Joiner:
        """Return the join that `snapshot` describes, with its settings. Raises FeedbackError if that is impossible."""
        state = decode_state(snapshot)
        joiner = cls(state.settings)
        joiner._watermark_ms, joiner._horizon_ms = state.watermark_ms, state.horizon_ms
        joiner._open = {held.impression.impression_id: held for held in state.open}
        joiner._final, joiner._decided = state.final, state.decided
        joiner._changed = dict.fromkeys(state.changed)
        for held in state.waiting:
            joiner._hold(held)
        joiner._restore_clients(state)
        ends = {name: joiner._window_end(held.impression) for name, held in joiner._open.items()}
        joiner._deadlines += [(end, _IMPRESSION, name) for name, end in ends.items()]
        joiner._forgetting += [(end, _IMPRESSION, name) for name, end in joiner._final.items()]
        joiner._forgetting += [(end, _ACTION, name) for name, end in joiner._decided.items()]
        heapify(joiner._deadlines)
        heapify(joiner._forgetting)
        joiner._tally = JoinTally(state.counts)
        return joiner

    def _refusal(self, at_ms: int, logged_ms: int | None) -> str:
        if at_ms <= 0:
            return WITHOUT_TIME
        latest = TIME_MS_MAX if logged_ms is None else min(TIME_MS_MAX, logged_ms + self.settings.ahead_ms)
        return AHEAD if at_ms > latest else ""

    def _add_impression(self, impression: Impression, position: Position, decided: list[Decided]) -> None:
        name, held = impression.impression_id, self._open.get(impression.impression_id)
        if held is not None or name in self._final:
            self._tally.add("impressions_doubled")
            if held is None or held.position <= position or self._is_forgotten(impression):
                return
        elif self._is_forgotten(impression):
            decided.append(self._tally.left_out(impression, position, FORGOTTEN))
            return
        if held is not None and held.impression == impression:
            self._open[name] = HeldImpression(impression, position)
            return
        if held is not None:
            self._count_client(held.impression, by=-1)
        self._open[name] = HeldImpression(impression, position)
        self._count_client(impression, by=1)
        self._changed[name] = None
        heappush(self._deadlines, (self._window_end(impression), _IMPRESSION, name))
        for waiting in self._waiting.of(name):
            self._set_deadline(waiting.action)

    def _add_action(self, action: UserAction, position: Position, decided: list[Decided]) -> None:
        held = self._waiting.get(action.action_id)
        if held is not None or action.action_id in self._decided:
            self._tally.add("actions_doubled")
            if held is None or held.position <= position:
                return
            self._waiting.release(held.action)
            if held.action == action:
                self._hold(HeldAction(action, position))
                return
            self._note_change(held.action)
            self._count_action(held.action, by=-1)
        is_known = self._final_ms(action.impression_id) is not None
        if not is_known and self._horizon_ms is not None and action.at_ms < self._horizon_ms:
            self._leave_out(action, position, FORGOTTEN, decided)
            return
        self._hold(HeldAction(action, position))
        self._note_change(action)
        self._count_action(action, by=1)

    def _hold(self, held: HeldAction) -> None:
        self._waiting.hold(held)
        self._set_deadline(held.action)

    def _set_deadline(self, action: UserAction) -> None:
        """Note when an action is decided, unless the outcome of its open impression decides it."""
        if action.impression_id not in self._open or self._timing(action) not in _BY_OUTCOME:
            heappush(self._deadlines, (self._decided_ms(action), _ACTION, action.action_id))

    def _note_change(self, action: UserAction) -> None:
        held = self._open.get(action.impression_id)
        if held is not None and self._counts_for(held.impression, action):
            self._changed[action.impression_id] = None

    def _count_client(self, impression: Impression, *, by: int) -> None:
        """Count an impression that is held, and the actions that wait for it, for its client; by -1, no more."""
        self._clients.shown(impression, by)
        for waiting in self._waiting.of(impression.impression_id):
            self._count_action(waiting.action, by=by)

    def _count_action(self, action: UserAction, *, by: int) -> None:
        held = self._open.get(action.impression_id)
        if held is not None and self._timing(action) == IN_WINDOW:
            self._clients.acted(held.impression, action, by)

    def _restore_clients(self, state: JoinState) -> None:
        if state.clients is None:
            for held in self._open.values():
                self._count_client(held.impression, by=1)
            return
        waiting = [each.action for each in self._waiting if each.action.impression_id in self._open]
        inside = [action for action in waiting if self._timing(action) == IN_WINDOW]
        self._clients.restore(
            state.clients, [(self._open[action.impression_id].impression, action) for action in inside]
        )

    def _decide(self, decided: list[Decided]) -> None:
        """Make every decision whose deadline the watermark has reached."""
        while (deadline := self._next_deadline()) is not None:
            if self._watermark_ms is None or deadline > self._watermark_ms:
                return
            _, kind, name = heappop(self._deadlines)
            if kind == _IMPRESSION:
                self._make_final(name, decided)
                continue
            held = self._waiting.named(name)
            self._waiting.release(held.action)
            where = self._timing(held.action)
            # What an open impression decides has gone with its outcome, so this impression was final before.
            self._leave_out(held.action, held.position, TOO_LATE if where in _BY_OUTCOME else where, decided)

    def _make_final(self, name: str, decided: list[Decided]) -> None:
        impression = self._open[name].impression
        end = self._window_end(impression)
        outcome = self._outcome(impression, final=True)
        decided.append(outcome)
        self._tally.final(outcome)
        self._clients.settled(name)
        for held in sorted(self._waiting.of(name), key=lambda held: _order(held.action)):
            where = self._timing(held.action)
            if where not in _BY_OUTCOME:
                continue
            self._waiting.release(held.action)
            if self._counts_for(impression, held.action):
                self._remember(held.action)
            else:
                reason = NOT_SHOWN if where == IN_WINDOW else where
                self._leave_out(held.action, held.position, reason, decided)
        del self._open[name]
        self._changed.pop(name, None)
        self._final[name] = end
        heappush(self._forgetting, (end, _IMPRESSION, name))

    def _outcome(self, impression: Impression, *, final: bool) -> ImpressionOutcome:
        waiting = (held.action for held in self._waiting.of(impression.impression_id))
        actions = tuple(sorted((each for each in waiting if self._counts_for(impression, each)), key=_order))
        bot = self._clients.reason(impression, actions) or msgspec.UNSET
        return ImpressionOutcome(impression=impression, actions=actions, final=final, bot=bot)

    def _counts_for(self, impression: Impression, action: UserAction) -> bool:
        where = timing(action.at_ms, self._window_end(impression), self.settings)
        return where == IN_WINDOW and any(shown.document_id == action.document_id for shown in impression.shown)

    def _leave_out(self, action: UserAction, position: Position, reason: str, decided: list[Decided]) -> None:
        decided.append(self._tally.left_out(action, position, reason))
        self._remember(action)

    def _remember(self, action: UserAction) -> None:
        """Keep the id of a decided action, unless it would be forgotten at once."""
        end = remembered_ms(action.at_ms, self._final_ms(action.impression_id), self.settings)
        if self._horizon_ms is None or end > self._horizon_ms:
            self._decided[action.action_id] = end
            heappush(self._forgetting, (end, _ACTION, action.action_id))

    def _move_to(self, watermark_ms: int) -> None:
        """Move the watermark, never backwards."""
        if self._watermark_ms is None or watermark_ms > self._watermark_ms:
            self._watermark_ms = watermark_ms

    def _forget(self) -> None:
        """Move the horizon behind the watermark, and forget the ids that it has reached."""
        if self._watermark_ms is None:
            return
        horizon = self._watermark_ms - self.settings.memory_ms
        self._horizon_ms = horizon if self._horizon_ms is None else max(horizon, self._horizon_ms)
        self._clients.forget(self._watermark_ms)
        while (end := self._next_forgotten()) is not None and end <= self._horizon_ms:
            self._forget_next()

    def _press(self, decided: list[Decided]) -> None:
        """Bring the number of things held below its limit: forget the oldest ids, then move the watermark."""
        while self._held() > self.settings.held_max:
            end, deadline = self._next_forgotten(), self._next_deadline()
            watermark, horizon = self._watermark_ms, self._horizon_ms
            if watermark is None or horizon is None:
                return
            if end is not None and end <= watermark:
                self._horizon_ms = max(horizon, end)
                self._forget_next()
                self._tally.add("evicted_early")
                continue
            before = self._tally["final"]
            self._move_to(min(time for time in (end, deadline) if time is not None))
            self._decide(decided)
            self._tally.add("final_early", self._tally["final"] - before)

    def _held(self) -> int:
        return len(self._open) + len(self._waiting) + len(self._final) + len(self._decided)

    def _forget_next(self) -> None:
        _, kind, name = heappop(self._forgetting)
        del (self._final if kind == _IMPRESSION else self._decided)[name]
        self._tally.add("evicted")
        for held in self._waiting.of(name) if kind == _IMPRESSION else ():
            self._set_deadline(held.action)  # Now it waits as an orphan.

    def _next_forgotten(self) -> int | None:
        """Return the horizon at which the next id is forgotten; drop what is out of date."""
        while self._forgetting:
            end, kind, name = self._forgetting[0]
            if (self._final if kind == _IMPRESSION else self._decided).get(name) == end:
                return end
            heappop(self._forgetting)
        return None

    def _next_deadline(self) -> int | None:
        """Return the watermark at which the next decision is made; drop deadlines that are out of date."""
        while self._deadlines:
            deadline, kind, name = self._deadlines[0]
            if kind == _IMPRESSION:
                if name in self._open and self._window_end(self._open[name].impression) == deadline:
                    return deadline
            elif (held := self._waiting.get(name)) is not None and self._decided_ms(held.action) == deadline:
                return deadline
            heappop(self._deadlines)
        return None

    def _timing(self, action: UserAction) -> str:
        return timing(action.at_ms, self._final_ms(action.impression_id), self.settings)

    def _decided_ms(self, action: UserAction) -> int:
        return decided_ms(action.at_ms, self._final_ms(action.impression_id), self.settings)

    def _final_ms(self, impression_id: str) -> int | None:
        """Return the end of an impression's window, final or not; None if the impression is not known."""
        held = self._open.get(impression_id)
        return self._window_end(held.impression) if held else self._final.get(impression_id)

    def _is_forgotten(self, impression: Impression) -> bool:
        return self._horizon_ms is not None and self._window_end(impression) <= self._horizon_ms

    def _window_end(self, impression: Impression) -> int:
        return impression.at_ms + self.settings.window_ms


def _order(action: UserAction) -> tuple[int, str]:
    return action.at_ms, action.action_id
