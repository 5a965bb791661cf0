"""The post of one worker: which run it works for, where the broker is, and how the worker is told to stop."""

from __future__ import annotations

import msgspec

from streams.delivery import DeliverySettings
from streams.kafka_settings import KafkaSettings
from streams.shared_store import SharedStore
from streams.stopping import Stop


class Post(msgspec.Struct, frozen=True, kw_only=True):
    """A worker's run, broker and signal to stop. member: tells workers of one role apart, also after a restart.

    store: where the run's machines share files; None if one machine does all. machine: id of this one's home.
    """

    run: str
    member: str
    kafka: KafkaSettings
    delivery: DeliverySettings
    stop: Stop
    store: SharedStore | None = None
    machine: str = ""

    @property
    def client(self) -> str:
        """Return the name under which the broker knows this worker."""
        return f"{self.run}-{self.member}"
