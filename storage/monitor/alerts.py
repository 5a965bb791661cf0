"""The alerts of the monitor's windows: each rule with its limit, in one table. Alerts warn, and stop nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from storage.monitor.stalls import RunState
from streams.stalls import stall_text

DEAD_GROUPS_SHARE = 0.6
DEAD_GROUPS_UPDATES = 20
NO_OP_SHARE = 0.5
FORMAT_SHARE = 0.95
FORMAT_LOSS = 0.05
REPEAT_SHARE = 0.4
REPEAT_GAIN = 0.15
SPREAD_SHARE = 0.25
EXPIRED_SHARE = 0.01
FAILED_SHARE = 0.01
DEAD_LETTERS_SHARE = 0.001
RECENT_VERSIONS = 5


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """One rule that a run breaks now. what: the value, and the limit that it passed."""

    name: str
    what: str


class Line(Protocol):
    """The values of one policy version that the rules use."""

    @property
    def groups(self) -> int: ...
    @property
    def flat_share(self) -> float | None: ...
    @property
    def valid_share(self) -> float | None: ...
    @property
    def unchanged_share(self) -> float | None: ...
    @property
    def failed_share(self) -> float | None: ...
    @property
    def repeat_share(self) -> float | None: ...
    @property
    def reward_std(self) -> float | None: ...
    @property
    def taken(self) -> int: ...
    @property
    def expired(self) -> int: ...
    @property
    def staleness_p95(self) -> int | None: ...


def alerts(
    lines: Sequence[Line], *, dead_letters: int, staleness_max: int, state: RunState | None = None
) -> tuple[Alert, ...]:
    """Return the alerts for a run's policy versions, oldest first, and for its state.

    dead_letters: of the whole run. staleness_max: the run's limit. The rule about a near limit applies from a limit of
    2 on, because below that a single step behind would break it.
    """
    stall = _stall(state)
    found = [rule(lines) for rule in (_dead_groups, _low_advantage, _no_op, _stuffing, _format, _failed)]
    found += [_staleness(lines, staleness_max), _expired(lines), _dead_letters(lines, dead_letters)]
    return tuple(alert for alert in [stall, *found] if alert is not None)


def _stall(state: RunState | None) -> Alert | None:
    """A stalled run changes no window, so no other rule would ever notice it."""
    if state is None or state.state != "stalled":
        return None
    return Alert(name="stall", what=stall_text(state.seconds, state.waiting_for))


def _dead_groups(lines: Sequence[Line]) -> Alert | None:
    shares = [line.flat_share for line in lines if line.flat_share is not None][-DEAD_GROUPS_UPDATES:]
    if len(shares) < DEAD_GROUPS_UPDATES or min(shares) <= DEAD_GROUPS_SHARE:
        return None
    return Alert(
        name="dead groups",
        what=f"more than {DEAD_GROUPS_SHARE:.0%} of the groups are without spread in each of the last "
        f"{DEAD_GROUPS_UPDATES} versions: they teach nothing",
    )


def _low_advantage(lines: Sequence[Line]) -> Alert | None:
    """If rewards hardly differ within a group, the advantage is noise, or division by std(r) makes it too large."""
    if len(lines) <= RECENT_VERSIONS:
        return None
    now, first = (_recent(part, lambda line: line.reward_std) for part in (lines, lines[:RECENT_VERSIONS]))
    if now is None or not first or now >= SPREAD_SHARE * first:
        return None
    return Alert(
        name="low advantage",
        what=f"rewards within a group differ by {now:.2g}, at first by {first:.2g} (limit {SPREAD_SHARE:.0%} of it)",
    )


def _stuffing(lines: Sequence[Line]) -> Alert | None:
    """The share of repeats rose from 0.26 to 0.55 in a pilot whose reward favored repeated words."""
    now, first = (_recent(part, lambda line: line.repeat_share) for part in (lines, lines[:RECENT_VERSIONS]))
    if now is None or first is None or (now <= REPEAT_SHARE and now - first <= REPEAT_GAIN):
        return None
    limit = f"limit {REPEAT_SHARE:.0%}" if now > REPEAT_SHARE else f"{first:.0%} at first"
    return Alert(
        name="keyword stuffing",
        what=f"{now:.0%} of the words repeat earlier words of their answer, {limit}; type/token ratio {1 - now:.2f}",
    )


def _no_op(lines: Sequence[Line]) -> Alert | None:
    share = _recent(lines, lambda line: line.unchanged_share)
    if share is None or share <= NO_OP_SHARE:
        return None
    return Alert(name="no-op collapse", what=f"{share:.0%} of the answers change no search (limit {NO_OP_SHARE:.0%})")


def _format(lines: Sequence[Line]) -> Alert | None:
    now, first = (_recent(part, lambda line: line.valid_share) for part in (lines, lines[:RECENT_VERSIONS]))
    if now is None or first is None:
        return None
    if now < FORMAT_SHARE:
        return Alert(name="format", what=f"{now:.1%} of the answers keep the format (limit {FORMAT_SHARE:.0%})")
    if first - now > FORMAT_LOSS:
        return Alert(name="format", what=f"{now:.1%} of the answers keep the format, {first:.1%} did at first")
    return None


def _failed(lines: Sequence[Line]) -> Alert | None:
    share = _recent(lines, lambda line: line.failed_share)
    if share is None or share <= FAILED_SHARE:
        return None
    return Alert(
        name="failed outcomes", what=f"{share:.1%} of the candidates could not be scored (limit {FAILED_SHARE:.0%})"
    )


def _staleness(lines: Sequence[Line], staleness_max: int) -> Alert | None:
    worst = max((line.staleness_p95 for line in lines[-RECENT_VERSIONS:] if line.staleness_p95 is not None), default=0)
    if staleness_max < 2 or worst <= staleness_max - 1:
        return None
    return Alert(name="staleness", what=f"p95 is {worst} versions, the limit is {staleness_max}")


def _expired(lines: Sequence[Line]) -> Alert | None:
    recent = lines[-DEAD_GROUPS_UPDATES:]
    taken, expired = sum(line.taken for line in recent), sum(line.expired for line in recent)
    if not taken or expired / taken <= EXPIRED_SHARE:
        return None
    return Alert(
        name="drops", what=f"{expired / taken:.1%} of the groups were too old to learn from (limit {EXPIRED_SHARE:.0%})"
    )


def _dead_letters(lines: Sequence[Line], dead_letters: int) -> Alert | None:
    records = sum(line.groups for line in lines) + dead_letters
    if not records or dead_letters / records <= DEAD_LETTERS_SHARE:
        return None
    return Alert(
        name="dead letters",
        what=f"{dead_letters} dead letters beside {records - dead_letters} groups (limit {DEAD_LETTERS_SHARE:.1%}); "
        "see: searchloop dead-letters list",
    )


def _recent(lines: Sequence[Line], share: Callable[[Line], float | None]) -> float | None:
    """Return the mean of a share over the newest versions, weighted by their groups."""
    known = [(value, line.groups) for line in lines[-RECENT_VERSIONS:] if (value := share(line)) is not None]
    groups = sum(count for _, count in known)
    return sum(value * count for value, count in known) / groups if groups else None
