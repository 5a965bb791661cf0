"""The search environment's worker: it answers every group with the rewards of its candidates."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from kafka import KafkaConsumer

from search_env.environments import Environment, Inputs
from streams.clients import connect_group_consumer, connect_producer
from streams.codec import content_sha256
from streams.delivery import Outbox, decode_or_bury, poll, with_retries
from streams.errors import TransientError
from streams.events import Generation, Reward
from streams.posts import Post
from streams.ranges import answered_generations
from streams.records import Received
from streams.stalls import StallWatch
from streams.topics import topic_name
from streams.working import Working, commit_owned, still_owned

log = logging.getLogger(__name__)


@contextmanager
def answering(post: Post) -> Iterator[tuple[KafkaConsumer, Outbox, StallWatch]]:
    """Give an environment's way in, its way out, and its watch, and close both ways after."""
    producer = connect_producer(post.kafka, client_id=post.client)
    outbox = Outbox(producer, post.run, stage="environment", settings=post.delivery)
    consumer = connect_group_consumer(
        post.kafka,
        topic_name(post.run, "generations"),
        group=f"{post.run}.environment",
        member=post.client,
        records_max=post.delivery.records_max,
        begin=partial(answered_generations, post.kafka, post.run),
    )
    stalls = StallWatch(post.delivery.stall_seconds, log, where=f"environment of run {post.run}")
    try:
        yield consumer, outbox, stalls
    finally:
        producer.close()
        consumer.close()


def run_environment(post: Post, environment: Environment) -> None:
    """Score every generation, in input order per partition, until `stop` is set.

    If the search engine is down, the worker pauses its partitions and waits. Past the time limit, the groups end as
    `failed` and become dead letters; they never get a reward of 0. However long the scoring takes, the worker stays a
    member of its group and commits each scored group once.
    """
    with answering(post) as (consumer, outbox, stalls):
        groups = 0
        work = Working(consumer, post.stop, waiting=lambda: stalls.waiting_for(f"the scores of {groups} groups"))
        try:
            while not post.stop():
                records = poll(consumer, post.delivery)
                stalls.progress()  # Having no generation to score is not a stall; `status` shows what it waits for.
                if not records:
                    continue
                good = decode_or_bury(records, Generation, outbox)
                inputs = [(event, record.position, content_sha256(record.value or b"")) for record, event in good]
                groups = len(good)

                def score(inputs: Inputs = inputs) -> list[Reward] | None:
                    stalls.waiting_for(f"the search engine, to score {len(inputs)} groups")
                    return work(partial(environment.score_many, inputs))

                rewards = with_retries(
                    score, partial(_give_up, environment, good, outbox), consumer, post.stop, post.delivery
                )
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
