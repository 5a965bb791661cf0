"""A run's progress, and the reason for a stall: decided by pure functions from facts that are visible from outside.

The loop has back pressure: without its learner, the generator may write no more, and seems to stand still as well. So
the blamed stage is the last one in the order of the stream that has enough work and does not move.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from streams.stalls import stall_text

State = Literal["running", "idle", "finished", "stalled", "stopped", "unknown"]
STAGES = ("generator", "environment", "learner", "sink")
UNITS = {"generator": "requests", "environment": "groups", "learner": "groups", "sink": "records"}
DONE = {"generator": "answered", "environment": "scored", "learner": "learned from", "sink": "stored"}


class WorkerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One worker that a run's files name. state: "alive", "stopped" (by a signal, as Ctrl-Z or SIGSTOP) or "dead"."""

    role: str
    pid: int
    started_ms: int
    state: Literal["alive", "stopped", "dead"] = "alive"


class StageFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The work that waits for one stage, and the time of its last progress.

    waiting: records that it has not taken; None if unknown. since_ms: the time since which it could have taken the next
    one. This is its own last record or the arrival of the oldest waiting record, whichever is later; None if none
    waits. enough: the number of records that it needs before it can do anything.
    """

    stage: str
    waiting: int | None
    since_ms: int | None
    enough: int = 1


class RunFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about a run that the verdict depends on.

    members: live members of the consumer groups, which may be on other machines. updates_wanted: 0 if it has no limit.
    unseen: why the facts could not be read, else empty.
    """

    run: str
    now_ms: int
    stages: tuple[StageFacts, ...] = ()
    workers: tuple[WorkerFacts, ...] = ()
    members: int = 0
    updates_done: int = 0
    updates_wanted: int = 0
    unseen: str = ""


class RunState(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a run.

    state: "running"; "idle" (no request waits); "finished" (it has made its updates); "stalled" (something waits, and
    the stage that should take it has not moved for `delivery.stall_seconds`); "stopped" (no worker lives); "unknown".
    waiting_for: the awaited event of a stalled run, else empty. seconds: the time without progress. says: one line.
    """

    run: str
    state: State
    seconds: float = 0.0
    waiting_for: str = ""
    says: str = ""


def run_state(facts: RunFacts, *, stall_seconds: float) -> RunState:
    """Return the state of a run, from facts alone."""
    done = f"{facts.updates_done}" + (f" of {facts.updates_wanted}" if facts.updates_wanted else "") + " updates"
    if facts.unseen:
        return RunState(run=facts.run, state="unknown", says=facts.unseen)
    living = any(worker.state != "dead" for worker in facts.workers) or facts.members > 0
    finished = 0 < facts.updates_wanted <= facts.updates_done
    if not living:
        said = f"{done}; no worker of the run is alive"
        return RunState(run=facts.run, state="finished" if finished else "stopped", says=done if finished else said)
    if (blamed := _blamed(facts, finished)) is not None:
        seconds = _seconds(facts, blamed)
        if seconds >= stall_seconds:
            what = _what(blamed, facts.workers)
            said = f"{stall_text(seconds, what)}; {done}"
            return RunState(run=facts.run, state="stalled", seconds=seconds, waiting_for=what, says=said)
        return RunState(run=facts.run, state="finished" if finished else "running", says=done)
    return RunState(run=facts.run, state="finished" if finished else "idle", says=f"{done}; {_asked(facts)}")


def process_lines(workers: Sequence[WorkerFacts]) -> dict[str, str]:
    """Return the fault of each role that has a worker but no working one."""
    lines: dict[str, str] = {}
    for role in dict.fromkeys(worker.role for worker in workers):
        mine = [worker for worker in workers if worker.role == role]
        if any(worker.state == "alive" for worker in mine):
            continue
        pids = ", ".join(str(worker.pid) for worker in mine)
        stopped = any(worker.state == "stopped" for worker in mine)
        lines[role] = f"its process {pids} " + ("is stopped by a signal" if stopped else "is gone")
    return lines


def _blamed(facts: RunFacts, finished: bool) -> StageFacts | None:
    """Return the last stage that has enough work; the sink only if no stage of the loop has.

    A run that has made its updates has no more work for the loop, whatever waits; only its sink may be behind.
    """
    by_name: Mapping[str, StageFacts] = {stage.stage: stage for stage in facts.stages}
    loop = [by_name[name] for name in ("learner", "environment", "generator") if name in by_name and not finished]
    busy = [stage for stage in loop if _has_enough(stage)]
    sink = by_name.get("sink")
    if sink is not None and _has_enough(sink) and all(_seconds(facts, sink) > _seconds(facts, each) for each in busy):
        # The loop does not wait for its sink: the sink is to blame if the others move and it does not.
        return sink
    return busy[0] if busy else None


def _has_enough(stage: StageFacts) -> bool:
    return stage.since_ms is not None and (stage.waiting is None or stage.waiting >= stage.enough)


def _seconds(facts: RunFacts, stage: StageFacts) -> float:
    """Return the time since a stage last moved, at most its worker's age, because its log may be a copy."""
    began = [worker.started_ms for worker in facts.workers if worker.role == stage.stage]
    # If that role has no worker, the starts of the other workers say since when progress is wanted.
    began = began or [worker.started_ms for worker in facts.workers]
    since_ms = max([stage.since_ms or 0, *([max(began)] if began else [])])
    return max(facts.now_ms - since_ms, 0) / 1000


def _what(stage: StageFacts, workers: Sequence[WorkerFacts]) -> str:
    count = "some" if stage.waiting is None else f"{stage.waiting}"
    said = f"the {stage.stage}: {count} {UNITS[stage.stage]} wait, and none was {DONE[stage.stage]}"
    if stage.stage == "learner":
        said = f"the learner: {count} groups wait ({stage.enough} make a batch), and none was {DONE['learner']}"
    trouble = process_lines(workers)
    if stage.stage in trouble:
        return f"{said}; {trouble[stage.stage]}"
    if workers and all(worker.role != stage.stage for worker in workers):
        said = f"{said}; this machine has no {stage.stage}"
    # Another stage may hold this one up: a learner that is gone grants no requests.
    return "; ".join([said, *(f"the {role}: {what}" for role, what in trouble.items())])


def _asked(facts: RunFacts) -> str:
    learner = next((stage for stage in facts.stages if stage.stage == "learner"), None)
    held = learner.waiting if learner is not None and learner.waiting else 0
    if held and learner is not None:
        return f"no request waits; {held} rewards are not learned from ({learner.enough} make a batch)"
    return "no request waits"
