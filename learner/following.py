"""The newest policy version, followed on its topic: a generator writes with it and reads its admitted requests."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
from kafka import TopicPartition

from learner.batches import BatchSettings
from learner.checkpoints import CheckpointError
from learner.policy import PolicyError
from learner.shared_checkpoints import SharedCheckpoints
from learner.versions import LoadedVersion, OpenVersion, Version
from learner.vllm import VllmError
from streams.clients import connect_consumer, partitions_of
from streams.delivery import DeliverySettings, Outbox, decode_or_bury, poll
from streams.epochs import Epochs
from streams.errors import EventError, TransientError
from streams.events import PolicyRef, PolicyVersion
from streams.kafka_settings import KafkaSettings
from streams.names import version_folder
from streams.records import Received
from streams.topics import topic_name, version_name

REFUSALS_MAX = 3  # A server's refusals of one version, after which its generator ends with the last one.
REFUSED_PAUSE_SECONDS = 2.0
VERSIONS_MAX = 1000  # Announcements in one poll; a generator that starts tries to load the newest of each poll.
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
        shared: SharedCheckpoints | None = None,
    ) -> None:
        """open_version: a function that opens the first version; later versions refresh it.

        shared: where a version is fetched from that this machine lacks.
        """
        positions: dict[TopicPartition, int | None] = dict.fromkeys(
            partitions_of(kafka, [topic_name(run, "policy-versions")]), None
        )
        self._consumer = connect_consumer(kafka, positions, client_id=f"{run}-versions", records_max=VERSIONS_MAX)
        self._run = run
        self._delivery = delivery
        self._root = checkpoints.parent
        self._open_version = open_version
        self._shared = shared
        self._epochs = Epochs()
        self._newest: PolicyVersion | None = None
        self._wanted: list[PolicyVersion] = []
        self._refused: tuple[PolicyRef, int, float] | None = None  # Which version, how often, when to try again.
        self.loaded: Version | None = None

    def admitted(self, partition: int, batch: BatchSettings) -> int:
        """Return the offset below which requests of a partition may be answered with the loaded version.

        Without a learner, nobody grants requests; a partition may then be `batch.groups_ahead_max` ahead.
        """
        if self._newest is None:
            return 0
        if isinstance(self._newest.requests_admitted, dict):
            return self._newest.requests_admitted.get(partition, 0)
        return self._newest.requests_consumed.get(partition, 0) + batch.groups_ahead_max

    def follow(self, outbox: Outbox, *, wait_seconds: float) -> bool:
        """Read the announcements since the last call, load the newest version, and return whether it changed.

        Raises VllmError if a server refuses the first version, or a newer one again and again. Between its attempts the
        previous version stays in use.
        """
        records = poll(self._consumer, self._delivery, records_max=VERSIONS_MAX, timeout_seconds=wait_seconds)
        announced = well_named(decode_or_bury(records, PolicyVersion, outbox), outbox)
        self._wanted += [
            event
            for event in announced
            if event.run == self._run and self._epochs.admits(event) and event.status == "published"
        ]
        gone: set[PolicyRef] = set()
        for newest in reversed(self._wanted):
            if newest.policy in gone:
                continue
            known = self._newest is not None and self._newest.policy == newest.policy
            if self._refused is not None and self._refused[0] == newest.policy and time.monotonic() < self._refused[2]:
                return False
            try:
                if not known:
                    self._load(self._root / newest.path, newest)
            except TransientError as error:
                log.warning("%s", error)  # A server that is down now; nobody will announce this version again.
                return False
            except VllmError as error:
                self._count_refusal(newest.policy, error)
                return False
            except (CheckpointError, PolicyError) as error:
                # If this version has been retired, a newer one is already on its way, and the previous one stays in
                # use. A generator that starts reads all announcements from the first and meets many retired ones.
                if not gone:
                    log.warning("%s", error)
                gone.add(newest.policy)
                continue
            before = [self._newest] if known and self._newest is not None else []
            self._newest = _joined([*before, *(each for each in self._wanted if each.policy == newest.policy)])
            self._wanted = []
            if not known:
                log.info("policy version %s", version_name(newest.policy))
            return not known
        self._wanted = []
        return False

    def _count_refusal(self, policy: PolicyRef, error: VllmError) -> None:
        """Say once more that a server refuses a version; raise its refusal if that is no use."""
        times = self._refused[1] + 1 if self._refused is not None and self._refused[0] == policy else 1
        if self.loaded is None or times >= REFUSALS_MAX:
            raise error
        pause = REFUSED_PAUSE_SECONDS * 2.0 ** (times - 1)
        log.error("%s (attempt %d of %d, again in %.0f s)", error, times, REFUSALS_MAX, pause)
        self._refused = (policy, times, time.monotonic() + pause)

    def _load(self, folder: Path, announced: PolicyVersion) -> None:
        policy = announced.policy
        if self._shared is not None:
            told = announced.manifest_sha256 if isinstance(announced.manifest_sha256, str) else ""
            folder = self._shared.fetch(folder.name, manifest_sha256=told)
        if self.loaded is None:
            self.loaded = self._open_version(folder, policy)
        else:
            self.loaded.refresh(folder, policy)


def _joined(announced: Sequence[PolicyVersion]) -> PolicyVersion:
    """Return the newest announcement of one version with all that was granted with it: a grant is never taken back."""
    newest = announced[-1]
    grants = [each.requests_admitted for each in announced if isinstance(each.requests_admitted, dict)]
    if not grants or not isinstance(newest.requests_admitted, dict):
        return newest
    admitted = {
        partition: max(each.get(partition, 0) for each in grants)
        for partition in {partition for each in grants for partition in each}
    }
    return msgspec.structs.replace(newest, requests_admitted=admitted)


def well_named(announced: Sequence[tuple[Received, PolicyVersion]], outbox: Outbox) -> list[PolicyVersion]:
    """Return the announcements whose path names a checkpoint of the run; every other one becomes a dead letter.

    A path is joined to the run's folder, so an unchecked path could lead anywhere.
    """
    good = []
    for record, event in announced:
        try:
            version_folder(event.path, event.policy)
        except EventError as error:
            outbox.bury(record, str(error))
        else:
            good.append(event)
    return good
