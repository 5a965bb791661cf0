"""What limits a loop: which stage each update waited for, from the times of its records alone."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import msgspec

RowsOf = Callable[[str], list[dict[str, Any]]]

PAUSE = 10.0  # An interval this many times the median one is a restart or a pause.
UPDATES_MIN = 5
BOUND = 0.5
Stage = Literal["generation", "search", "learner"]


class UpdateTimes(NamedTuple):
    """Milliseconds at which an update's last group was written, was rewarded, and at which the update was made."""

    written: int
    rewarded: int
    updated: int


class TimeShares(msgspec.Struct, frozen=True, kw_only=True):
    """The waits between updates, in shares that add up to 1.

    generation: until the update's last group was written. search: from there until it was rewarded. learner: from there
    until the update was made. Work that went on while the learner was still busy is nobody's wait, so a stage that runs
    ahead has no share. limit: the stage with at least half; "" if no stage has. updates: how many intervals count.
    seconds: median time between two updates.
    """

    updates: int
    seconds: float
    generation: float
    search: float
    learner: float
    limit: Stage | Literal[""]


def time_shares(updates: Sequence[UpdateTimes]) -> TimeShares | None:
    """Return where the time between updates went, or None for fewer than `UPDATES_MIN` intervals.

    updates: in the order of the surviving chain. The first one only begins the first interval. An interval of more than
    `PAUSE` times the median, or one that runs backwards because a clock was set, does not count.
    """
    spans = [(before.updated, after) for before, after in pairwise(updates)]
    spans = [(begin, after) for begin, after in spans if after.updated > begin]
    if len(spans) < UPDATES_MIN:
        return None
    median = statistics.median(after.updated - begin for begin, after in spans)
    spans = [(begin, after) for begin, after in spans if after.updated - begin <= PAUSE * median]
    total = {"generation": 0, "search": 0, "learner": 0}
    for begin, after in spans:
        written = min(max(after.written, begin), after.updated)
        rewarded = min(max(after.rewarded, written), after.updated)
        total["generation"] += written - begin
        total["search"] += rewarded - written
        total["learner"] += after.updated - rewarded
    whole = sum(total.values())
    shares = {stage: round(part / whole, 6) for stage, part in total.items()}
    limits: tuple[Stage, ...] = ("generation", "search", "learner")
    return TimeShares(
        updates=len(spans),
        seconds=round(median / 1000, 3),
        generation=shares["generation"],
        search=shares["search"],
        learner=shares["learner"],
        limit=next((stage for stage in limits if shares[stage] >= BOUND), ""),
    )


def read_time_shares(rows_of: RowsOf) -> TimeShares | None:
    """Return where the time of a run's surviving updates went; None if the log says too little.

    rows_of: asks the run's ledger.
    """
    rows = rows_of(
        """
        SELECT max(g.record_time_ms) AS written, max(r.record_time_ms) AS rewarded,
            any_value(u.record_time_ms) AS updated
        FROM surviving_updates u JOIN surviving_groups s USING (run, lineage, step)
        JOIN first_generations g USING (run, group_id) JOIN first_rewards r USING (run, group_id)
        WHERE g.record_time_ms > 0 AND r.record_time_ms > 0 AND u.record_time_ms > 0
        GROUP BY run, lineage, step ORDER BY step, lineage
        """
    )
    return time_shares([UpdateTimes(**row) for row in rows])
