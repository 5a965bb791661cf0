"""The right to be a run's only learner, or its only sink, on whichever machine.

A file lock ends at its machine's edge. Here the broker decides: the holder is the one member of a consumer group to
which it has given the single partition of the run's `policy-versions`. A second candidate is refused while the holder
lives. A holder that the broker has not heard for `kafka.session_timeout_seconds` has lost its right.

It may not know that yet: its machine was paused, or cut off. So a learner also writes its *epoch* into each
announcement, and all readers ignore those of one that has lost its right (`streams.epochs`). An epoch is above every
epoch in the log when its holder begins.
"""

from __future__ import annotations

import time
from contextlib import suppress
from types import TracebackType

import msgspec
from kafka.admin import MemberToRemove
from kafka.errors import KafkaError
from kafka.structs import TopicPartition

from streams.clients import connect_admin, connect_group_consumer, partitions_of
from streams.codec import decode
from streams.delivery import DeliverySettings, poll
from streams.epochs import EPOCH, HOLDER, Epochs
from streams.errors import DeliveryError, EventError, SearchloopError
from streams.events import PolicyVersion
from streams.group_ownership import describe_group
from streams.kafka_settings import KafkaSettings
from streams.lag import end_offsets
from streams.topics import topic_name, version_name

ANNOUNCER = "learner"  # The one role that writes epochs.
JOIN_SECONDS = 30.0
SLACK_SECONDS = 2.0
LOOK_SECONDS = 0.5
PATIENT_SECONDS = 86_400.0  # An update may take long between two looks; heartbeats alone tell that the holder lives.


class LeaseError(DeliveryError):
    """Somebody else is the run's learner or sink."""


class Lease:
    """The right of one role of a run; use it as a context manager, and look at it often with `keep`."""

    def __init__(self, run: str, role: str, *, machine: str, kafka: KafkaSettings, delivery: DeliverySettings) -> None:
        """machine: id of the home, the same after a restart, so that a killed holder can go on at once.

        `last` is the newest published version that counts, as far as the log was read; None if there is none.
        `announced` has each version's last announcement that counts, by name, as the log was when this learner began.
        """
        self._run, self._role = run, role
        self._member = f"{run}-{role}-{machine}"
        self._kafka = msgspec.structs.replace(kafka, poll_interval_seconds_max=PATIENT_SECONDS)
        self._delivery = delivery
        self._topic = topic_name(run, "policy-versions")
        self._group = f"{run}.{role}"
        self._epochs = Epochs()
        self.epoch = 0
        self.last: PolicyVersion | None = None
        self.announced: dict[str, PolicyVersion] = {}

    @property
    def holder(self) -> str:
        """Return the name that this holder writes beside its epoch."""
        return self._member

    @property
    def headers(self) -> tuple[tuple[str, bytes], ...]:
        """Return the headers of an update that this holder announces."""
        return (EPOCH, str(self.epoch).encode()), (HOLDER, self._member.encode())

    def __enter__(self) -> Lease:
        """Take the right, as soon as the broker has forgotten a holder that ended without a word.

        Raises LeaseError if a holder on another machine lives.
        """
        self._wait_for_the_dead()
        self._consumer = connect_group_consumer(
            self._kafka, self._topic, group=self._group, member=self._member, records_max=1000
        )
        try:
            deadline = time.monotonic() + JOIN_SECONDS
            while not self._consumer.assignment():
                self._read(0.2)
                if time.monotonic() > deadline:
                    raise LeaseError(self._refusal(f"the broker gave the right to {', '.join(self._others())}"))
            ends = end_offsets(self._kafka, partitions_of(self._kafka, [self._topic]))
            while not self._has_read(ends):
                self._read(0.5)
        except BaseException:
            self._consumer.close()
            raise
        self.epoch = self._epochs.newest + 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the right back at once, unless it is lost: Kafka waits for a member that only stops."""
        held = not isinstance(error, DeliveryError) and bool(self._consumer.assignment())
        self._consumer.close()
        if held:
            self._leave()

    def keep(self) -> None:
        """Return if this holder still has its right. Raises LeaseError if it is lost or somebody else has begun."""
        self._read(0.0)
        if not self._consumer.assignment():
            raise LeaseError(self._refusal("the broker has given this one's right away, after a silence"))
        if self._role != ANNOUNCER:
            return  # The epochs that it reads are those of learners.
        if self._epochs.newest > self.epoch or (
            self._epochs.newest == self.epoch and self._epochs.holder != self._member
        ):
            raise LeaseError(self._refusal(f"{self._epochs.holder} has begun epoch {self._epochs.newest}"))

    def _read(self, seconds: float) -> None:
        for record in poll(self._consumer, self._delivery, timeout_seconds=seconds):
            try:
                event = decode(record.value)
            except EventError:
                continue
            if isinstance(event, PolicyVersion) and event.run == self._run and self._epochs.admits(event):
                self.last = event if event.status == "published" else self.last
                if not self.epoch and self._role == ANNOUNCER:
                    slim = msgspec.structs.replace(event, requests_consumed={}, requests_admitted=msgspec.UNSET)
                    self.announced[version_name(event.policy)] = slim

    def _has_read(self, ends: dict[TopicPartition, int]) -> bool:
        return all(self._consumer.position(item) >= end for item, end in ends.items())

    def _wait_for_the_dead(self) -> None:
        deadline = time.monotonic() + self._kafka.session_timeout_seconds + SLACK_SECONDS
        while other := self._others():
            if time.monotonic() > deadline:
                raise LeaseError(self._refusal(f"{other[0]} is its {self._role}"))
            time.sleep(LOOK_SECONDS)

    def _others(self) -> list[str]:
        """Return the members of the group from other machines that the broker believes alive."""
        admin = connect_admin(self._kafka)
        try:
            members = describe_group(admin, self._group).get("members") or ()
        finally:
            admin.close()
        names = [str(member.get("client_id")) for member in members]
        return sorted(name for name in names if name != self._member)

    def _leave(self) -> None:
        """Tell the broker that this member is gone. If that fails, the broker notices after the session timeout."""
        with suppress(SearchloopError, KafkaError):
            admin = connect_admin(self._kafka)
            try:
                admin.remove_group_members(self._group, [MemberToRemove(group_instance_id=self._member)])
            finally:
                admin.close()

    def _refusal(self, why: str) -> str:
        return (
            f"run {self._run!r}: expected to be its only {self._role}, but {why}. Stop one of the two: a killed one is "
            f"forgotten {self._kafka.session_timeout_seconds:g} s after its end"
        )
