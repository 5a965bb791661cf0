"""The learner's two workers: the generator writes groups, and the learner learns from their rewards.

Both are loops over `streams.delivery`. The modules below hold the formulas, the sampling and the files.
`learner.following` and `learner.intake` read the other parts of the stream that the workers need.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from kafka import KafkaConsumer

from learner.batches import BatchSettings
from learner.checkpoints import (
    CheckpointError,
    load_current,
    prune_checkpoints,
    read_manifest,
    remove_unfinished,
)
from learner.following import VersionFollower
from learner.generation import Encode, GenerationSettings, generate_groups
from learner.helping import begin_together
from learner.intake import Intake
from learner.learning import Learner, LearnerSettings
from learner.lock import only_learner
from learner.processes import ALONE, Processes
from learner.publishing import Publishing
from learner.sampling import PromptError, Sampler
from learner.shared_checkpoints import SharedCheckpoints
from learner.versions import LoadedVersion, OpenVersion
from streams.clients import connect_group_consumer, connect_producer
from streams.clock import now_ms
from streams.delivery import DeliverySettings, Outbox, decode_or_bury, known_position, paused, poll, with_retries
from streams.epochs import counted
from streams.errors import TransientError
from streams.events import Generation, PolicyRef, PolicyVersion, Position, Request
from streams.flow import lies_within
from streams.kafka_python import joining_ms
from streams.kafka_settings import KafkaSettings
from streams.posts import Post
from streams.ranges import read_events, requests_end
from streams.records import Received
from streams.stalls import StallWatch
from streams.topics import topic_name
from streams.working import Working, commit_owned, still_owned

FIRST_VERSION_WAIT_SECONDS = 2.0
NO_GRANT_WAIT_SECONDS = 0.25  # An announcement ends the wait; each round of a generator that waits costs 2 ms.
log = logging.getLogger(__name__)


def run_generator(
    post: Post,
    *,
    checkpoints: Path,
    seed: int,
    generation: GenerationSettings,
    encode_prompt: Encode,
    batch: BatchSettings,
    open_version: OpenVersion = LoadedVersion,
) -> None:
    """Write a group for every request that the learner has granted, with the newest version.

    open_version: determines where the policy runs: in this process or on a server. If the server is down, the generator
    pauses its partitions and waits. Past the time limit, the requests become dead letters, to be sent again.
    """
    producer = connect_producer(post.kafka, client_id=post.client)
    outbox = Outbox(producer, post.run, stage="generator", settings=post.delivery)
    consumer = connect_group_consumer(
        post.kafka,
        topic_name(post.run, "requests"),
        group=f"{post.run}.generator",
        member=post.client,
        records_max=post.delivery.records_max,
        begin=partial(_consumed, post.kafka, post.run),
    )
    shared = SharedCheckpoints(post.store, post.run, checkpoints) if post.store is not None else None
    versions = VersionFollower(post.kafka, post.run, checkpoints, post.delivery, open_version, shared)
    chunk = generation.chunk_groups or batch.groups
    waiting: list[Received] = []
    since = time.monotonic()
    wanted = 0
    stalls = StallWatch(post.delivery.stall_seconds, log, where=f"generator of run {post.run}")
    work = Working(
        consumer, post.stop, waiting=lambda: stalls.waiting_for(f"the policy, to answer {len(waiting)} requests")
    )
    try:
        while not post.stop():
            # If no request may be answered, only a newer version can change that. Without any version, wait longer,
            # since a broker that lacks CPU time answers late, and a poll that ends too soon forgets its request.
            no_version = FIRST_VERSION_WAIT_SECONDS if versions.loaded is None else NO_GRANT_WAIT_SECONDS
            versions.follow(outbox, wait_seconds=0.0 if wanted > 0 and versions.loaded is not None else no_version)
            wanted = min(chunk - len(waiting), _room(consumer, versions, batch))
            if versions.loaded is None:
                stalls.waiting_for("a policy version that can be loaded")
            elif not waiting:
                stalls.progress()  # Having no granted request is not a stall; `status` shows what it waits for.
            if wanted > 0 and versions.loaded is not None:
                fetched = _fetch(consumer, versions, batch, post.delivery, records_max=wanted)
                since = time.monotonic() if fetched or not waiting else since
                waiting += fetched
            elif consumer.assignment():  # Before it joins its group, there is no membership to keep alive.
                with paused(consumer) as keep_alive:
                    keep_alive()
            lingered = time.monotonic() - since > generation.linger_seconds
            if waiting and versions.loaded is not None and (len(waiting) >= chunk or wanted <= 0 or lingered):
                requests = decode_or_bury(waiting, Request, outbox)
                unfit: dict[Position, str] = {}
                write = partial(
                    _write_groups,
                    requests,
                    unfit,
                    sampler=versions.loaded.sampler,
                    tokenizer=versions.loaded.tokenizer,
                    tokenizer_sha256=versions.loaded.tokenizer_sha256,
                    encode_prompt=encode_prompt,
                    sampling=generation.sampling(),
                    seed=seed,
                    made_at_ms=now_ms(),
                )
                groups = with_retries(
                    partial(work, write), partial(_give_up, requests, unfit, outbox), consumer, post.stop, post.delivery
                )
                if groups is None:
                    break  # Stopped while waiting: nothing was decided, so nothing is committed.
                kept = still_owned(consumer, waiting)
                owned = {record.position: record for record in kept}
                for place, reason in unfit.items():
                    if place in owned:
                        outbox.bury(owned[place], reason)
                for group in groups:
                    if group.source in owned:
                        outbox.answer(owned[group.source], group)
                outbox.flush()
                commit_owned(consumer, kept)
                waiting = []
    finally:
        work.close()
        producer.close()
        consumer.close()


def run_learner(
    post: Post,
    *,
    run_dir: Path,
    batch: BatchSettings,
    learner: LearnerSettings,
    generation: GenerationSettings,
    updates_max: int,
    origin: str = "",
    probes: int = 0,
    processes: Processes = ALONE,
) -> None:
    """Turn rewards into policy versions, from the newest checkpoint on, until `stop` is set.

    updates_max: after this many steps since the warm-up, the learner stops learning and waits for `stop`; 0: no limit.
    origin: the run whose requests or generations were copied into this run's topics; "" if none was. probes: groups
    whose log-probabilities a version keeps, for servers that load it. processes: this one, of rank 0, among those that
    share each update; the others run `learner.helping`.
    Raises DeliveryError if another learner holds this run, because two learners would train every group twice.
    With a store, that may be one on another machine. A learner that goes on from another machine's work begins with the
    version that was announced last.
    """
    checkpoints = run_dir / "checkpoints"
    with only_learner(run_dir), Publishing(post, checkpoints, processes) as publishing:
        remove_unfinished(checkpoints)
        publishing.take_over()
        folder, manifest = load_current(checkpoints)
        state = Learner.resume(
            folder,
            manifest,
            run=post.run,
            settings=learner,
            no_repeat=generation.no_repeat,
            probes=probes,
            processes=processes,
        )
        producer = connect_producer(post.kafka, client_id=post.client)
        outbox = Outbox(producer, post.run, stage="learner", settings=post.delivery)
        try:
            stalls = StallWatch(post.delivery.stall_seconds, log, where=f"learner of run {post.run}")
            with Intake(
                post.run,
                post.kafka,
                post.delivery,
                batch,
                learner,
                manifest,
                outbox,
                versions=_kept_versions(checkpoints),
                origin=origin,
                member=post.client,
            ) as intake:
                intake.grant(_steps_left(state, updates_max))
                # Announce again: an earlier process may have ended between the checkpoint and its announcement.
                publishing.announce(outbox, state, folder, intake, update=True)
                publishing.retire_left(outbox, state.manifest.policy)
                begin_together(processes, folder)
                while not post.stop():
                    publishing.keep()
                    steps_left = _steps_left(state, updates_max)
                    if steps_left == 0:
                        post.stop.wait(post.delivery.poll_timeout_seconds)
                        continue
                    if not intake.ready():
                        if intake.read(step=state.step):
                            stalls.progress()
                        elif intake.grant(steps_left):
                            publishing.announce(outbox, state, folder, intake, update=False)
                        if intake.waits_for:
                            stalls.waiting_for(intake.waits_for)
                        else:
                            stalls.progress()
                        continue
                    began = time.time_ns()
                    folder = state.learn(intake.take(step=state.step), checkpoints)
                    stalls.progress()
                    intake.versions.add(state.manifest.policy)
                    intake.grant(_steps_left(state, updates_max))
                    publishing.announce(outbox, state, folder, intake, update=True, began_ns=began)
                    for retired in prune_checkpoints(
                        checkpoints, keep=learner.checkpoints_kept + batch.staleness_max, keep_every=learner.keep_every
                    ):
                        publishing.retire(outbox, retired)
        finally:
            producer.close()


def _kept_versions(checkpoints: Path) -> set[PolicyRef]:
    """Return the versions whose checkpoints exist; only these may have written a fresh group."""
    found = set()
    for folder in checkpoints.glob("*-*-*"):
        with suppress(CheckpointError):
            found.add(read_manifest(folder, verify=False).policy)
    return found


def _consumed(kafka: KafkaSettings, run: str) -> Mapping[int, int]:
    """Return the offset, per partition, below which the learner has used up the requests.

    A generator starts there if its group has no offsets. Kafka forgets a group's offsets after a week without
    members, and no request may be answered twice.
    """
    said = [event.requests_consumed for event in counted(read_events(kafka, run, PolicyVersion), run=run)]
    ends = requests_end(kafka, run)
    announced = [consumed for consumed in said if lies_within(consumed, ends)]
    partitions = {partition for consumed in announced for partition in consumed}
    return {each: max(consumed.get(each, 0) for consumed in announced) for each in partitions}


def _steps_left(state: Learner, updates_max: int) -> int | None:
    """Return the number of updates that may still be made; None if there is no limit."""
    return max(updates_max - state.step, 0) if updates_max else None


def _write_groups(
    requests: Sequence[tuple[Received, Request]], unfit: dict[Position, str], *, sampler: Sampler, **how: Any
) -> list[Generation]:
    """Return a group for each request; `unfit` gets the place of each whose prompt is too long, and why.

    Such a request would end every generator that meets it, and with them the run.
    """
    sound = [(record.position, request) for record, request in requests if record.position not in unfit]
    try:
        return generate_groups(sound, sampler=sampler, **how) if sound else []
    except PromptError as error:
        unfit |= {sound[place][0]: str(error) for place in error.prompts}
        return _write_groups(requests, unfit, sampler=sampler, **how)


def _give_up(
    requests: Sequence[tuple[Received, Request]],
    unfit: dict[Position, str],
    outbox: Outbox,
    error: TransientError,
    attempts: int,
) -> list[Generation]:
    """Put the requests into the dead letters; the batch that waits for them continues without them."""
    for record, _ in requests:
        outbox.bury(record, unfit.pop(record.position, str(error)), attempts=attempts)
    return []


def _room(consumer: KafkaConsumer, versions: VersionFollower, batch: BatchSettings) -> int:
    """Return the number of further requests that may be taken now, without the records already in hand."""
    assigned = consumer.assignment()
    if not assigned:
        return batch.groups  # Not assigned yet: only a poll can bring the assignment.
    return sum(_granted(consumer, versions, batch).values())


def _granted(consumer: KafkaConsumer, versions: VersionFollower, batch: BatchSettings) -> dict[Any, int]:
    """Return, per assigned partition, how many requests may be taken; 1 if reading has not begun there."""
    room = {}
    for item in consumer.assignment():
        at = known_position(consumer, item)
        room[item] = max(versions.admitted(item.partition, batch) - at, 0) if at is not None else 1
    return room


def _fetch(
    consumer: KafkaConsumer,
    versions: VersionFollower,
    batch: BatchSettings,
    delivery: DeliverySettings,
    *,
    records_max: int,
) -> list[Received]:
    """Return the next granted requests.

    What has been fetched before is taken partition by partition, no more than is granted. Taken from all at once, a
    record beyond the grant would be given back, and its partition fetched anew: that took 110 ms a batch.
    """
    room = _granted(consumer, versions, batch)
    found: list[Received] = []
    for item, count in room.items():
        if count and len(found) < records_max and item in consumer.assignment():
            found += _poll_granted(
                consumer,
                versions,
                batch,
                delivery,
                of={item},
                records_max=min(count, records_max - len(found)),
                timeout_seconds=joining_ms(consumer) / 1000,
            )
    with_room = {item for item, count in room.items() if count}
    return found or _poll_granted(consumer, versions, batch, delivery, of=with_room, records_max=records_max)


def _poll_granted(
    consumer: KafkaConsumer,
    versions: VersionFollower,
    batch: BatchSettings,
    delivery: DeliverySettings,
    *,
    of: Set[Any],
    records_max: int,
    timeout_seconds: float | None = None,
) -> list[Received]:
    """Return the next granted requests of these partitions; a record beyond the grant is returned to its partition."""
    consumer.pause(*(consumer.assignment() - of))
    consumer.resume(*(consumer.assignment() & of))
    granted: list[Received] = []
    beyond: dict[Any, int] = {}
    for record in poll(consumer, delivery, records_max=records_max, timeout_seconds=timeout_seconds):
        place = record.position
        if place.offset < versions.admitted(place.partition, batch):
            granted.append(record)
        else:
            beyond.setdefault(place.partition, place.offset)
    for item in consumer.assignment():
        if item.partition in beyond:
            consumer.seek(item, beyond[item.partition])
    return granted
