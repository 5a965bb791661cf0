"""The way from the spool to Kafka: a thread that sends records in order, for as long as it takes."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import zlib
from collections.abc import Callable

from kafka import KafkaProducer

from streams.clients import connect_producer, partitions_of
from streams.delivery import DeliverySettings, Outbox
from streams.errors import SearchloopError
from streams.kafka_settings import KafkaSettings
from streams.spool import Spool, Spooled
from streams.topics import topic_name
from streams.tracing import current_tracing

log = logging.getLogger(__name__)

AT_ONCE = 1_000
PAUSE_SECONDS = 1.0
LOOK_SECONDS = 0.05


class Forwarder:
    """Sends what a spool holds to a run's topics, and moves the spool's position when Kafka has it."""

    def __init__(
        self, spool: Spool, run: str, kafka: KafkaSettings, delivery: DeliverySettings, prepare: Callable[[], None]
    ) -> None:
        """prepare: makes the run's topics; called whenever Kafka is found, because it may be away at the start."""
        self._prepare = prepare
        self._spool = spool
        self._run = run
        self._kafka = kafka
        self._delivery = delivery
        self._stop = threading.Event()
        self._left = threading.Event()  # The spool may belong to another process now.
        self._partitions: dict[str, int] = {}
        self.trouble = ""  # The last failure; "" while records go through.
        self.sent = 0
        self._thread = threading.Thread(target=self._work, name="searchloop-forward", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """Send what there is, for at most so long, and end. What stays is sent by the next server.

        While Kafka is away, this does not wait: the events are safe on disk.
        """
        self._stop.set()
        deadline = time.monotonic() + seconds
        while self._thread.is_alive() and self._spool.waiting_bytes and not self.trouble:
            if time.monotonic() >= deadline:
                break
            self._thread.join(LOOK_SECONDS)
        self._left.set()
        self._thread.join(LOOK_SECONDS)

    def _work(self) -> None:
        producer: KafkaProducer | None = None
        while True:
            last = self._stop.is_set()
            try:
                if producer is None:
                    self._prepare()
                    producer = connect_producer(self._kafka, client_id=f"{self._run}-serve")
                while self._send_some(producer):
                    pass
                self.trouble = ""
            except Exception as error:  # Whatever it is: without this thread events would wait on disk for ever.
                said = str(error) or type(error).__name__
                if said != self.trouble:
                    expected = isinstance(error, SearchloopError)
                    log.warning("events wait on disk: %s", said, exc_info=None if expected else error)
                self.trouble = said
                if producer is not None:
                    with contextlib.suppress(Exception):
                        producer.close()
                    producer = None
                if last or self._stop.wait(PAUSE_SECONDS):
                    break
                continue
            if last:
                break
            self._spool.wait(PAUSE_SECONDS / 2)
        if producer is not None:
            producer.close()

    def _send_some(self, producer: KafkaProducer) -> bool:
        if self._left.is_set():
            return False
        records, place = self._spool.read(AT_ONCE)
        if not records:
            return False
        outbox = Outbox(producer, self._run, stage="serve", settings=self._delivery)
        tracing = current_tracing()
        for record in records:
            topic = topic_name(self._run, record.kind)
            outbox.forward(
                topic=topic,
                partition=self._partition(record),
                key=record.key,
                value=record.value,
                headers=tracing.told(topic, record.key.decode(errors="replace")) if tracing is not None else (),
            )
        outbox.flush()
        if self._left.is_set():
            return False
        self._spool.done(place)
        self.sent += len(records)
        return True

    def _partition(self, record: Spooled) -> int:
        """Return a record's partition: one impression's events lie on one, so they stay in order."""
        if record.kind not in self._partitions:
            self._partitions[record.kind] = len(partitions_of(self._kafka, [topic_name(self._run, record.kind)]))
        return zlib.crc32(record.key) % self._partitions[record.kind]
