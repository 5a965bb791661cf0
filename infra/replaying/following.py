"""Waiting for the updates of a replayed run until no further update can come."""

from __future__ import annotations

import logging
import time

from kafka import TopicPartition

from infra.app.app import App
from infra.app.progress import Report
from infra.app.run_settings import read_run_settings
from infra.runs.standing import what_it_waits_for
from infra.runs.supervisor import Supervisor
from streams.clients import connect_consumer, partitions_of
from streams.codec import decode
from streams.delivery import Outbox, decode_or_bury, poll
from streams.errors import EventError
from streams.events import Reward, Update
from streams.kafka_settings import KafkaSettings
from streams.lag import end_offsets, stage_lags
from streams.ranges import read_range
from streams.stalls import StallWatch
from streams.stopping import Stop
from streams.topics import topic_name

LOOK_SECONDS = 1.0
SETTLED_SECONDS = 5.0
log = logging.getLogger(__name__)


class TrainingRewards:
    """The rewards of a run that can still train: each is read once, and counted from the learner's positions on."""

    def __init__(self, kafka: KafkaSettings, run: str) -> None:
        self._kafka = kafka
        self._run = run
        self._places = partitions_of(kafka, [topic_name(run, "rewards")])
        self._read = dict.fromkeys(self._places, 0)
        self._groups: set[str] = set()
        self._offsets: dict[int, list[int]] = {place.partition: [] for place in self._places}

    def left(self, positions: dict[int, int]) -> int:
        """Return the number of groups of split "train" with a reward that the learner has not taken."""
        for place, end in end_offsets(self._kafka, self._places).items():
            for record in read_range(self._kafka, place, self._read[place], end, client_id=f"{self._run}-replay"):
                try:
                    reward = decode(record.value)
                except EventError:
                    continue  # The learner makes it a dead letter.
                if isinstance(reward, Reward) and reward.generation.request.split == "train":
                    if reward.group_id not in self._groups:
                        self._offsets[place.partition].append(record.position.offset)
                    self._groups.add(reward.group_id)
            self._read[place] = max(self._read[place], end)
        return sum(
            offset >= positions.get(partition, 0) for partition, found in self._offsets.items() for offset in found
        )


def follow_updates(
    app: App, run: str, outbox: Outbox, workers: Supervisor, *, base: int, limit: int, stop: Stop, report: Report
) -> None:
    """Return when a run's learner has made its `limit` updates and all is answered, or can make no more updates.

    base: the step at which the learner started. The learner can make no more updates when every request and generation
    is answered and no reward that may train is left. For a short batch at the end, this function waits as long as the
    learner does. A stop ends the wait at the next check.
    """
    kafka = app.connections.kafka
    settings = read_run_settings(app.home.run(run)).settings
    patience = settings.batch.wait_seconds + settings.delivery.stall_seconds
    announced = TopicPartition(topic_name(run, "updates"), 0)
    consumer = connect_consumer(kafka, {announced: None}, client_id=f"{run}-replay", records_max=500)
    rewards, positions, step = TrainingRewards(kafka, run), dict[int, int](), base
    stalls = StallWatch(settings.delivery.stall_seconds, log, where=f"run {run}")
    behind, looked = -1, -LOOK_SECONDS
    try:
        while not stop():
            workers.check()
            for _, update in decode_or_bury(poll(consumer, settings.delivery), Update, outbox):
                step, positions = max(step, update.policy.step), positions | update.positions
                report("updates", step - base, limit)
                stalls.progress()
            if time.monotonic() - looked < LOOK_SECONDS:
                continue
            looked = time.monotonic()
            now_behind = sum(stage.records for stage in stage_lags(kafka, run))
            if now_behind != behind:
                behind = now_behind
                stalls.progress()
            left = rewards.left(positions) if not behind else 0
            if not behind and (step >= base + limit or not left):
                return
            # A learner that has made all its updates grants no further requests, so the rest may never be answered.
            if stalls.waited_seconds > (SETTLED_SECONDS if step >= base + limit else patience):
                what = f"{left} groups" if left else f"{behind} records"
                log.warning("run %s: no further update can come; %s stay unused", run, what)
                return
            if stalls.due:
                stalls.waiting_for(what_it_waits_for(app, run))
    finally:
        consumer.close()
