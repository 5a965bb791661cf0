"""What limits a loop: which stage its updates waited for, from the answer to the saved question `time_by_stage`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec

from storage.questions.question import saved_questions

RowsOf = Callable[[str], list[dict[str, Any]]]

QUESTION = "time_by_stage"
INTERVALS_MIN = 5
BOUND = 0.5
Stage = Literal["generation", "search", "learner"]
STAGES: dict[str, Stage] = {"generation": "generation", "search": "search", "learning": "learner"}


class TimeShares(msgspec.Struct, frozen=True, kw_only=True):
    """The waits between updates, in shares that add up to 1.

    generation: until the update's last group was written. search: from there until it was rewarded. learner: from there
    until the update was made. A stage that runs ahead has no share. limit: the stage with at least half; "" if no stage
    has. updates: how many intervals count: no restart, and none that runs backwards because a clock was set.
    seconds: median time between two updates.
    """

    updates: int
    seconds: float
    generation: float
    search: float
    learner: float
    limit: Stage | Literal[""]


def read_time_shares(rows_of: RowsOf) -> TimeShares | None:
    """Return where the time of a run's surviving updates went; None if the log says too little.

    rows_of: asks the run's ledger.
    """
    return time_shares(rows_of(saved_questions()[QUESTION].sql))


def time_shares(rows: Sequence[dict[str, Any]]) -> TimeShares | None:
    """Return the shares of the stages, or None for fewer than `INTERVALS_MIN` intervals.

    rows: the answer to the saved question: for each stage and some updates, their mean seconds and their number.
    """
    if not rows or rows[0]["intervals"] < INTERVALS_MIN:
        return None
    total = dict.fromkeys(STAGES.values(), 0.0)
    for row in rows:
        total[STAGES[row["stage"]]] += row["seconds"] * row["updates"]
    whole = sum(total.values())
    shares = {stage: round(part / whole, 6) for stage, part in total.items()}
    return TimeShares(
        updates=sum(row["updates"] for row in rows) // len(STAGES),
        seconds=round(rows[0]["median_seconds"], 3),
        generation=shares["generation"],
        search=shares["search"],
        learner=shares["learner"],
        limit=next((stage for stage in total if shares[stage] >= BOUND), ""),
    )
