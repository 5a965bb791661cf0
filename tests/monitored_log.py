"""A run's log with everything in it that a monitor has to get right, and what SQL over the ledger says of it."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import msgspec
import pytest

from infra.app.app import App
from infra.monitoring.watching import Watcher, monitored, wait_until_read
from streams.events import DeadLetter, Outcome, Position, Reward, StageWindow, Update, VersionWindow, WindowEvent
from streams.records import Received
from streams.topics import topic_name
from tests.stored_events import RUN, policy, raw_record, record, reward, update

BATCH = 8
START_MS = 1_700_000_000_000
GROUP_MS = 1_500
JITTER_MS = 40_000
POISON = (b"", None, b"{", b"[" * 10_000, b'{"event":"reward/9"}', b"\xff\xfe", b"null", b'{"event":"reward/1"}')

# Nothing here comes from the monitor: which record is a group's first is the ledger's views' answer, and the window is
# the time in it.
VERSION_WINDOWS = """
WITH effects AS (
    SELECT o.topic, o.partition, o.record_offset, count(*) AS candidates, count(o.reward) AS scored,
        count(*) FILTER (o.valid AND o.status = 'scored') AS valid,
        count(*) FILTER (o.valid AND o.status = 'scored' AND (len(o.expansions) = 0
            OR [h.document_id for h in o.hits] = [h.document_id for h in r.raw_hits])) AS no_op,
        avg(o.reward) AS mean, stddev_pop(o.reward) AS std,
        count(o.reward) >= 2 AND max(o.reward) = min(o.reward) AS flat
    FROM outcomes o JOIN first_rewards r USING (topic, partition, record_offset)
    GROUP BY o.topic, o.partition, o.record_offset
), takes AS (
    SELECT r.lineage, r.step, r.made_at_ms // $size * $size AS start_ms, l.fate, u.parent_step - r.step AS lag
    FROM group_lineage l
    JOIN updates u ON u.topic = l.update_topic AND u.record_offset = l.update_offset
    JOIN first_rewards r ON r.group_id = l.group_id
), fates AS (
    SELECT lineage, step, start_ms, count(*) FILTER (fate = 'trained') AS trained,
        count(*) FILTER (fate = 'flat') AS flat, count(*) FILTER (fate = 'expired') AS expired,
        count(*) FILTER (fate = 'failed') AS failed, list(lag ORDER BY lag) AS lags
    FROM takes GROUP BY lineage, step, start_ms
)
SELECT r.lineage, r.step, r.made_at_ms // $size * $size AS start_ms, count(*), count(e.mean), sum(e.flat::INT)::BIGINT,
    sum(e.candidates)::BIGINT, sum(e.scored)::BIGINT, sum(e.valid)::BIGINT, sum(e.no_op)::BIGINT, avg(e.mean),
    avg(e.std), coalesce(any_value(f.trained), 0), coalesce(any_value(f.flat), 0), coalesce(any_value(f.expired), 0),
    coalesce(any_value(f.failed), 0), coalesce(any_value(f.lags), [])
FROM first_rewards r JOIN effects e USING (topic, partition, record_offset)
LEFT JOIN fates f ON f.lineage = r.lineage AND f.step = r.step AND f.start_ms = r.made_at_ms // $size * $size
GROUP BY r.lineage, r.step, r.made_at_ms // $size * $size ORDER BY 1, 2, 3
"""
# The sink's own dead letters, of the records that it cannot decode, are no records of the topic.
STAGE_WINDOWS = """
SELECT stage, made_at_ms // $size * $size AS start_ms, count(*) FROM (
    SELECT * FROM dead_letters WHERE topic LIKE '%.dead-letters' AND source_topic <> topic
    QUALIFY row_number() OVER (PARTITION BY source_topic, source_partition, source_offset, stage ORDER BY record_offset)
        = 1)
GROUP BY stage, start_ms ORDER BY 1, 2
"""


@contextmanager
def watched(app: App, run: str) -> Iterator[tuple[Watcher, subprocess.Popen[bytes]]]:
    """Give a watcher, and the monitor that was started for it, when that has read the whole log."""
    watcher = Watcher(app, run)
    try:
        with monitored(app, run) as process:
            assert process is not None
            wait_until_read(watcher, process, app.home.run(run))
            yield watcher, process
    finally:
        watcher.close()


def expected_windows(database: Path, *, window_seconds: int) -> tuple[list[tuple[object, ...]], ...]:
    """Return the rows of both queries."""
    with duckdb.connect(str(database), read_only=True) as ledger:
        size = {"size": window_seconds * 1000}
        return tuple(ledger.execute(query, size).fetchall() for query in (VERSION_WINDOWS, STAGE_WINDOWS))


def as_rows(events: list[WindowEvent]) -> tuple[list[tuple[object, ...]], ...]:
    """Return windows as the rows that `expected_windows` gives, means to within rounding."""
    versions: list[tuple[object, ...]] = []
    for window in events:
        if isinstance(window, VersionWindow):
            counts = (window.groups, window.measured, window.flat, window.candidates, window.scored)
            assert window.candidates == window.scored + window.failed
            means = tuple(
                None if mean is None else pytest.approx(mean, abs=1e-12)
                for mean in (window.reward_mean, window.reward_std)
            )
            fates = tuple(window.fates.get(name, 0) for name in ("trained", "flat", "expired", "failed"))
            lags = [lag for lag, count in window.staleness.items() for _ in range(count)]
            place = (window.lineage, window.step, window.start_ms)
            versions.append((*place, *counts, window.valid, window.unchanged, *means, *fates, lags))
    stages = [(w.stage, w.start_ms, w.dead_letters) for w in events if isinstance(w, StageWindow)]
    return sorted(versions, key=lambda row: row[:3]), sorted(stages)


def messy_log(groups: int = 200, *, seed: int = 0) -> list[Received]:
    """Return a log of rewards, updates and dead letters, in an order in which it may be read.

    With groups written twice, redone rewards, repeated and killed updates, letters twice, poison, and times that jump.
    """
    chance = random.Random(seed)
    rewards: list[Reward | bytes | None] = []
    updates: list[Update | bytes | None] = []
    letters: list[DeadLetter | bytes | None] = []
    for number in range(groups):
        at_ms = START_MS + number * GROUP_MS + chance.randrange(-JITTER_MS, JITTER_MS)
        step = number // BATCH
        found = _reward(number, step=step, at_ms=at_ms, chance=chance)
        rewards.append(found)
        if chance.random() < 0.2:  # The environment was killed before its commit, or the generator was.
            redone = _reward(number, step=step, at_ms=at_ms + 9_000, chance=chance, source_offset=groups + number)
            rewards.append(chance.choice([found, redone]))
        if chance.random() < 0.1:
            letter = _letter(number, at_ms, chance)
            letters += [letter] * chance.choice([1, 2])
        for log in (rewards, updates, letters):
            if chance.random() < 0.02:
                log.append(chance.choice(POISON))
        if number % BATCH == BATCH - 1:
            updates += _updates(step, range(number - BATCH + 1, number + 1), at_ms, chance)
    logs = {"rewards": rewards, "updates": updates, "dead-letters": letters}
    queues = [[_record(kind, offset, event) for offset, event in enumerate(log)] for kind, log in logs.items()]
    return interleave(queues, chance)


def interleave(queues: list[list[Received]], chance: random.Random) -> list[Received]:
    """Return the records in some order that keeps each queue's own, as a consumer of several partitions sees them."""
    left, mixed = [queue[::-1] for queue in queues if queue], []
    while left:
        queue = chance.choices(left, [len(queue) for queue in left])[0]
        mixed.append(queue.pop())
        left = [queue for queue in left if queue]
    return mixed


def _record(kind: str, offset: int, event: Reward | Update | DeadLetter | bytes | None) -> Received:
    if event is None or isinstance(event, bytes):
        return raw_record(kind, offset, event)
    return record(event, offset)


def _reward(number: int, *, step: int, at_ms: int, chance: random.Random, source_offset: int | None = None) -> Reward:
    found = reward(number, step=step, retry=chance.randrange(2), source_offset=source_offset)
    nature = chance.choice(["plain", "plain", "flat", "failed", "one", "unchanged"])
    outcomes = tuple(_outcome(found, outcome, nature, index, chance) for index, outcome in enumerate(found.outcomes))
    return msgspec.structs.replace(found, outcomes=outcomes, made_at_ms=at_ms)


def _outcome(found: Reward, outcome: Outcome, nature: str, index: int, chance: random.Random) -> Outcome:
    replace = msgspec.structs.replace
    if nature == "flat":
        return replace(outcome, reward=0.5)
    if nature == "failed" or (nature == "one" and index):
        return replace(outcome, status="failed", reward=None, error="unreachable", hits=())
    if nature == "unchanged":
        return replace(outcome, hits=found.raw_hits) if index % 2 else replace(outcome, expansions=())
    if chance.random() < 0.1:
        return replace(outcome, valid=False, reward=0.0, expansions=(), hits=())
    return outcome


def _updates(step: int, groups: range, at_ms: int, chance: random.Random) -> list[Update | bytes | None]:
    behind = chance.choice([0, 0, 1, 2])
    taken = update(step + 1, groups, parent=policy(step + behind))
    cut = [chance.choice(["trained", "flat", "expired", "failed"]) for _ in groups]
    fates = {
        name: tuple(group for group, fate in zip(taken.trained, cut, strict=True) if fate == name)
        for name in ("trained", "flat", "expired", "failed")
    }
    made = msgspec.structs.replace(taken, **fates, made_at_ms=at_ms + 5_000)
    killed = policy(step + 1, lineage="killed")
    lost = msgspec.structs.replace(made, policy=killed, trained=taken.trained[:3], flat=(), expired=(), failed=())
    return [*([lost] if chance.random() < 0.2 else []), *([made] * chance.choice([1, 1, 2]))]


def _letter(number: int, at_ms: int, chance: random.Random) -> DeadLetter:
    return DeadLetter(
        source=Position(topic=topic_name(RUN, "requests"), partition=0, offset=number),
        key=b"k",
        value=b"\x00",
        headers=(),
        stage=chance.choice(["generator", "environment", "learner"]),
        error="no event",
        attempts=1,
        made_at_ms=at_ms,
    )
