"""What somebody does to the topics of a run: forgotten offsets, partitions that are added, rewards that are poison."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
from kafka import TopicPartition

from infra.app.app import App
from infra.recipes.recipe import Prepared
from storage.log import open_log
from streams.clients import connect_admin, connect_producer
from streams.delivery import DeliverySettings, Outbox
from streams.events import Outcome, PolicyRef, Request, Reward
from streams.topics import topic_name
from tests.faults.progress import Progress, watched
from tests.faults.results import Row
from tests.faults.world import SETTINGS, World, end_in_order, open_run, proved, stream_during

PARTITIONS_ADDED_MAX = 4  # Each new one costs every worker an assignment; a few show what many would.


def forget_offsets(world: World, *, dose: int) -> list[Row]:
    """Delete the offsets of the generator and the environment so often between two starts of a run; return a row."""
    began, run, recovery = time.monotonic(), "offsets-forgotten", list[float]()
    app, prepared = open_run(world.app, run, SETTINGS)
    for _ in range(dose):

        def work(ended: threading.Event) -> None:
            at = time.monotonic()
            with watched(app, run) as progress:
                progress.wait("learner", progress.of("learner") + 1, ended)
            recovery.append(time.monotonic() - at)

        stream_during(app, prepared, work)
        admin = connect_admin(app.connections.kafka)
        admin.delete_groups([f"{run}.generator", f"{run}.environment"])
        admin.close()
    end_in_order(app, prepared)
    held = f"{_repeated(app, run)} groups asked for again"
    return [proved(app, run, fault="lost offsets", dose=dose, recovery=recovery, held=held, began=began)]


def add_partitions(world: World, *, dose: int) -> list[Row]:
    """Add partitions to the requests of a running loop, one after the other, with requests in each; return a row."""
    began, run, recovery = time.monotonic(), "partition-added", list[float]()
    app, prepared = open_run(world.app, run, SETTINGS)
    added = min(dose, PARTITIONS_ADDED_MAX)

    def work(ended: threading.Event) -> None:
        with watched(app, run) as progress:
            progress.wait("learner", progress.of("learner"), ended)
            for number in range(1, added + 1):
                admin = connect_admin(app.connections.kafka)
                admin.create_partitions({topic_name(run, "requests"): number + 1})
                admin.close()
                at = time.monotonic()
                with _outbox(app, run) as outbox:
                    for request in _requests(prepared, number):
                        outbox.send(request, partition=number)
                    outbox.flush()
                _answered(app, run, number, progress, ended)
                recovery.append(time.monotonic() - at)

    stream_during(app, prepared, work)
    end_in_order(app, prepared)
    held = "requests of each new partition are answered"
    return [proved(app, run, fault="partition added", dose=added, recovery=recovery, held=held, began=began)]


def poison_rewards(world: World, *, dose: int) -> list[Row]:
    """Write so many rewards that must be refused into the topic of a running loop; return a row."""
    began, run, recovery = time.monotonic(), "rewards-poisoned", list[float]()
    app, prepared = open_run(world.app, run, SETTINGS)

    def work(ended: threading.Event) -> None:
        with watched(app, run) as progress:
            progress.wait("learner", progress.of("learner") + 1, ended)
            for number in range(dose):
                good = _a_reward(app, run)
                before = progress.of("learner")
                at = time.monotonic()
                with _outbox(app, run) as outbox:
                    outbox.send(POISONS[number % len(POISONS)](good), partition=0)
                    outbox.flush()
                progress.wait("learner", before, ended)
                recovery.append(time.monotonic() - at)

    stream_during(app, prepared, work)
    end_in_order(app, prepared)
    with open_log(app.home.run(run)) as log:
        (row,) = log.rows("SELECT count(*) AS n FROM dead_letter WHERE stage = 'learner'")
    result = proved(
        app, run, fault="poisoned reward", dose=dose, recovery=recovery, held=f"{row['n']} refused", began=began
    )
    if row["n"] != dose:
        result = msgspec.structs.replace(result, broken=(*result.broken, f"{row['n']} of {dose} were refused"))
    return [result]


def _beyond_bounds(reward: Reward) -> Reward:
    first, *others = reward.outcomes
    poisoned = msgspec.structs.replace(first, status="scored", valid=True, reward=1e30)
    return msgspec.structs.replace(reward, outcomes=(poisoned, *others))


def _of_the_future(reward: Reward) -> Reward:
    policy = PolicyRef(lineage="9-ffffff", step=10**9, sha256="f" * 64)
    return msgspec.structs.replace(reward, generation=msgspec.structs.replace(reward.generation, policy=policy))


def _of_another_id(reward: Reward) -> Reward:
    name = "00000000-0000-5000-8000-000000000000"
    generation = msgspec.structs.replace(reward.generation, group_id=name)
    return msgspec.structs.replace(reward, group_id=name, generation=generation)


def _of_other_texts(reward: Reward) -> Reward:
    outcomes = tuple(Outcome(status="scored", valid=True, reward=float(place)) for place in range(len(reward.outcomes)))
    first, *others = reward.generation.completions
    completions = (msgspec.structs.replace(first, text=first.text + " x"), *others)
    generation = msgspec.structs.replace(reward.generation, completions=completions)
    return msgspec.structs.replace(reward, generation=generation, outcomes=outcomes)


POISONS = (_beyond_bounds, _of_the_future, _of_another_id, _of_other_texts)


def _requests(prepared: Prepared, number: int) -> Iterator[Request]:
    for place in range(SETTINGS.batch.groups):
        asked = prepared.asked[(number * SETTINGS.batch.groups + place) % len(prepared.asked)]
        yield msgspec.structs.replace(asked, request_id=f"added-{number}-{place}", run=prepared.run)


def _answered(app: App, run: str, number: int, progress: Progress, ended: threading.Event) -> None:
    """Return when the rewards topic has a record in this partition."""
    place = TopicPartition(topic_name(run, "rewards"), number)
    while True:
        progress.wait("learner", progress.of("learner"), ended)
        admin = connect_admin(app.connections.kafka)
        try:
            if number + 1 <= len(admin.describe_topics([place.topic])[0]["partitions"]):
                ends = admin.list_partition_offsets({place: -1})
                if int(ends[place].offset) >= SETTINGS.batch.groups:
                    return
        finally:
            admin.close()


def _a_reward(app: App, run: str) -> Reward:
    with open_log(app.home.run(run)) as log:
        *_, reward = (event for _, event in log.events(Reward))
    return reward


def _repeated(app: App, run: str) -> int:
    with open_log(app.home.run(run)) as log:
        groups = [event.generation.source for _, event in log.events(Reward)]
    return len(groups) - len(set(groups))


@contextmanager
def _outbox(app: App, run: str) -> Iterator[Outbox]:
    """Give an outbox to the run's topics, as somebody else would have it."""
    producer = connect_producer(app.connections.kafka, client_id=f"{run}-harm")
    try:
        yield Outbox(producer, run, stage="test", settings=DeliverySettings())
    finally:
        producer.close()
