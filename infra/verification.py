"""The proof of a run, wired: its ledger, its checkpoints and its topics, as `storage.verification` wants them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
from kafka import TopicPartition

from infra.context import App
from infra.home import read_settings_file
from infra.services.errors import ServiceError
from learner.batches import BatchSettings
from learner.checkpoints import CURRENT, CheckpointError, load_current, read_manifest
from storage.errors import StorageError
from storage.log import open_log
from storage.verification.account import Account, Finding, Partition
from storage.verification.gradients import Head
from storage.verification.verify import Topics, verify_log
from streams.clients import KafkaSettings, committed_offsets, connect_admin, existing_topics, partitions_of
from streams.delivery import Received
from streams.errors import DeliveryError
from streams.events import PolicyRef
from streams.kafka_errors import told
from streams.ranges import log_bounds, read_range
from streams.topics import TOPICS, topic_name


class BatchTable(msgspec.Struct, frozen=True, kw_only=True):
    """The one table of a run's settings that the proof needs."""

    batch: BatchSettings


class BatchRun(msgspec.Struct, frozen=True, kw_only=True):
    """What the proof needs of `RunSettings`."""

    settings: BatchTable


def run_names(app: App) -> list[str]:
    """Return the runs under this home that have a log.

    Raises StorageError if there is none.
    """
    found = sorted(path.name for path in app.home.runs.glob("*") if _has_log(path))
    if not found:
        raise StorageError(f"expected a run under {app.home.runs}, found none; train first")
    return found


def verify_run(app: App, name: str, *, rebuild: bool, offline: bool) -> Account:
    """Prove the contract for one run.

    rebuild: also build the ledger anew from the log and compare. offline: leave Kafka out.
    Raises DeliveryError or ServiceError if Kafka or the run's topics are not there, StorageError if the ledger is not.
    """
    folder = app.home.existing_run(name)
    head, found = _head(folder)
    with open_log(folder) as log:
        topics = None if offline else run_topics(_kafka(app), name)
        return verify_log(log, run=name, topics=topics, head=head, found=found, rebuild=rebuild)


def run_topics(kafka: KafkaSettings, run: str) -> Topics:
    """Return what Kafka holds of a run's topics, and how to look into them.

    Raises DeliveryError if the topics or the broker are not there.
    """
    names = existing_topics(kafka, [topic_name(run, topic.kind) for topic in TOPICS])
    if topic_name(run, "requests") not in names:
        raise DeliveryError(
            f"Kafka has no topics of run {run!r}; to prove what else there is, leave them out: --offline"
        )
    partitions = partitions_of(kafka, names)
    committed: dict[Partition, int] = {}
    admin = connect_admin(kafka)
    try:
        for stage in ("generator", "environment"):
            with told(f"could not ask how far the {stage} of run {run!r} is"):
                found = committed_offsets(admin, f"{run}.{stage}")
            committed |= {(item.topic, item.partition): offset for item, offset in found.items()}
    finally:
        admin.close()

    def read(partition: Partition, first: int, end: int) -> Iterator[Received]:
        return read_range(kafka, TopicPartition(*partition), first, end, client_id=f"{run}-verify")

    def held(partition: Partition, first: int, last: int) -> list[int]:
        return [record.position.offset for record in read(partition, first, last + 1)]

    ends = {(item.topic, item.partition): bounds for item, bounds in log_bounds(kafka, partitions).items()}
    return Topics(ends=ends, committed=committed, held=held, read=read)


def _kafka(app: App) -> KafkaSettings:
    """Return where Kafka answers.

    Raises ServiceError if it is ours and not up, and says how to go on without it.
    """
    if app.connections.kafka.bootstrap:
        return app.connections.kafka
    try:
        return app.at(app.local_services().endpoints()).connections.kafka
    except ServiceError as error:
        raise DeliveryError(f"{error}; or leave the topics out with --offline") from error


def _head(folder: Path) -> tuple[Head | None, list[Finding]]:
    """Return what the newest whole checkpoint says, and a finding if it is not the one that CURRENT names."""
    checkpoints = folder / "checkpoints"
    if not checkpoints.is_dir():
        return None, []
    named = (checkpoints / CURRENT).read_text(errors="replace").strip() if (checkpoints / CURRENT).exists() else ""
    try:
        found, manifest = load_current(checkpoints)
    except CheckpointError as error:
        return None, [Finding(rule="checkpoints", where=str(checkpoints), what=str(error))]
    staleness_max = read_settings_file(folder, BatchRun).settings.batch.staleness_max
    head = Head(
        policy=manifest.policy,
        update=manifest.update,
        positions=manifest.positions,
        staleness_max=staleness_max,
        origins=tuple(_origins(checkpoints)),
    )
    if found.name == named:
        return head, []
    what = f"names {named!r}, which is missing or damaged; {found.name} is the newest one that is whole"
    return head, [Finding(rule="checkpoints", where=str(checkpoints / CURRENT), what=what)]


def _origins(checkpoints: Path) -> Iterator[PolicyRef]:
    for folder in checkpoints.glob("*-*-*"):
        try:
            manifest = read_manifest(folder, verify=False)
        except CheckpointError:
            continue  # Of the one that counts, `load_current` has spoken.
        if manifest.parent is None:
            yield manifest.policy


def _has_log(folder: Path) -> bool:
    return (folder / "searchloop.duckdb").exists() or (folder / "archive").is_dir()
