"""The search environment's worker: it answers every group with the rewards of its candidates."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

from search_env.environments import Environment, Inputs
from streams.clients import KafkaSettings, connect_group_consumer, connect_producer
from streams.codec import content_sha256
from streams.delivery import DeliverySettings, Outbox, decode_or_bury, poll, with_retries
from streams.errors import TransientError
from streams.events import Generation, Reward
from streams.ranges import answered_generations
from streams.records import Received
from streams.stalls import StallWatch
from streams.stopping import Stop
from streams.topics import topic_name
from streams.working import Working, commit_owned, still_owned

log = logging.getLogger(__name__)


def run_environment(
    *,
    run: str,
    environment: Environment,
    kafka: KafkaSettings,
    delivery: DeliverySettings,
    member: str,
    stop: Stop,
) -> None:
    """Score every generation, in input order per partition, until `stop` is set.

    If the search engine is down, the worker pauses its partitions and waits. Past the time limit, the groups end as
    `failed` and become dead letters; they never get a reward of 0. However long the scoring takes, the worker stays a
    member of its group and commits each scored group once.
    """
    producer = connect_producer(kafka, client_id=f"{run}-{member}")
    outbox = Outbox(producer, run, stage="environment", settings=delivery)
    consumer = connect_group_consumer(
        kafka,
        topic_name(run, "generations"),
        group=f"{run}.environment",
        member=f"{run}-{member}",
        records_max=delivery.records_max,
        begin=partial(answered_generations, kafka, run),
    )
    stalls = StallWatch(delivery.stall_seconds, log, where=f"environment of run {run}")
    groups = 0
    work = Working(consumer, stop, waiting=lambda: stalls.waiting_for(f"the scores of {groups} groups"))
    try:
        while not stop():
            records = poll(consumer, delivery)
            stalls.progress()  # Having no generation to score is not a stall; `status` shows what it waits for.
            if not records:
                continue
            good = decode_or_bury(records, Generation, outbox)
            inputs = [(event, record.position, content_sha256(record.value or b"")) for record, event in good]
            groups = len(good)

            def score(inputs: Inputs = inputs) -> list[Reward] | None:
                stalls.waiting_for(f"the search engine, to score {len(inputs)} groups")
                return work(partial(environment.score_many, inputs))

            rewards = with_retries(score, partial(_give_up, environment, good, outbox), consumer, stop, delivery)
            if rewards is None:
                break  # Stopped while waiting: nothing was decided, so nothing is committed.
            kept = still_owned(consumer, records)
            owned = {record.position: record for record in kept}
            for reward in rewards:
                if reward.source in owned:
                    outbox.answer(owned[reward.source], reward)
            outbox.flush()
            commit_owned(consumer, kept)
    finally:
        work.close()
        producer.close()
        consumer.close()


def _give_up(
    environment: Environment,
    good: Sequence[tuple[Received, Generation]],
    outbox: Outbox,
    error: TransientError,
    attempts: int,
) -> list[Reward]:
    """End the groups as `failed`, and put their records into the dead letters, to be sent again."""
    for record, _ in good:
        outbox.bury(record, str(error), attempts=attempts)
    inputs = [(event, record.position, content_sha256(record.value or b"")) for record, event in good]
    return environment.failed_many(inputs, error=str(error))
