"""A log in which groups and rewards stand two to five times, out of order, an hour and a week late: nothing differs.

Repetitions carry other texts and rewards under the same ids, as those of a worker that was killed and wrote again.
"""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path

import msgspec

from learner.batches import BatchAssembler, BatchSettings
from storage.ledger import LEDGER
from storage.log import open_log
from storage.sink import Sink
from streams.codec import content_sha256
from streams.records import Received
from tests.faults.results import Row
from tests.stored_events import generation, record, request, reward

BATCH = BatchSettings(groups=4, staleness_max=1)
SHUFFLED_PLACES = 6  # A first copy moves by so many places at most: less than a batch.
LATE_MS = {"again": 0, "an hour late": 3_600_000, "a week late": 7 * 86_400_000}
WINDOW = 512  # Records of one delivery; each is delivered up to twice, in windows that go back.
EVENTS_PER_REQUEST = 8  # On average: the request, its groups, and their rewards.


class Copy(msgspec.Struct, frozen=True, kw_only=True):
    """One writing of a group. place: where among the others it is written."""

    place: float
    number: int
    retry: int
    late_ms: int


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a log of so many events.

    taken, trained: groups that the learner took, and that gave a gradient, each time. rewards: those that count.
    """

    events: int
    taken: tuple[str, ...]
    trained: tuple[str, ...]
    rewards: dict[str, tuple[float | None, ...]]


def repeat_events(*, events: int, seed: int = 0) -> list[Row]:
    """Compare a clean log with a repeated, reordered and late one of so many events; return a row."""
    began = time.monotonic()
    requests = events // EVENTS_PER_REQUEST // BATCH.groups * BATCH.groups  # The last batch is full.
    chance = random.Random(seed)
    clean = [Copy(place=number, number=number, retry=0, late_ms=0) for number in range(requests)]
    harmed = sorted(
        (each for number in range(requests) for each in copies(number, requests, chance)), key=lambda each: each.place
    )
    expected, found = lived(clean, None), lived(harmed, chance)
    broken = []
    if set(found.taken) != set(expected.taken):
        broken.append(f"{len(set(found.taken))} groups were taken, expected {len(set(expected.taken))}")
    if len(set(found.trained)) != len(found.trained):
        broken.append("a group gave two gradients")
    if set(found.trained) != set(expected.trained):
        broken.append(f"{len(found.trained)} groups gave a gradient, expected {len(expected.trained)}")
    if found.rewards != expected.rewards:
        broken.append("other rewards count than in the clean log")
    held = f"{found.events:,} events; {len(found.trained):,} groups trained once, rewards those of the clean log"
    row = Row(
        fault="events ×2–5, reordered, 1 h and 7 d late",
        dose=found.events,
        held=held,
        broken=tuple(broken),
        seconds=time.monotonic() - began,
    )
    return [row]


def copies(number: int, requests: int, chance: random.Random) -> list[Copy]:
    """Return two to five writings of one group; the first one counts."""
    first = number + chance.uniform(0, SHUFFLED_PLACES)
    made = [Copy(place=first, number=number, retry=0, late_ms=0)]
    for retry in range(1, chance.randint(2, 5)):
        late = chance.choice(list(LATE_MS))
        delay = {"again": chance.uniform(0, 20), "an hour late": requests * 0.2, "a week late": float(requests)}[late]
        made.append(Copy(place=first + delay, number=number, retry=retry, late_ms=LATE_MS[late]))
    return made


def lived(written: list[Copy], chance: random.Random | None) -> Outcome:
    """Write the log, learn from it meanwhile, and store it.

    chance: deliver it to the sink in windows that go back, each once or twice.
    """
    log = [record(request(number), number) for number in sorted({each.number for each in written})]
    assembler = BatchAssembler(BATCH, positions={}, requests_consumed={}, recent_groups=())
    steps: dict[int, int] = {}
    taken: list[str] = []
    trained: list[str] = []
    step = 0
    for offset, each in enumerate(written):
        # A repetition was written under the policy of the time, and by a worker of the time, however late it arrives.
        group = generation(each.number, step=steps.setdefault(each.number, step), retry=each.retry)
        source = record(group, offset)
        answer = msgspec.structs.replace(
            reward(each.number, retry=each.retry, source_offset=offset),
            generation=group,
            content_sha256=content_sha256(source.value or b""),
        )
        for item in (source, record(answer, offset)):
            log.append(msgspec.structs.replace(item, timestamp_ms=item.timestamp_ms - each.late_ms))
        assembler.add(log[-1].position, answer)
        while assembler.full:
            batch = assembler.take(step=step)
            step += 1
            trained += [scored.group_id for scored in batch.fresh]
            taken += [*(scored.group_id for scored in batch.fresh), *batch.expired, *batch.failed]
    return Outcome(events=len(log), taken=tuple(taken), trained=tuple(trained), rewards=stored(log, chance))


def stored(log: list[Received], chance: random.Random | None) -> dict[str, tuple[float | None, ...]]:
    """Return the rewards that count in the ledger of a log."""
    with tempfile.TemporaryDirectory(prefix="searchloop-late-") as scratch:
        with Sink(Path(scratch) / LEDGER) as sink:
            for first in range(0, len(log), WINDOW):
                back = chance.randrange(WINDOW) if chance else 0
                for _ in range(chance.randint(1, 2) if chance else 1):
                    sink.write(log[max(first - back, 0) : first + WINDOW])
        with open_log(Path(scratch)) as opened:
            rows = opened.rows(
                "SELECT group_id, array_agg(reward ORDER BY candidate) AS r FROM first_outcomes GROUP BY group_id"
            )
    return {row["group_id"]: tuple(row["r"]) for row in rows}
