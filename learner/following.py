"""The newest policy version, followed on its topic: a generator writes with it and reads its admitted requests."""

from __future__ import annotations

import logging
from pathlib import Path

from kafka import TopicPartition

from learner.batches import BatchSettings
from learner.checkpoints import CheckpointError
from learner.policy import PolicyError
from learner.versions import LoadedVersion, OpenVersion, Version, well_named
from streams.clients import KafkaSettings, connect_consumer, partitions_of
from streams.delivery import DeliverySettings, Outbox, decode_or_bury, poll
from streams.errors import TransientError
from streams.events import PolicyRef, PolicyVersion
from streams.topics import topic_name, version_name

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
    ) -> None:
        """open_version: a function that opens the first version; later versions refresh it."""
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
        """Read the announcements since the last call, load the newest version, and return whether it changed."""
        records = poll(self._consumer, self._delivery, records_max=VERSIONS_MAX, timeout_seconds=wait_seconds)
        announced = decode_or_bury(records, PolicyVersion, outbox)
        published = [event for event in well_named(announced, outbox) if event.status == "published"]
        if published:
            self._wanted = published[-1]
        if self._wanted is None:
            return False
        newest, self._wanted = self._wanted, None
        if self._newest is not None and self._newest.policy == newest.policy:
            self._newest = newest  # The same version with more requests granted.
            return False
        try:
            self._load(self._root / newest.path, newest.policy)
        except TransientError as error:
            self._wanted = newest  # The server is down for now, and nobody will announce this version again.
            log.warning("%s", error)
            return False
        except (CheckpointError, PolicyError) as error:
            # If this version has been retired, a newer one is already on its way, and the previous one stays in use.
            # A generator that starts reads all announcements from the first, in parts, and meets many retired ones.
            log.warning("%s", error)
            return False
        self._newest = newest
        log.info("policy version %s", version_name(newest.policy))
        return True

    def _load(self, folder: Path, policy: PolicyRef) -> None:
        if self.loaded is None:
            self.loaded = self._open_version(folder, policy)
        else:
            self.loaded.refresh(folder, policy)
