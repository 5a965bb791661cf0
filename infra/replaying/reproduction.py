"""Reproduction of a run from its log: the same rewards and the same checkpoint give the same weights, bit for bit.

A reproduction needs no broker, no search engine and no generation. It cuts the recorded rewards into the recorded
batches. Every version's weights must have the sha256 that its update announced. On a CPU in fp32 they have it; a GPU
does not guarantee it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from infra.app.app import App
from infra.app.progress import Report
from infra.app.run_settings import read_run_settings
from learner.batches import Batch
from learner.checkpoints import copy_checkpoint, prune_checkpoints
from learner.learning import Learner
from learner.versions import find_version
from storage.errors import StorageError
from storage.log import Log, open_log
from streams.codec import decode
from streams.errors import EventError
from streams.events import Reward, Update
from streams.records import Received
from streams.topics import topic_name, version_name


class Reproduction(msgspec.Struct, frozen=True, kw_only=True):
    """The extent to which a run was reproduced.

    begin: the first version. updates: the number of repeated updates. different: the first version whose weights differ
    from the announced ones, None if all are equal. policy: the last version made; weights_sha256: its weights.
    """

    run: str
    begin: str
    updates: int
    different: str | None
    policy: str
    weights_sha256: str


def reproduce(app: App, run: str, *, begin: str, updates_max: int | None, report: Report) -> Reproduction:
    """Repeat a run's surviving updates from only its log and its checkpoint `begin`.

    begin: "0" or another version whose checkpoint exists. updates_max: the maximum number of updates.
    Raises StorageError if the log lacks a trained group, CheckpointError if the checkpoint does not exist.
    """
    folder = app.home.existing_run(run)
    kept = read_run_settings(folder)
    source, manifest = find_version(folder.checkpoints, begin)
    with scratch_of(folder) as scratch, open_log(folder) as log:
        if manifest.policy.step > 0 and kept.settings.learner.objective.kl_weight > 0:
            copy_checkpoint(*find_version(folder.checkpoints, "0"), scratch)
        start = copy_checkpoint(source, manifest, scratch)
        # The recorded batches contain no rejected groups, and the versions to check groups against are missing here.
        claims = msgspec.structs.replace(kept.settings.learner.claims, share=0.0)
        settings = msgspec.structs.replace(kept.settings.learner, claims=claims)
        state = Learner.resume(
            start, manifest, run=run, settings=settings, no_repeat=kept.settings.generation.no_repeat
        )
        chain = _surviving(log, manifest.policy.step, updates_max)
        different = None
        for number, (update, batch) in enumerate(_batches(log, run, chain, dict(manifest.positions)), start=1):
            state.lineage = update.policy.lineage
            state.learn(batch, scratch)
            prune_checkpoints(scratch, keep=1, keep_every=1_000_000)
            report("updates made again", number, len(chain))
            if state.manifest.policy != update.policy:
                different = version_name(update.policy)
                break
    return Reproduction(
        run=run,
        begin=version_name(manifest.policy),
        updates=state.step - manifest.policy.step,
        different=different,
        policy=version_name(state.manifest.policy),
        weights_sha256=state.manifest.policy.sha256,
    )


@contextmanager
def scratch_of(folder: Path) -> Iterator[Path]:
    """Give a folder for checkpoints that goes away: in the run's, because an adapter names its base from its place."""
    with tempfile.TemporaryDirectory(prefix=".reproduction-", dir=folder) as scratch:
        yield Path(scratch)


def _surviving(log: Log, after_step: int, updates_max: int | None) -> list[Update]:
    """Return the updates of the surviving lineage after a step, in order."""
    wanted = {
        (row["lineage"], row["step"], row["weights_sha256"])
        for row in log.rows("SELECT lineage, step, weights_sha256 FROM surviving_updates WHERE step > ?", (after_step,))
    }
    found = {
        event.policy.step: event
        for _, event in log.events(Update)
        if (event.policy.lineage, event.policy.step, event.policy.sha256) in wanted
    }
    chain = [found[step] for step in sorted(found)][:updates_max]
    if not chain:
        raise StorageError(f"expected updates after step {after_step} in the log, found none")
    return chain


def _batches(log: Log, run: str, chain: list[Update], positions: dict[int, int]) -> Iterator[tuple[Update, Batch]]:
    """Yield each update with its batch."""
    topic = topic_name(run, "rewards")
    partitions = sorted({partition for update in chain for partition in update.positions})
    readers = {each: _Reader(log, topic, each, positions.get(each, 0)) for each in partitions}
    for update in chain:
        groups: dict[str, Reward] = {}
        for partition in partitions:
            for reward in readers[partition].until(update.positions.get(partition, 0)):
                groups.setdefault(reward.group_id, reward)
        yield update, _batch(update, groups, partitions=len(partitions))


def _batch(update: Update, groups: dict[str, Reward], *, partitions: int) -> Batch:
    """Return the batch of an update: the groups that were tried for a gradient, in the learner's order.

    With one partition this is the log's order. With several, the log does not hold the order between them. The groups
    then come in the update's order; the weights depend on nothing else unless a group was refused.
    """
    listed = (*update.trained, *update.flat, *update.failed, *(update.disputed or ()))
    names = [group for group in groups if group in set(listed)] if partitions == 1 else listed
    if missing := [group for group in listed if group not in groups]:
        raise StorageError(
            f"{version_name(update.policy)} was made from group {missing[0]}, which is not between its parent's "
            "position and its own in the rewards topic. Check the log with: searchloop verify"
        )
    fresh = [
        groups[group] for group in names if sum(outcome.status == "scored" for outcome in groups[group].outcomes) >= 2
    ]
    tried = {reward.group_id for reward in fresh}
    return Batch(
        fresh=tuple(fresh),
        expired=update.expired,
        failed=tuple(group for group in update.failed if group not in tried),
        positions=update.positions,
        requests_consumed=update.requests_consumed,
    )


class _Reader:
    """A reader of one partition's rewards, up to one offset at a time; other records are left out."""

    def __init__(self, log: Log, topic: str, partition: int, first: int) -> None:
        self._records = (record for record in log.records((topic, partition)) if record.position.offset >= first)
        self._next: Received | None = next(self._records, None)

    def until(self, end: int) -> Iterator[Reward]:
        """Yield the rewards below this offset that were not read yet."""
        while self._next is not None and self._next.position.offset < end:
            try:
                event = decode(self._next.value)
            except EventError:
                event = None
            self._next = next(self._records, None)
            if isinstance(event, Reward):
                yield event
