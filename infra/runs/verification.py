"""The proof of a run, wired: its ledger, checkpoints and topics in the form that `storage.verification` takes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
from kafka import TopicPartition

from infra.app.app import App
from infra.app.home import SETTINGS_FILE, RunFolder, read_settings_file
from infra.runs.kept_checkpoints import read_head, read_kept
from infra.runs.living import living_workers
from learner.batches import BatchSettings
from search_env.feedback.snapshots import FeedbackError
from search_env.feedback.worker import read_positions
from services.errors import ServiceError
from storage.archive import ARCHIVE
from storage.errors import StorageError
from storage.ledger import LEDGER
from storage.verification.account import Account, Finding, Partition, one_line
from storage.verification.clicked import ClickTerms
from storage.verification.opening import open_for_proof
from storage.verification.verify import Circumstances, Topics, unreadable, verify_log
from streams.click_rewards import ClickRewardSettings
from streams.clients import committed_offsets, connect_admin, existing_topics, partitions_of
from streams.errors import DeliveryError, SettingsError
from streams.kafka_errors import told
from streams.kafka_settings import KafkaSettings
from streams.ranges import log_bounds, read_range
from streams.records import Received
from streams.refusals import KnownRun, RewardLimits
from streams.topics import TOPICS, topic_name
from streams.utility import UtilitySettings


class LearnerTable(msgspec.Struct, frozen=True, kw_only=True):
    """The part of `LearnerSettings` that the proof needs; the settings of an older run lack it."""

    limits: RewardLimits = RewardLimits()


class GenerationTable(msgspec.Struct, frozen=True, kw_only=True):
    """The part of `GenerationSettings` that the proof needs."""

    candidates: int = 0
    tokens_max: int = 0


class TrainTable(msgspec.Struct, frozen=True, kw_only=True):
    """The part of `TrainSettings` that the proof needs."""

    recipe: str = "leser"


class LeserTable(msgspec.Struct, frozen=True, kw_only=True):
    """The part of `LeserEnvironmentSettings` that the proof needs; the settings of an older run lack it."""

    rewards: str = "model"
    clicks: ClickRewardSettings = ClickRewardSettings()


class TermTables(msgspec.Struct, frozen=True, kw_only=True):
    """The tables of a run's settings that the proof needs."""

    batch: BatchSettings
    generation: GenerationTable = GenerationTable()
    learner: LearnerTable = LearnerTable()
    leser: LeserTable = LeserTable()
    train: TrainTable = TrainTable()
    utility: UtilitySettings = UtilitySettings()


class RunTerms(msgspec.Struct, frozen=True, kw_only=True):
    """The part of `RunSettings` that the proof needs."""

    settings: TermTables
    updates: int
    origin: str = ""


def run_names(app: App) -> list[str]:
    """Return the runs under this home that have a log.

    Raises StorageError if there is none.
    """
    found = sorted(path.name for path in app.home.runs.glob("*") if _has_log(path))
    if not found:
        raise StorageError(f"expected a run under {app.home.runs}, found none; train first")
    return found


def verify_run(app: App, name: str, *, rebuild: bool, offline: bool, trusted: str | None = None) -> Account:
    """Prove the contract of one run; damage becomes a finding.

    rebuild: read every record, not only the newest ones. offline: leave Kafka out. trusted: a seal or a hash that was
    kept
    elsewhere.
    Raises DeliveryError if Kafka or the run's topics are not there, StorageError if there is no log.
    """
    folder = app.home.existing_run(name)
    working = name in {run for run, _, _ in living_workers(app.home.runs)}
    topics = None if offline else run_topics(_kafka(app), name)
    return prove(folder, run=name, topics=topics, working=working, rebuild=rebuild, trusted=trusted)


def prove(
    folder: RunFolder, *, run: str, topics: Topics | None, working: bool, rebuild: bool, trusted: str | None = None
) -> Account:
    """Prove the contract of the run in a folder. topics: its topics in Kafka; None leaves Kafka out.

    working: whether a worker of the run is alive.
    Raises StorageError if there is no log.
    """
    if not _has_log(folder):
        raise StorageError(f"{folder}: expected {LEDGER} or {ARCHIVE}/, found neither; train first, or check the name")
    if odd := _no_files(folder):
        return unreadable(run, kafka=topics is not None, known=Circumstances(head=None, found=odd))
    known = msgspec.structs.replace(_circumstances(folder, run, working=working), joined=_joined(folder))
    log, found, foreign = open_for_proof(folder)
    known = msgspec.structs.replace(known, found=(*known.found, *found), foreign=foreign)
    if log is None:
        return unreadable(run, kafka=topics is not None, known=known)
    with log:
        return verify_log(
            log, run=run, topics=topics, known=known, rebuild=rebuild, trusted=trusted, memory=Path(folder)
        )


def run_topics(kafka: KafkaSettings, run: str) -> Topics:
    """Return the run's topics in Kafka, with functions that read them.

    Raises DeliveryError if the topics or the broker are not there.
    """
    names = existing_topics(kafka, [topic_name(run, topic.kind) for topic in TOPICS])
    if topic_name(run, "requests") not in names:
        raise DeliveryError(f"Kafka has no topics of run {run!r}; to prove the run without its topics: --offline")
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

    def held(partition: Partition, first: int, last: int) -> Iterator[int]:
        return (record.position.offset for record in read(partition, first, last + 1))

    ends = {(item.topic, item.partition): bounds for item, bounds in log_bounds(kafka, partitions).items()}
    return Topics(ends=ends, committed=committed, held=held, read=read)


def _kafka(app: App) -> KafkaSettings:
    """Return the settings of Kafka with its address.

    Raises DeliveryError if Kafka is ours and not up; the message names `--offline`.
    """
    if app.connections.kafka.bootstrap:
        return app.connections.kafka
    try:
        return app.at(app.local_services().endpoints()).connections.kafka
    except ServiceError as error:
        raise DeliveryError(f"{error}; or leave the topics out with --offline") from error


def _no_files(folder: RunFolder) -> list[Finding]:
    """Return a finding for each pipe, socket or device in place of a file, since reading one may never end."""
    what = "expected a file or a folder, got a pipe, a socket or a device; remove it"
    return [
        Finding(rule="everything can be read", where=str(path), what=what)
        for path in sorted(Path(parent, name) for parent, _, names in os.walk(folder) for name in names)
        if path.exists() and not path.is_file() and not path.is_dir()
    ]


def _circumstances(folder: RunFolder, run: str, *, working: bool) -> Circumstances:
    """Return the facts in the run's folder beside its log: settings and checkpoints."""
    checkpoints = folder.checkpoints
    if not checkpoints.is_dir():
        return Circumstances(head=None, kept=(), working=working)
    terms, found = None, []
    try:
        terms = read_settings_file(folder, RunTerms)
    except (SettingsError, OSError) as error:
        found.append(Finding(rule="everything can be read", where=str(folder / SETTINGS_FILE), what=one_line(error)))
    kept = read_kept(checkpoints)
    staleness_max = terms.settings.batch.staleness_max if terms else None
    head, wrong = read_head(checkpoints, kept, staleness_max=staleness_max)
    return Circumstances(
        head=head,
        kept=kept,
        updates=terms.updates if terms else None,
        terms=_known_run(run, terms) if terms else None,
        clicks=_click_terms(folder, terms.settings) if terms else None,
        working=working,
        found=(*found, *wrong),
    )


def _click_terms(folder: RunFolder, tables: TermTables) -> ClickTerms | None:
    """Return the terms of a run whose rewards are clicks; the live run lies beside it in the home."""
    if tables.train.recipe != "leser" or tables.leser.rewards != "clicks":
        return None
    clicks = tables.leser.clicks
    return ClickTerms(settings=clicks, utility=tables.utility, folder=folder.parent / clicks.live)


def _joined(folder: RunFolder) -> dict[tuple[str, int], int] | None:
    """Return how far the run's joiner has read; None if there is none, or if its state is damaged."""
    try:
        return read_positions(folder) or None
    except (FeedbackError, OSError):
        return None


def _known_run(run: str, terms: RunTerms) -> KnownRun:
    """Return the run's rules of refusal for any writer and any time; other rules check versions and age."""
    written = terms.settings.generation
    return KnownRun(
        run=run,
        step=sys.maxsize,
        staleness_max=terms.settings.batch.staleness_max,
        origin=terms.origin,
        limits=terms.settings.learner.limits.covering(candidates=written.candidates, tokens_max=written.tokens_max),
    )


def _has_log(folder: Path) -> bool:
    return (folder / LEDGER).exists() or (folder / ARCHIVE).is_dir()
