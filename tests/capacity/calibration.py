"""Service times of a run, read from its ledger: how long each stage took for how many groups, by the clock.

The log says when a record was written. A generator's chunk begins at `made_at_ms` of its generations. An environment
and a learner begin when they are free and the last record of their batch is there. Waiting for the processor is part of
these times, so they hold for the machine and the load of the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import duckdb
import msgspec
import numpy as np

from tests.capacity.model import Service

BATCH_GAP_MS = 100  # An environment writes the rewards of one batch at once.


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """The times of a run's stages, the hop from an update to the next chunk, and the pace of the run itself.

    busy: by stage, the share of the run's time in which its worker had work.
    """

    generate: Service
    score: Service
    learn: Service
    hop: float
    groups_per_second: float
    staleness_mean: float
    groups: int
    updates: int
    candidates: int
    prompt_tokens: float
    completion_tokens: float
    busy: dict[str, float] = {}


def calibrate(ledger: Path, *, from_update: int, until_update: int = 1 << 30) -> Calibration:
    """Return the service times of a run of one worker for each stage, from one update until another."""
    with duckdb.connect(str(ledger), read_only=True) as opened:
        made = opened.sql(
            "SELECT group_id, made_at_ms / 1e3, record_time_ms / 1e3, step FROM generations "
            "ORDER BY record_time_ms, partition, record_offset"
        ).fetchall()
        scored = opened.sql(
            "SELECT group_id, record_time_ms / 1e3 FROM rewards ORDER BY record_time_ms, partition, record_offset"
        ).fetchall()
        learned = opened.sql("SELECT step, record_time_ms / 1e3 FROM updates WHERE step > 0 ORDER BY step").fetchall()
        taken = opened.sql("SELECT step, group_id FROM update_groups").fetchall()
        ((prompt_tokens, candidates),) = opened.sql(
            "SELECT avg(prompt_tokens), any_value(candidates) FROM generations"
        ).fetchall()
        ((completion_tokens,),) = opened.sql("SELECT avg(tokens) FROM candidates").fetchall()
    ends = {step: at for step, at in learned if step <= until_update}
    first, over = ends[from_update], max(ends.values())
    arrived = {group: at for group, _, at, _ in made}
    rewarded = dict(scored)
    version = {group: step for group, _, _, step in made}
    groups_of: dict[int, list[str]] = {}
    for step, group in taken:
        groups_of.setdefault(step, []).append(group)
    chunks = [(began, end, count) for began, end, count in _chunks(made) if first <= began <= over]
    hops = [
        began - max(previous, max((at for at in ends.values() if at <= began), default=began))
        for (_, previous, _), (began, _, _) in pairwise(chunks)
    ]
    last = max(ends)
    updates = [step for step in sorted(ends) if step > from_update]
    sizes = [len(groups_of[step]) for step in updates]
    scoring = _scoring(scored, arrived, first, over)
    learning = [
        (max(ends[step - 1], *(rewarded[group] for group in groups_of[step])), ends[step])
        for step in updates
        if step - 1 in ends
    ]
    busy = {
        "generate": _covered([(began, end) for began, end, _ in chunks]),
        "score": _covered([(began, end) for began, end, _ in scoring]),
        "learn": _covered(learning),
    }
    behind = [step - 1 - version[group] for step in updates for group in groups_of[step] if group in version]
    return Calibration(
        generate=_fit([(end - began, count) for began, end, count in chunks]),
        score=_fit([(end - began, count) for began, end, count in scoring]),
        learn=_fit([(end - began, 0) for began, end in learning]),
        hop=max(float(np.median([hop for hop in hops if hop >= 0])), 0.0),
        groups_per_second=sum(sizes) / (ends[last] - first),
        staleness_mean=float(np.mean(behind)),
        groups=round(float(np.mean(sizes))),
        updates=len(updates),
        candidates=int(candidates),
        prompt_tokens=float(prompt_tokens),
        completion_tokens=float(completion_tokens),
        busy={name: seconds / (over - first) for name, seconds in busy.items()},
    )


def _chunks(made: Sequence[tuple[str, float, float, int]]) -> list[tuple[float, float, int]]:
    """Return (beginning, end, groups) of each chunk of a generator."""
    found: dict[float, list[float]] = {}
    for _, began, end, _ in made:
        found.setdefault(began, []).append(end)
    return [(began, max(ends), len(ends)) for began, ends in sorted(found.items())]


def _scoring(
    scored: Sequence[tuple[str, float]], arrived: dict[str, float], first: float, over: float
) -> list[tuple[float, float, int]]:
    """Return (beginning, end, groups) of each batch of an environment."""
    batches: list[list[tuple[str, float]]] = []
    for group, at in scored:
        if batches and (at - batches[-1][-1][1]) * 1000 <= BATCH_GAP_MS:
            batches[-1].append((group, at))
        else:
            batches.append([(group, at)])
    found = []
    for before, batch in pairwise(batches):
        free, there, end = before[-1][1], max(arrived[group] for group, _ in batch), batch[-1][1]
        if first <= there <= over:
            found.append((max(free, there), end, len(batch)))
    return found


def _covered(spans: Sequence[tuple[float, float]]) -> float:
    """Return the seconds that lie within at least one span."""
    covered, until = 0.0, float("-inf")
    for began, end in sorted(spans):
        covered += max(end - max(began, until), 0.0)
        until = max(until, end)
    return covered


def _fit(points: Sequence[tuple[float, int]]) -> Service:
    """Return the line through (seconds, groups), with neither part below 0, and the spread around it."""
    seconds, groups = (np.array(each, dtype=float) for each in zip(*points, strict=True))
    if len(set(groups)) > 1:
        each, base = np.polyfit(groups, seconds, 1)
        if base < 0 or each < 0:
            base, each = (0.0, float(seconds.sum() / groups.sum())) if base < 0 else (float(seconds.mean()), 0.0)
    else:
        base, each = (0.0, float((seconds / groups).mean())) if groups[0] else (float(seconds.mean()), 0.0)
    expected = base + each * groups
    return Service(base=float(base), each=float(each), spread=float(np.std(seconds / expected)))
