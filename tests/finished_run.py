"""A finished run, made by hand in a second: topics, ledger, archive and checkpoints as the workers leave them.

Its learner was killed once and went on, so it has two lineages, and one update and its version were announced twice.
Among its groups are a flat one, a failed one, a rejected one, a disputed one and one of split dev; one request was
buried, and some lie ready that nobody was allowed to answer.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from learner.checkpoints import MANIFEST, Manifest, save_checkpoint
from storage.archive import ArchiveSettings
from storage.ledger import LEDGER
from storage.sink import Sink, SinkSettings
from storage.verification.account import Partition
from storage.verification.verify import Topics
from streams.codec import content_sha256, encode_event
from streams.events import (
    DeadLetter,
    Event,
    Outcome,
    PolicyRef,
    PolicyVersion,
    Position,
    Request,
    Reward,
    Update,
)
from streams.ids import prompt_sha256
from streams.records import Received
from streams.topics import TOPICS, topic_name, version_name
from streams.whole_file import file_sha256
from tests.stored_events import RUN, generation, raw_record, record, request, reward

BATCH, UPDATES, READY = 4, 5, 6
DEV, BURIED, FLAT, FAILED, DISPUTED, REJECTED = 6, 9, 10, 13, 15, 18
KILLED_AT = 3  # The learner was killed after this update; its next life announced it again.
KEPT = 3
AT_ONCE = SinkSettings(open_timeout_seconds=0, archive=ArchiveSettings(segment_seconds_max=1e-9))

Change = Callable[[Outcome, int], Outcome]


def weights(step: int) -> bytes:
    """What stands in for a version's weights."""
    return f"weights of step {step}".encode() * 20


def policy(step: int) -> PolicyRef:
    """The version after so many updates."""
    lineage = "1-aaaaaa" if step <= KILLED_AT else "2-bbbbbb"
    return PolicyRef(lineage=lineage, step=step, sha256=hashlib.sha256(weights(step)).hexdigest())


class FakeTopics:
    """Kafka as the proof sees it: records by partition, of which the oldest may have fallen out of retention."""

    def __init__(self, records: list[Received]) -> None:
        self.records: dict[Partition, list[Received]] = {(topic_name(RUN, kind.kind), 0): [] for kind in TOPICS}
        for item in records:
            self.records[item.position.topic, item.position.partition].append(item)
        self.start: dict[Partition, int] = {}
        self.committed: dict[Partition, int] = {}

    def all(self) -> list[Received]:
        return [item for items in self.records.values() for item in items]

    def read(self, partition: Partition, first: int, end: int) -> Iterator[Received]:
        for item in self.records[partition]:
            if max(first, self.start.get(partition, 0)) <= item.position.offset < end:
                yield item

    def seen(self) -> Topics:
        ends = {
            partition: (self.start.get(partition, 0), items[-1].position.offset + 1 if items else 0)
            for partition, items in self.records.items()
        }
        return Topics(
            ends=ends,
            committed=self.committed,
            held=lambda partition, first, last: (r.position.offset for r in self.read(partition, first, last + 1)),
            read=self.read,
        )


class _Writer:
    """Gives each record its place."""

    def __init__(self) -> None:
        self.records: list[Received] = []
        self._ends: dict[str, int] = {}

    def end(self, kind: str) -> int:
        return self._ends.get(kind, 0)

    def add(self, kind: str, event: Event) -> int:
        offset = self.end(kind)
        self.records.append(record(event, offset))
        self._ends[kind] = offset + 1
        return offset


def write_run(
    folder: Path,
    *,
    changed: Change = lambda outcome, number: outcome,
    updates: int = UPDATES,
    chained: bool = True,
    extra: Sequence[tuple[str, Event]] = (),
) -> FakeTopics:
    """Write the run into a folder and return its topics.

    changed: gives another outcome for the one of a group's number: the whole run is then made to fit.
    updates: how many it makes; a run that was to make more looks the same up to there.
    chained: False leaves out what an older searchloop did not record. extra: what somebody added in the end, each with
    its topic's kind.
    """
    writer = _Writer()
    checkpoints = folder / "checkpoints"
    kinds = _split(UPDATES)
    parent_update, parent_manifest = "", _checkpoint(checkpoints, Manifest(policy=policy(0), parent=None))
    admitted = {0: max(kinds[0]) + 1}
    writer.add("policy-versions", _version(0, {}, admitted, parent_manifest, chained=chained))
    consumed: dict[int, int] = {}
    recent: tuple[str, ...] = ()
    for step, numbers in enumerate(kinds[:updates], start=1):
        rewards = _answer(writer, numbers, step - 1, changed)
        admitted = {0: max(kinds[step]) + 1 if step < UPDATES else max(numbers) + 1}
        update = _update(step, rewards, {0: writer.end("rewards")}, {0: max(numbers) + 1})
        if chained:
            update = msgspec.structs.replace(
                update, parent_update_sha256=parent_update, parent_manifest_sha256=parent_manifest
            )
        else:
            update = _as_older(update)
        parent_update, consumed = content_sha256(encode_event(update)), update.requests_consumed
        recent = (*recent, *(each.group_id for each in rewards))
        manifest = Manifest(
            policy=update.policy,
            parent=update.parent,
            origin=policy(0),
            positions=update.positions,
            requests_consumed=consumed,
            recent_groups=recent,
            update=update,
        )
        parent_manifest = _checkpoint(checkpoints, manifest)
        for _ in range(2 if step == KILLED_AT else 1):
            writer.add("updates", update)
            writer.add("policy-versions", _version(step, consumed, admitted, parent_manifest, chained=chained))
        _prune(checkpoints, step, writer)
    for number in range(max(kinds[updates - 1]) + 1, max(kinds[updates - 1]) + 1 + READY):
        writer.add("requests", _request(number))
    for kind, event in extra:
        writer.add(kind, event)
    writer.records.append(raw_record("rewards", writer.end("rewards"), b"{not json"))
    (folder / "settings.json").write_text(
        json.dumps({"updates": updates, "settings": {"batch": {"groups": BATCH, "staleness_max": 0}}})
    )
    store(folder, writer.records)
    return FakeTopics(writer.records)


def store(folder: Path, records: list[Received]) -> None:
    """Let a sink write ledger and archive."""
    with Sink(folder / LEDGER, AT_ONCE) as sink:
        for first in range(0, len(records), 40):
            sink.write(records[first : first + 40])


def _split(updates: int) -> list[list[int]]:
    """Return the numbers of the requests that each update uses up: a full batch of groups that may be taken."""
    batches: list[list[int]] = []
    number = 0
    for _ in range(updates):
        batch: list[int] = []
        while len([each for each in batch if each not in (DEV, BURIED)]) < BATCH:
            batch.append(number)
            number += 1
        batches.append(batch)
    return batches


def _request(number: int) -> Request:
    return msgspec.structs.replace(request(number), split="dev" if number == DEV else "train")


def _answer(writer: _Writer, numbers: list[int], step: int, changed: Change) -> list[Reward]:
    """Write request, generation and reward of each number; return the rewards that an update takes."""
    found = []
    for number in numbers:
        writer.add("requests", _request(number))
        if number == BURIED:
            value = encode_event(_request(number))
            source = Position(topic=topic_name(RUN, "requests"), partition=0, offset=number)
            writer.add(
                "dead-letters",
                DeadLetter(
                    source=source, key=b"k", value=value, headers=(), stage="generator", error="down", attempts=3
                ),
            )
            continue
        group = generation(number)
        group = msgspec.structs.replace(
            group,
            request=_request(number),
            policy=policy(step),
            prompt_sha256=prompt_sha256(group.prompt_token_ids),
        )
        at = writer.add("generations", group)
        made = reward(number, source_offset=at)
        outcomes = tuple(
            changed(_outcome(outcome, number, index), number) for index, outcome in enumerate(made.outcomes)
        )
        made = msgspec.structs.replace(
            made, generation=group, content_sha256=content_sha256(encode_event(group)), outcomes=outcomes
        )
        writer.add("rewards", made)
        if number != DEV:
            found.append(made)
    return found


def _outcome(outcome: Outcome, number: int, index: int) -> Outcome:
    if number == FLAT:
        return msgspec.structs.replace(outcome, reward=0.5)
    if number == FAILED and index:
        return Outcome(status="failed", valid=False, error="the engine did not answer")
    return outcome


def _update(step: int, rewards: list[Reward], positions: dict[int, int], consumed: dict[int, int]) -> Update:
    number_of = {generation(number).group_id: number for number in range(UPDATES * BATCH + 4)}
    of = {each.group_id: number_of[each.group_id] for each in rewards}
    odd = {FLAT, FAILED, DISPUTED, REJECTED}
    given = [each for each in rewards if of[each.group_id] != FAILED]
    outcomes = [outcome for each in given for outcome in each.outcomes]
    values = [outcome.reward for outcome in outcomes if outcome.reward is not None]
    return Update(
        run=RUN,
        policy=policy(step),
        parent=policy(step - 1),
        trained=tuple(group for group, number in of.items() if number not in odd),
        flat=tuple(group for group, number in of.items() if number == FLAT),
        failed=tuple(group for group, number in of.items() if number == FAILED),
        rejected={group: "completion 0: expected 1 to 32 tokens" for group, n in of.items() if n == REJECTED},
        disputed={group: "log-probabilities 3.1 nats off" for group, n in of.items() if n == DISPUTED},
        positions=positions,
        requests_consumed=consumed,
        metrics={
            "loss": 0.1 * step,
            "reward_mean": statistics.fmean(values),
            "reward_std": statistics.pstdev(values),
            "validity": 1.0,
            "failed_share": sum(outcome.reward is None for outcome in outcomes) / len(outcomes),
        },
        made_at_ms=1_700_000_003_000 + step,
    )


def _version(
    step: int, consumed: dict[int, int], admitted: dict[int, int], manifest_sha256: str, *, chained: bool
) -> PolicyVersion:
    event = PolicyVersion(
        run=RUN,
        policy=policy(step),
        parent=policy(step - 1) if step else None,
        path=f"checkpoints/{version_name(policy(step))}",
        requests_consumed=consumed,
        requests_admitted=admitted,
        manifest_sha256=manifest_sha256,
        made_at_ms=1_700_000_004_000 + step,
    )
    if chained:
        return event
    return msgspec.structs.replace(event, requests_admitted=msgspec.UNSET, manifest_sha256=msgspec.UNSET)


def _as_older(update: Update) -> Update:
    """Return the update as an older searchloop wrote it: groups that could not be used counted as failed."""
    failed = (*update.failed, *(update.rejected or ()), *(update.disputed or ()))
    return msgspec.structs.replace(update, failed=failed, rejected=msgspec.UNSET, disputed=msgspec.UNSET)


def _checkpoint(checkpoints: Path, manifest: Manifest) -> str:
    """Write a checkpoint and return its manifest's hash."""

    def write_files(folder: Path) -> Manifest:
        (folder / "model.safetensors").write_bytes(weights(manifest.policy.step))
        (folder / "config.json").write_text('{"model_type": "made up"}')
        if manifest.update is not None:
            (folder / "optimizer.safetensors").write_bytes(f"moments of step {manifest.policy.step}".encode())
        return manifest

    return file_sha256(save_checkpoint(checkpoints, manifest.policy, write_files) / MANIFEST)


def _prune(checkpoints: Path, step: int, writer: _Writer) -> None:

    if (old := step - KEPT) > 0:
        shutil.rmtree(checkpoints / version_name(policy(old)))
        event = PolicyVersion(
            run=RUN, policy=policy(old), parent=policy(old - 1), path=f"checkpoints/{version_name(policy(old))}",
            status="retired",
        )  # fmt: skip
        writer.add("policy-versions", event)
