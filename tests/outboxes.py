"""An outbox for a test that writes into a run's topics itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from streams.clients import connect_producer
from streams.delivery import DeliverySettings, Outbox
from streams.kafka_settings import KafkaSettings


@contextmanager
def opened_outbox(
    kafka: KafkaSettings, run: str, *, stage: str = "test", settings: DeliverySettings | None = None
) -> Iterator[Outbox]:
    """Give an outbox whose producer is closed at the end."""
    producer = connect_producer(kafka, client_id="test")
    try:
        yield Outbox(producer, run, stage=stage, settings=settings or DeliverySettings())
    finally:
        producer.close()
