"""The post of a worker, from the app: the broker, and the store where machines share files."""

from __future__ import annotations

import msgspec

from infra.app.app import App
from streams.delivery import DeliverySettings
from streams.kafka_settings import KafkaSettings
from streams.posts import Post
from streams.stopping import Stop


def post_of(
    app: App, *, run: str, member: str, delivery: DeliverySettings, stop: Stop, topics: KafkaSettings | None = None
) -> Post:
    """Return the post of a worker. topics: the settings that the run was started with, for its numbers of partitions.

    member: the role and the worker's number.
    """
    kafka = app.connections.kafka
    if topics is not None:
        kafka = msgspec.structs.replace(kafka, partitions=topics.partitions, replication=topics.replication)
    store = app.store
    machine = app.installation if store is not None else ""
    return Post(run=run, member=member, kafka=kafka, delivery=delivery, stop=stop, store=store, machine=machine)
