"""The post of one worker: which run it works for, where the broker is, and how the worker is told to stop."""

from __future__ import annotations

import msgspec

from streams.delivery import DeliverySettings
from streams.kafka_settings import KafkaSettings
from streams.stopping import Stop


class Post(msgspec.Struct, frozen=True, kw_only=True):
    """A worker's run, broker and signal to stop. member: tells workers of one role apart, also after a restart."""

    run: str
    member: str
    kafka: KafkaSettings
    delivery: DeliverySettings
    stop: Stop

    @property
    def client(self) -> str:
        """Return the name under which the broker knows this worker."""
        return f"{self.run}-{self.member}"
