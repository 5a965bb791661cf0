"""Windows over a run's log, by policy version: only the arithmetic, without Kafka, clock or thread.

Event time decides. A group lies in the window in which its candidates were written (`Generation.made_at_ms`, which its
reward repeats). A dead letter lies in the window of its own `made_at_ms`. So the windows are a function of the log, and
a monitor that starts anew computes the same windows.

- *Duplicates*: of two records for one group the first in the log counts (lowest source offset, then lowest offset, as
in the ledger's views). An update counts once by its weights, a dead letter once by the record that it buries.
- *Out of order*: entries are kept one by one until their window closes, and sums are exact (`math.fsum`). So neither
the order of arrival nor the order of topics changes a window. An update that comes before its groups waits for them.
- *Late*: a window closes when the log's time has passed its end by `late_seconds`. Later entries are counted as late
and change nothing. The log's time is the newest event time of the rewards, never beyond the wall clock. During the
catch-up with the log, it is the time of the partition that is furthest behind.
- *Malformed*: such records are counted by topic, and skipped.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated

import msgspec

from storage.monitor.groups import RewardedGroup, Take, VersionKey, mean_of, measure_group
from streams.codec import decode
from streams.descriptions import describe
from streams.epochs import Epochs
from streams.errors import EventError
from streams.events import (
    DeadLetter,
    Event,
    MonitorState,
    PolicyRef,
    Position,
    Reward,
    StageWindow,
    Update,
    VersionWindow,
    WindowEvent,
    fates_of,
)
from streams.topics import kind_of, window_key

EXPECTED: dict[str, type[Event]] = {"rewards": Reward, "updates": Update, "dead-letters": DeadLetter}


class MonitorSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The length of the monitor's windows, and its wait for late records."""

    window_seconds: Annotated[
        int,
        msgspec.Meta(ge=1, le=86_400),
        describe("Length of a window. A shorter window shows changes earlier and from fewer records."),
    ] = 60
    late_seconds: Annotated[
        int,
        msgspec.Meta(ge=0, le=604_800),
        describe(
            "Time after its end at which a window closes, in the log's own time. An outage that is longer leaves a gap."
        ),
    ] = 3600
    publish_seconds: Annotated[
        float, msgspec.Meta(gt=0, le=60), describe("Time between two publications of changed windows.")
    ] = 1.0
    entries_max: Annotated[
        int,
        msgspec.Meta(ge=1000, le=10_000_000),
        describe("Largest number of groups and dead letters in memory. Beyond it the oldest window closes early."),
    ] = 200_000


StageKey = tuple[str, int]  # stage, start_ms
Headers = Sequence[tuple[str, bytes | None]]


class Windows:
    """The tables: add records, take out changed windows."""

    def __init__(self, run: str, settings: MonitorSettings, *, ends: Mapping[tuple[str, int], int]) -> None:
        """ends: the log's ends when the monitor started, by (kind, partition); until there it is catching up."""
        self._run = run
        self._size_ms = settings.window_seconds * 1000
        self._late_ms = settings.late_seconds * 1000
        self._entries_max = settings.entries_max
        self._ends = dict(ends)
        self._positions: dict[tuple[str, int], int] = {}
        self._newest: dict[tuple[str, int], float] = {}
        self._closed_ms = -math.inf  # Every window that ends at or before this is closed.
        self._groups: dict[str, RewardedGroup] = {}
        self._versions: dict[VersionKey, set[str]] = {}
        self._waiting: dict[str, dict[PolicyRef, tuple[int, Take]]] = {}
        self._letters: dict[tuple[Position, str], tuple[int, StageKey]] = {}
        self._stages: Counter[StageKey] = Counter()
        self._updates: set[PolicyRef] = set()
        self._epochs = Epochs()
        self._newest_update: tuple[int, Update] | None = None
        self._malformed: Counter[str] = Counter()
        self._duplicates = 0
        self._late = 0
        self._changed_versions: set[VersionKey] = set()
        self._changed_stages: set[StageKey] = set()

    def add(
        self, position: Position, value: bytes | None, *, timestamp_ms: int, now_ms: int, headers: Headers = ()
    ) -> None:
        """Add one record; a record that is no event of its topic is counted as malformed and never raises.

        timestamp_ms: the record's own time, for events that carry no time. now_ms: the wall clock, which the log's time
        cannot pass. headers: the record's, which tell an update of a learner that has lost its right.
        """
        kind = kind_of(position.topic)
        place = (kind, position.partition)
        # A rebalance delivers records again, and counters must not count them twice. Windows recognize them by ids.
        again = position.offset < self._positions.get(place, 0)
        self._positions[place] = max(self._positions.get(place, 0), position.offset + 1)
        try:
            event = decode(value)
            if not isinstance(event, EXPECTED[kind]):
                raise EventError(f"expected {EXPECTED[kind].__name__}, got {type(event).__name__}")
            at_ms = getattr(event, "made_at_ms", 0) or timestamp_ms
            if isinstance(event, Reward):
                self._add_reward(event, position, at_ms, again)
            elif isinstance(event, Update) and not self._epochs.admits_update(headers):
                return
            elif isinstance(event, Update):
                self._add_update(event, position, at_ms, again)
            elif isinstance(event, DeadLetter):
                self._add_letter(event, position.offset, at_ms, again)
            self._newest[place] = max(self._newest.get(place, -math.inf), min(at_ms, now_ms))
        except EventError:
            self._malformed[kind] += not again

    def changes(self) -> dict[str, WindowEvent | None]:
        """Return every window that changed since the last call, by key, and the monitor's own state.

        During the catch-up with the log, only closed windows are returned, because the others are not complete yet.

        None stands for a window that is empty now. Closed windows are then forgotten: further records of theirs are
        late.
        """
        self._close()
        whole = not self._behind()
        versions = {window for window in self._changed_versions if whole or self._shut(window[2])}
        stages = {window for window in self._changed_stages if whole or self._shut(window[1])}
        events: list[WindowEvent] = [*map(self._version, sorted(versions)), *map(self._stage, sorted(stages))]
        self._changed_versions -= versions
        self._changed_stages -= stages
        self._forget()
        return {window_key(event): None if _empty(event) else event for event in (*events, self.state())}

    @property
    def caught_up(self) -> bool:
        """Return whether everything is read that lay in the log when the monitor started."""
        return not self._behind()

    def state(self) -> MonitorState:
        """Return the reading positions, and the totals that belong to no window."""
        newest = self._newest_update[1] if self._newest_update else None
        return MonitorState(
            run=self._run,
            positions={f"{kind}/{number}": offset for (kind, number), offset in sorted(self._positions.items())},
            malformed=dict(sorted(self._malformed.items())),
            duplicates=self._duplicates,
            late=self._late,
            updates=len(self._updates),
            policy=newest.policy if newest else None,
            learner_positions=newest.positions if newest else {},
        )

    def _add_reward(self, reward: Reward, position: Position, at_ms: int, again: bool) -> None:
        policy = reward.generation.policy
        window = (policy.lineage, policy.step, at_ms // self._size_ms * self._size_ms)
        group = measure_group(reward, position, window)
        known = self._groups.get(reward.group_id)
        if known is not None and known.rank == group.rank:
            return
        self._duplicates += known is not None and not again
        if (known is not None and known.rank < group.rank) or self._is_late(window[2], again):
            return
        if known is not None:
            self._versions[known.window].discard(reward.group_id)
            self._changed_versions.add(known.window)
            group.takes = known.takes
        for update, (_, take) in self._waiting.pop(reward.group_id, {}).items():
            group.takes = group.takes | {update: take}
        self._groups[reward.group_id] = group
        self._versions.setdefault(window, set()).add(reward.group_id)
        self._changed_versions.add(window)

    def _add_update(self, update: Update, position: Position, at_ms: int, again: bool) -> None:
        if self._newest_update is None or position.offset > self._newest_update[0]:
            self._newest_update = (position.offset, update)
        if update.policy in self._updates:
            self._duplicates += not again
            return
        self._updates.add(update.policy)
        for fate, groups in fates_of(update).items():
            take = Take(fate=fate, parent_step=update.parent.step)
            for group_id in groups:
                group = self._groups.get(group_id)
                if group is None:
                    self._waiting.setdefault(group_id, {})[update.policy] = (at_ms, take)
                else:
                    group.takes = group.takes | {update.policy: take}
                    self._changed_versions.add(group.window)

    def _add_letter(self, letter: DeadLetter, offset: int, at_ms: int, again: bool) -> None:
        name = (letter.source, letter.stage)
        window = (letter.stage, at_ms // self._size_ms * self._size_ms)
        known = self._letters.get(name)
        if known is not None and known[0] == offset:
            return
        self._duplicates += known is not None and not again
        if (known is not None and known[0] < offset) or self._is_late(window[1], again):
            return
        if known is not None:
            self._stages[known[1]] -= 1
            self._changed_stages.add(known[1])
        self._letters[name] = (offset, window)
        self._stages[window] += 1
        self._changed_stages.add(window)

    def _is_late(self, start_ms: int, again: bool) -> bool:
        late = start_ms + self._size_ms <= self._closed_ms
        self._late += late and not again
        return late

    def _close(self) -> None:
        """Move the line before which windows are closed, never backwards."""
        if behind := self._behind():
            log_ms = min(self._newest.get(place, -math.inf) for place in behind)
        else:
            log_ms = max((time for (kind, _), time in self._newest.items() if kind == "rewards"), default=-math.inf)
        closed = max(self._closed_ms, log_ms - self._late_ms)
        excess = len(self._groups) + len(self._letters) - self._entries_max
        for start_ms, count in sorted(self._sizes().items()) if excess > 0 else ():
            if excess <= 0:
                break
            closed = max(closed, start_ms + self._size_ms)
            excess -= count
        self._closed_ms = closed
        self._changed_versions |= {window for window in self._versions if self._shut(window[2])}
        self._changed_stages |= {window for window in self._stages if self._shut(window[1])}

    def _behind(self) -> list[tuple[str, int]]:
        """Return the partitions that are not yet read up to their ends at the monitor's start."""
        return [place for place, end in self._ends.items() if self._positions.get(place, 0) < end]

    def _sizes(self) -> Counter[int]:
        sizes: Counter[int] = Counter()
        for window, ids in self._versions.items():
            sizes[window[2]] += len(ids)
        for (_, start_ms), count in self._stages.items():
            sizes[start_ms] += count
        return sizes

    def _forget(self) -> None:
        told = self._versions.keys() - self._changed_versions
        for window in [w for w in told if self._shut(w[2]) or not self._versions[w]]:
            for group_id in self._versions.pop(window):
                del self._groups[group_id]
        if gone := [stage for stage, count in self._stages.items() if self._shut(stage[1]) or not count]:
            self._letters = {name: stage for name, stage in self._letters.items() if not self._shut(stage[1][1])}
            for stage in gone:
                del self._stages[stage]
        for group_id, takes in list(self._waiting.items()):
            if all(self._shut(at_ms) for at_ms, _ in takes.values()):
                self._late += len(takes)
                del self._waiting[group_id]

    def _shut(self, start_ms: int) -> bool:
        return start_ms + self._size_ms <= self._closed_ms

    def _version(self, window: VersionKey) -> VersionWindow:
        lineage, step, start_ms = window
        groups = [self._groups[group_id] for group_id in self._versions[window]]
        takes = [take for group in groups for take in group.takes.values()]
        return VersionWindow(
            run=self._run,
            lineage=lineage,
            step=step,
            start_ms=start_ms,
            end_ms=start_ms + self._size_ms,
            closed=self._shut(start_ms),
            groups=len(groups),
            measured=sum(group.mean is not None for group in groups),
            flat=sum(group.flat for group in groups),
            candidates=sum(group.candidates for group in groups),
            scored=sum(group.scored for group in groups),
            failed=sum(group.failed for group in groups),
            valid=sum(group.valid for group in groups),
            unchanged=sum(group.unchanged for group in groups),
            words=sum(group.words for group in groups),
            repeated=sum(group.repeated for group in groups),
            reward_mean=mean_of([group.mean for group in groups if group.mean is not None]),
            reward_std=mean_of([group.std for group in groups if group.std is not None]),
            fates=dict(sorted(Counter(take.fate for take in takes).items())),
            staleness=dict(sorted(Counter(take.parent_step - step for take in takes).items())),
        )

    def _stage(self, window: StageKey) -> StageWindow:
        stage, start_ms = window
        return StageWindow(
            run=self._run,
            stage=stage,
            start_ms=start_ms,
            end_ms=start_ms + self._size_ms,
            closed=self._shut(start_ms),
            dead_letters=self._stages[window],
        )


def _empty(event: WindowEvent) -> bool:
    match event:
        case VersionWindow():
            return event.groups == 0
        case StageWindow():
            return event.dead_letters == 0
        case _:
            return False
