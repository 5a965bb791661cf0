"""A log in which workers repeat themselves, hours and days late and in another order, against the log without that.

Each generation and reward comes two to five times, the repetitions with other texts and rewards, as a worker writes
them that was killed before it committed: soon, an hour or a week later. The sink gets topics in an order of their own,
and some windows again. What is learned and what is stored as each group's outcome must be what the clean log says.
"""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from learner.batches import BatchAssembler, BatchSettings
from storage.archive import ArchiveSettings
from storage.ledger import LEDGER
from storage.log import open_log
from storage.sink import Sink, SinkSettings
from streams.codec import decode
from streams.events import Reward
from streams.records import Received
from tests.stored_events import generation, record, request, reward

# What comes again after its group was forgotten takes an expired group's place in a batch: here all are remembered.
BATCH = BatchSettings(groups=16, staleness_max=1, remembered_groups=1_000_000)
BEGAN_MS = 1_700_000_000_000
LATE_SECONDS = (5, 60, 3600, 7 * 24 * 3600)  # One group a second: a week later is after the end of every log here.
WINDOW = 256
SAID = {
    "candidates": "SELECT group_id, candidate, text FROM first_candidates ORDER BY ALL",
    "outcomes": "SELECT group_id, candidate, status, reward, expansions, hits FROM first_outcomes ORDER BY ALL",
    "groups": "SELECT group_id, candidates, scored, reward_mean, flat FROM group_rewards ORDER BY ALL",
}

Topics = dict[str, list[Received]]


def run(count: int, *, seed: int) -> Counter[str]:
    """Compare a log of about so many records with the clean one; return how many there were of what.

    Raises AssertionError if the two do not say the same.
    """
    chance = random.Random(seed)
    groups = max(count // 8, BATCH.groups) // BATCH.groups * BATCH.groups
    clean, repeated = topics(groups, None), topics(groups, chance)
    assert trained(repeated["rewards"]) == trained(clean["rewards"]), "another set of groups was trained"
    expected, stored = said(clean, None), said(repeated, chance)
    for name, rows in expected.items():
        assert rows and stored[name] == rows, f"{name} differ"
    return Counter({kind: len(records) for kind, records in repeated.items()})


def topics(groups: int, chance: random.Random | None) -> Topics:
    """Return the records of each topic; chance: repeats generations and rewards, None repeats nothing."""
    moments: list[tuple[float, str, int, int]] = []  # When, what, of which request, the how-manieth time.
    for number in range(groups):
        moments.append((number, "requests", number, 0))
        for retry in range(chance.randint(2, 5) if chance else 1):
            late = number + (chance.choice(LATE_SECONDS) * chance.uniform(0.5, 1) if chance and retry else 0)
            moments += [(late + 0.1, "generations", number, retry), (late + 0.2, "rewards", number, retry)]
    found: Topics = {"requests": [], "generations": [], "rewards": []}
    offsets: dict[tuple[int, int], int] = {}
    for at, kind, number, retry in sorted(moments):
        offset, step = len(found[kind]), number // BATCH.groups
        if kind == "requests":
            made: Any = request(number)
        elif kind == "generations":
            made = generation(number, step=step, retry=retry)
            offsets[number, retry] = offset
        else:
            made = reward(number, step=step, retry=retry, source_offset=offsets[number, retry])
        written = record(made, offset)
        found[kind].append(msgspec.structs.replace(written, timestamp_ms=BEGAN_MS + int(1000 * at)))
    return found


def trained(rewards: list[Received]) -> list[str]:
    """Return the groups that a learner takes a gradient from, in its order.

    Raises AssertionError if it takes one twice.
    """
    assembler = BatchAssembler(BATCH, positions={}, requests_consumed={}, recent_groups=())
    taken: list[str] = []
    step = 0
    for each in rewards:
        event = decode(each.value)
        assert isinstance(event, Reward)
        assembler.add(each.position, event)
        while assembler.full:
            batch = assembler.take(step=step)
            step += bool(batch.fresh)
            taken += [one.group_id for one in batch.fresh]
    assert len(set(taken)) == len(taken), "a group gave two gradients"
    return taken


def said(found: Topics, chance: random.Random | None) -> dict[str, list[dict[str, Any]]]:
    """Store the records as a sink does, and return what the ledger says of the groups."""
    with tempfile.TemporaryDirectory(prefix="searchloop-redelivery-") as folder:
        settings = SinkSettings(open_timeout_seconds=0, archive=ArchiveSettings(segment_mib_max=256))
        with Sink(Path(folder) / LEDGER, settings) as sink:
            for window in windows(found, chance):
                sink.write(window)
        with open_log(Path(folder)) as log:
            return {name: log.rows(query) for name, query in SAID.items()}


def windows(found: Topics, chance: random.Random | None) -> Iterator[list[Received]]:
    """Yield what the sink polls: topic after topic, or (chance) in any order between them and now and then again."""
    readers = {kind: iter(records) for kind, records in found.items()}
    before: list[Received] = []
    while readers:
        kind = chance.choice(list(readers)) if chance else next(iter(readers))
        window = list(islice(readers[kind], WINDOW))
        if not window:
            del readers[kind]
            continue
        yield window
        if chance and before and chance.random() < 0.1:
            yield before
        before = window
