"""The two workers of this room: one writes groups, one learns from their rewards. Nothing below this roof knows Kafka.

Both are loops over `streams.delivery`: the formulas, the sampling and the files live in the modules under it.
"""

from __future__ import annotations

import fcntl
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from kafka import KafkaConsumer, TopicPartition

from learner.batches import BatchAssembler, BatchSettings, admitted_requests
from learner.checkpoints import CheckpointError, load_current, prune_checkpoints, remove_unfinished
from learner.generation import Encode, GenerationSettings, generate_groups
from learner.learning import Learner, LearnerSettings
from learner.policy import PolicyError
from learner.versions import LoadedVersion, OpenVersion, Version, well_named
from streams.clients import (
    KafkaSettings,
    connect_consumer,
    connect_group_consumer,
    connect_producer,
    partitions_of,
)
from streams.delivery import (
    DeliverySettings,
    Outbox,
    Received,
    Stop,
    commit,
    decode_or_bury,
    now_ms,
    paused,
    poll,
    with_retries,
)
from streams.errors import DeliveryError, TransientError
from streams.events import Generation, PolicyVersion, Request, Reward
from streams.topics import topic_name, version_name

FIRST_VERSION_WAIT_SECONDS = 2.0
VERSIONS_MAX = 1000  # Announcements in one look: a generator that starts tries to load the newest of each.
log = logging.getLogger(__name__)


class VersionFollower:
    """Reads the policy-versions topic and keeps the newest version that can be loaded."""

    def __init__(
        self,
        kafka: KafkaSettings,
        run: str,
        checkpoints: Path,
        delivery: DeliverySettings,
        open_version: OpenVersion = LoadedVersion,
    ) -> None:
        """open_version: opens the first version; later ones refresh it."""
        positions: dict[TopicPartition, int | None] = dict.fromkeys(
            partitions_of(kafka, [topic_name(run, "policy-versions")]), None
        )
        self._consumer = connect_consumer(kafka, positions, client_id=f"{run}-versions", records_max=VERSIONS_MAX)
        self._delivery = delivery
        self._root = checkpoints.parent
        self._open_version = open_version
        self._newest: PolicyVersion | None = None
        self._wanted: PolicyVersion | None = None
        self.loaded: Version | None = None

    @property
    def requests_consumed(self) -> dict[int, int]:
        """Return how far the requests are used up, as the newest version announced it."""
        return self._newest.requests_consumed if self._newest else {}

    def follow(self, outbox: Outbox, *, wait_seconds: float) -> bool:
        """Read what was announced since the last call, load the newest version, and return whether it changed."""
        records = poll(self._consumer, self._delivery, records_max=VERSIONS_MAX, timeout_seconds=wait_seconds)
        announced = decode_or_bury(records, PolicyVersion, outbox)
        published = [event for event in well_named(announced, outbox) if event.status == "published"]
        if published:
            self._wanted = published[-1]
        if self._wanted is None:
            return False
        newest, self._wanted = self._wanted, None
        folder = self._root / newest.path
        try:
            if self.loaded is None:
                self.loaded = self._open_version(folder, newest.policy)
            else:
                self.loaded.refresh(folder, newest.policy)
        except TransientError as error:
            self._wanted = newest  # A server that is down now; nobody will announce this version again.
            log.warning("%s", error)
            return False
        except (CheckpointError, PolicyError) as error:
            # A newer one is already on its way if this one has been retired; the one before stays in use. One that
            # starts reads the announcements from the first, piece by piece, and meets many that are gone.
            log.warning("%s", error)
            return False
        self._newest = newest
        log.info("policy version %s", version_name(newest.policy))
        return True


def run_generator(
    *,
    run: str,
    checkpoints: Path,
    seed: int,
    kafka: KafkaSettings,
    delivery: DeliverySettings,
    generation: GenerationSettings,
    encode_prompt: Encode,
    batch: BatchSettings,
    member: str,
    stop: Stop,
    open_version: OpenVersion = LoadedVersion,
) -> None:
    """Write a group for every request, never further ahead of the learner than the staleness limit allows.

    open_version: where the policy is: in this process, or at a server. A server that is down is waited for with the
    partitions paused; past the limit the requests lie among the dead letters, to be sent again.
    """
    producer = connect_producer(kafka, client_id=f"{run}-{member}")
    outbox = Outbox(producer, run, stage="generator", settings=delivery)
    requests_topic = topic_name(run, "requests")
    consumer = connect_group_consumer(
        kafka, requests_topic, group=f"{run}.generator", member=f"{run}-{member}", records_max=delivery.records_max
    )
    versions = VersionFollower(kafka, run, checkpoints, delivery, open_version)
    partitions_total = len(partitions_of(kafka, [requests_topic]))
    chunk = generation.chunk_groups or batch.groups
    waiting: list[Received] = []
    since = time.monotonic()
    wanted = 0
    try:
        while not stop():
            # With nothing allowed to be written, the only news to wait for is a newer version; with none at all, a wait
            # that is long enough for a starved broker's answer: a poll that ends too soon forgets what it asked.
            no_version = FIRST_VERSION_WAIT_SECONDS if versions.loaded is None else 0.05
            versions.follow(outbox, wait_seconds=0.0 if wanted > 0 and versions.loaded is not None else no_version)
            room = _room(consumer, versions, batch, partitions_total)
            # Records already in hand count as taken, so `room` is what may come on top of them.
            wanted = min(chunk - len(waiting), room)
            if wanted > 0 and versions.loaded is not None:
                fetched = poll(consumer, delivery, records_max=wanted)
                since = time.monotonic() if fetched or not waiting else since
                waiting += fetched
            else:
                with paused(consumer) as keep_alive:
                    keep_alive()
            lingered = time.monotonic() - since > generation.linger_seconds
            if waiting and versions.loaded is not None and (len(waiting) >= chunk or wanted <= 0 or lingered):
                requests = decode_or_bury(waiting, Request, outbox)
                write = partial(
                    generate_groups,
                    [(record.position, request) for record, request in requests],
                    sampler=versions.loaded.sampler,
                    tokenizer=versions.loaded.tokenizer,
                    tokenizer_sha256=versions.loaded.tokenizer_sha256,
                    encode_prompt=encode_prompt,
                    sampling=generation.sampling(),
                    seed=seed,
                    made_at_ms=now_ms(),
                )
                groups = with_retries(write, partial(_give_up, requests, outbox), consumer, stop, delivery)
                if groups is None:
                    break  # Asked to stop while waiting: nothing was decided, so nothing is committed.
                for group in groups:
                    outbox.send(group, partition=group.source.partition)
                outbox.flush()
                commit(consumer, waiting)
                waiting = []
    finally:
        producer.close()
        consumer.close()


def run_learner(
    *,
    run: str,
    run_dir: Path,
    kafka: KafkaSettings,
    delivery: DeliverySettings,
    batch: BatchSettings,
    learner: LearnerSettings,
    generation: GenerationSettings,
    updates_max: int,
    member: str,
    stop: Stop,
) -> None:
    """Turn rewards into policy versions, going on from the newest checkpoint, until told to stop.

    updates_max: after this many steps since the warm-up it learns no more, and waits to be stopped; 0 means no limit.
    Raises DeliveryError if another learner holds this run: two of them would train every group twice.
    """
    checkpoints = run_dir / "checkpoints"
    with _only_one(run_dir / "learner.lock", f"learner of run {run!r}"):
        remove_unfinished(checkpoints)
        folder, manifest = load_current(checkpoints)
        state = Learner.resume(folder, manifest, run=run, settings=learner, no_repeat=generation.no_repeat)
        producer = connect_producer(kafka, client_id=f"{run}-{member}")
        outbox = Outbox(producer, run, stage="learner", settings=delivery)
        positions: dict[TopicPartition, int | None] = {
            item: manifest.positions.get(item.partition) for item in partitions_of(kafka, [topic_name(run, "rewards")])
        }
        consumer = connect_consumer(kafka, positions, client_id=f"{run}-{member}", records_max=delivery.records_max)
        assembler = BatchAssembler(
            batch,
            positions=manifest.positions,
            requests_consumed=manifest.requests_consumed,
            recent_groups=manifest.recent_groups,
        )
        try:
            # Said again on purpose: the last life may have ended between the checkpoint and its announcement.
            _announce(outbox, state, folder)
            last_reward = time.monotonic()
            while not stop():
                if updates_max and state.step >= updates_max:
                    stop.wait(delivery.poll_timeout_seconds)
                    continue
                if not assembler.full:
                    records = poll(consumer, delivery)
                    last_reward = time.monotonic() if records else last_reward
                    _collect(assembler, records, outbox)
                overdue = not assembler.empty and time.monotonic() - last_reward > batch.wait_seconds
                if not (assembler.full or overdue):
                    continue
                folder = state.learn(assembler.take(step=state.step), checkpoints, assembler.recent_groups)
                _announce(outbox, state, folder)
                for retired in prune_checkpoints(
                    checkpoints, keep=learner.checkpoints_kept + batch.staleness_max, keep_every=learner.keep_every
                ):
                    outbox.send(
                        PolicyVersion(
                            run=run,
                            policy=retired.policy,
                            parent=retired.parent,
                            path=f"checkpoints/{version_name(retired.policy)}",
                            status="retired",
                            made_at_ms=now_ms(),
                        )
                    )
        finally:
            producer.close()
            consumer.close()


def _give_up(
    requests: Sequence[tuple[Received, Request]], outbox: Outbox, error: TransientError, attempts: int
) -> list[Generation]:
    """Keep the requests among the dead letters; the batch that waits for them goes ahead without."""
    for record, _ in requests:
        outbox.bury(record, str(error), attempts=attempts)
    return []


def _room(consumer: KafkaConsumer, versions: VersionFollower, batch: BatchSettings, partitions_total: int) -> int:
    taken = {item.partition: consumer.position(item) or 0 for item in consumer.assignment()}
    if not taken:
        return batch.groups  # Not assigned yet: only a poll can bring the assignment.
    return admitted_requests(batch, taken=taken, consumed=versions.requests_consumed, partitions_total=partitions_total)


def _collect(assembler: BatchAssembler, records: list[Received], outbox: Outbox) -> None:
    good = {record.position: reward for record, reward in decode_or_bury(records, Reward, outbox)}
    outbox.flush()
    for record in records:
        assembler.add(record.position, good.get(record.position))


def _announce(outbox: Outbox, state: Learner, folder: Path) -> None:
    """Publish the version in `folder` and the update that made it: its checkpoint is durable by now."""
    if state.manifest.update is not None:
        outbox.send(state.manifest.update)
    outbox.send(
        PolicyVersion(
            run=state.run,
            policy=state.manifest.policy,
            parent=state.manifest.parent,
            path=f"checkpoints/{folder.name}",
            requests_consumed=state.manifest.requests_consumed,
            made_at_ms=now_ms(),
        )
    )
    outbox.flush()


@contextmanager
def _only_one(path: Path, who: str) -> Iterator[Any]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DeliveryError(
                f"another {who} is running (it holds {path}); stop it first: two would train every group twice"
            ) from error
        yield file
