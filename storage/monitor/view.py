"""The view of a run from its windows: one line per policy version, sums over all, and the alerts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from storage.monitor.alert_states import AlertState
from storage.monitor.alerts import Alert, alerts
from storage.monitor.stalls import RunState
from streams.events import MonitorState, StageWindow, VersionWindow, WindowEvent
from streams.records import StageLag


class VersionLine(msgspec.Struct, frozen=True, kw_only=True):
    """One policy version over all its windows; shares and means are None if their denominator is 0.

    reward_mean, reward_std: means over groups of the mean and the spread within each. flat_share: of the measured
    groups. valid_share, unchanged_share: of the candidates that were scored or found invalid. failed_share: of all
    candidates. repeat_share: the share of words of valid answers that occur earlier in their own answer; 1 minus it is
    the type/token ratio. staleness_mean, staleness_p95: in versions, over the groups that updates took.
    """

    lineage: str
    step: int
    groups: int
    reward_mean: float | None
    reward_std: float | None
    flat_share: float | None
    valid_share: float | None
    unchanged_share: float | None
    failed_share: float | None
    repeat_share: float | None
    taken: int
    expired: int
    staleness_mean: float | None
    staleness_p95: int | None


class View(msgspec.Struct, frozen=True, kw_only=True):
    """A run as its windows describe it.

    updates_done, updates_wanted: optimizer steps since the warm-up, and the number that the run was started for.
    policy_lag: steps between the newest policy and the one that wrote the newest groups. lags: records that a stage has
    not read. state: the run's state: running, idle, finished, stalled (with the awaited event), stopped or unknown.
    rules: the state of each alert rule, where somebody keeps watching; `alerts` are those that fire.
    """

    run: str
    policy: str
    updates_done: int
    updates_wanted: int
    policy_lag: int | None
    versions: tuple[VersionLine, ...]
    dead_letters: dict[str, int]
    malformed: dict[str, int]
    duplicates: int
    late: int
    windows_open: int
    windows_closed: int
    lags: tuple[StageLag, ...]
    state: RunState
    alerts: tuple[Alert, ...]
    rules: tuple[AlertState, ...] = ()


def build_view(
    run: str,
    events: Iterable[WindowEvent],
    *,
    updates_wanted: int,
    staleness_max: int,
    lags: Sequence[StageLag] = (),
    standing: RunState | None = None,
) -> View:
    """Return the view of a run from its windows, each given once, and its monitor's state."""
    given = list(events)
    windows = [event for event in given if isinstance(event, VersionWindow)]
    stages = [event for event in given if isinstance(event, StageWindow)]
    state = next((event for event in given if isinstance(event, MonitorState)), MonitorState(run=run))
    letters: Counter[str] = Counter()
    for stage in stages:
        letters[stage.stage] += stage.dead_letters
    closed = [window.closed for window in windows] + [window.closed for window in stages]
    lines = version_lines(windows)
    newest = max(windows, key=lambda window: (window.start_ms, window.step), default=None)
    policy = state.policy
    return View(
        run=run,
        policy=f"{policy.lineage}-{policy.step:06d}" if policy else "",
        updates_done=policy.step if policy else 0,
        updates_wanted=updates_wanted,
        policy_lag=policy.step - newest.step if policy and newest else None,
        versions=lines,
        dead_letters=dict(sorted(letters.items())),
        malformed=state.malformed,
        duplicates=state.duplicates,
        late=state.late,
        windows_open=len(closed) - sum(closed),
        windows_closed=sum(closed),
        lags=tuple(lags),
        state=standing or RunState(run=run, state="unknown", says="nobody has looked"),
        alerts=alerts(lines, dead_letters=letters.total(), staleness_max=staleness_max, state=standing),
    )


def version_lines(windows: Iterable[VersionWindow]) -> tuple[VersionLine, ...]:
    """Return one line per policy version, in the order of steps."""
    by_version: dict[tuple[int, str], list[VersionWindow]] = {}
    for window in windows:
        by_version.setdefault((window.step, window.lineage), []).append(window)
    return tuple(_line(by_version[name]) for name in sorted(by_version))


def _line(windows: Sequence[VersionWindow]) -> VersionLine:
    fates: Counter[str] = Counter()
    staleness: Counter[int] = Counter()
    for window in windows:
        fates.update(window.fates)
        staleness.update(window.staleness)
    measured = sum(window.measured for window in windows)
    scored = sum(window.scored for window in windows)
    return VersionLine(
        lineage=windows[0].lineage,
        step=windows[0].step,
        groups=sum(window.groups for window in windows),
        reward_mean=_share(sum((window.reward_mean or 0.0) * window.measured for window in windows), measured),
        reward_std=_share(sum((window.reward_std or 0.0) * window.measured for window in windows), measured),
        flat_share=_share(sum(window.flat for window in windows), measured),
        valid_share=_share(sum(window.valid for window in windows), scored),
        unchanged_share=_share(sum(window.unchanged for window in windows), scored),
        failed_share=_share(sum(window.failed for window in windows), sum(window.candidates for window in windows)),
        repeat_share=_share(
            sum(window.repeated or 0 for window in windows), sum(window.words or 0 for window in windows)
        ),
        taken=fates.total(),
        expired=fates["expired"],
        staleness_mean=_share(sum(lag * count for lag, count in staleness.items()), staleness.total()),
        staleness_p95=percentile(staleness, 0.95),
    )


def percentile(counts: Counter[int], share: float) -> int | None:
    """Return the smallest value that at least `share` of the counted ones do not exceed; None for no values."""
    seen = 0
    for value in sorted(counts):
        seen += counts[value]
        if seen >= share * counts.total():
            return value
    return None


def _share(part: float, whole: int) -> float | None:
    return part / whole if whole else None
