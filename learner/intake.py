"""The learner's intake: rewards in the order of their grants, and grants for further requests."""

from __future__ import annotations

import time
from types import TracebackType

from kafka import TopicPartition

from learner.admission import Admission
from learner.batches import Batch, BatchAssembler, BatchSettings
from learner.checkpoints import Manifest
from learner.claims import is_chosen
from learner.learning import LearnerSettings
from streams.clients import connect_consumer, follow_partitions, partitions_of
from streams.delivery import DeliverySettings, Outbox, decode_or_bury, poll
from streams.epochs import counted
from streams.events import PolicyRef, PolicyVersion, Position, Reward
from streams.flow import RunFlow, lies_within
from streams.kafka_settings import KafkaSettings
from streams.ranges import RecordReader, read_events, requests_end
from streams.records import Received
from streams.refusals import KnownRun, content_agrees, is_recorded, refusal, unlike_source
from streams.resending import place_text
from streams.topics import topic_name
from streams.tracing import current_tracing

QUIET_SECONDS = 2.0  # After this long without a reward, ask whether the owed rewards will ever come.


class Intake:
    """The learner's side of the stream. Use it as a context manager."""

    def __init__(
        self,
        run: str,
        kafka: KafkaSettings,
        delivery: DeliverySettings,
        batch: BatchSettings,
        learner: LearnerSettings,
        manifest: Manifest,
        outbox: Outbox,
        *,
        versions: set[PolicyRef],
        origin: str,
        member: str,
    ) -> None:
        """manifest: where reading and learning continue. outbox: takes rewards that may not teach.

        versions: versions that may have written a fresh group; the learner adds each version that it makes. origin: see
        `streams.refusals.KnownRun`.
        """
        self.versions = versions
        self._run = run
        self._origin = origin
        self._learner = learner
        self._topic = topic_name(run, "rewards")
        self._delivery = delivery
        self._batch = batch
        self._outbox = outbox
        announced = counted(read_events(kafka, run, PolicyVersion), run=run)
        ends = requests_end(kafka, run)
        grants = [
            event.requests_admitted
            for event in announced
            if isinstance(event.requests_admitted, dict) and lies_within(event.requests_admitted, ends)
        ]
        self._admission = Admission(used=manifest.requests_consumed, announced=grants)
        self._assembler = BatchAssembler(
            batch,
            positions=manifest.positions,
            requests_consumed=manifest.requests_consumed,
            recent_groups=manifest.recent_groups,
            low_water=manifest.low_water,
            admission=self._admission,
        )
        self._positions = dict(manifest.positions)
        start: dict[TopicPartition, int | None] = {
            item: manifest.positions.get(item.partition) for item in partitions_of(kafka, [self._topic])
        }
        self._flow = RunFlow(kafka, run)
        self._sources = RecordReader(kafka, client_id=f"{member}-sources")
        self._consumer = connect_consumer(kafka, start, client_id=member, records_max=delivery.records_max)
        self._last_reward = self._asked = time.monotonic()

    def __enter__(self) -> Intake:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._consumer.close()
        self._sources.close()
        self._flow.__exit__()

    @property
    def granted(self) -> dict[int, int]:
        """Return, per partition, the offset below which requests may be answered."""
        return self._admission.granted

    @property
    def consumed(self) -> dict[int, int]:
        """Return, per partition, the offset below which every request is used up, by an update or without a reward."""
        return self._assembler.requests_consumed

    def ready(self) -> bool:
        """Return whether a batch can be taken: a full one, or a partial one if no reward has come for a long time."""
        if self._assembler.full:
            return True
        return self._assembler.dry and time.monotonic() - self._last_reward > self._batch.wait_seconds

    @property
    def waits_for(self) -> str:
        """Return the rewards that the next batch waits for, as text; "" if no reward is owed."""
        owed, waiting = self._admission.owed, self._assembler.waiting
        if not owed:
            return ""
        return f"the rewards of {owed} requests that may be answered; {waiting} of {self._batch.groups} groups are here"

    def read(self, *, step: int) -> bool:
        """Take the next rewards and return whether any came; rewards that may not teach go to the dead letters.

        step: the number of steps that the policy has made.
        """
        follow_partitions(self._consumer, [self._topic])
        records = poll(self._consumer, self._delivery)
        known, tracing = self._known(step), current_tracing()
        good: dict[Position, Reward] = {}
        for record, reward in decode_or_bury(records, Reward, self._outbox):
            if reason := self._refusal(record, reward, known):
                self._outbox.bury(record, reason)
            else:
                good[record.position] = reward
                if tracing is not None:
                    tracing.waits(reward.group_id, record)
        self._outbox.flush()
        for record in records:
            self._assembler.add(record.position, good.get(record.position))
            self._positions[record.position.partition] = record.position.offset + 1
        if records:
            self._last_reward = time.monotonic()
        return bool(records)

    def take(self, *, step: int) -> Batch:
        """Cut the next batch for a policy that has made `step` steps."""
        return self._assembler.take(step=step)

    def grant(self, steps_left: int | None) -> bool:
        """Grant the requests that may be answered now, and return whether there are new ones.

        steps_left: updates still to be made. No more requests are granted than these updates can use. None: no limit.
        """
        quiet = min(time.monotonic() - self._last_reward, time.monotonic() - self._asked)
        if self._admission.owed and quiet > QUIET_SECONDS:
            self._asked = time.monotonic()
            for partition, offset in self._flow.over(self._positions).items():
                self._admission.end(partition, offset)
        ahead = self._batch.groups_ahead_max
        if steps_left is not None:
            ahead = min(ahead, steps_left * self._batch.groups)
        room = ahead - self._assembler.waiting
        return room > self._admission.owed and self._admission.grant(self._flow.published(), groups_max=room)

    def _known(self, step: int) -> KnownRun:
        return KnownRun(
            run=self._run,
            step=step,
            staleness_max=self._batch.staleness_max,
            origin=self._origin,
            versions={(each.lineage, each.step): each.sha256 for each in self.versions},
            limits=self._learner.limits,
        )

    def _refusal(self, record: Received, reward: Reward, known: KnownRun) -> str:
        """Return why a reward may not teach, or "" if it may. Rewards of other splits pass: they never teach."""
        if reward.generation.request.split != "train":
            return ""
        if reason := refusal(reward, known):
            return reason
        if record.position.partition != reward.source.partition:
            return (
                f"expected a reward in its generation's partition, {reward.source.partition}, got it in "
                f"{record.position.partition}"
            )
        if not is_recorded(reward, known) and not self._is_published(asked := reward.generation.source):
            return f"expected a request that the log holds, got {place_text(asked)}, which lies beyond its end"
        if content_agrees(reward) and not is_chosen(reward.group_id, self._learner.claims.share):
            return ""
        found = self._sources.read(reward.source)
        if found is None:
            return f"expected a record at {place_text(reward.source)}, which it answers, found none"
        return unlike_source(reward, found.value)

    def _is_published(self, request: Position) -> bool:
        """Return whether the log holds a request at this place; one that does not exist would count as used up."""
        if request.offset < self._admission.granted.get(request.partition, 0):
            return True
        return request.offset < self._flow.published().get(request.partition, 0)
