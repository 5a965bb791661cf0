"""The worker of this package: it writes every topic of a run into DuckDB, rows and offsets in one transaction."""

from __future__ import annotations

import logging
import time
from contextlib import closing
from functools import partial
from pathlib import Path

from storage.sink import Sink, SinkSettings
from streams.clients import connect_consumer, follow_partitions, partitions_of
from streams.delivery import DeliverySettings, poll
from streams.kafka_settings import KafkaSettings
from streams.lag import end_offsets, records_behind
from streams.stalls import StallWatch
from streams.stopping import Stop
from streams.topics import TOPICS, topic_name

log = logging.getLogger(__name__)

DRAIN_SECONDS = 15.0


def run_sink(
    *,
    run: str,
    database: Path,
    kafka: KafkaSettings,
    delivery: DeliverySettings,
    sink: SinkSettings,
    member: str,
    stop: Stop,
    drain_seconds: float = DRAIN_SECONDS,
) -> None:
    """Write records until told to stop, then the remaining records of that moment, for at most `drain_seconds`.

    At the start it seeks to the offsets that the database itself holds.
    """
    with Sink(database, sink) as writer:
        stored = writer.positions()
        topics = [topic_name(run, topic.kind) for topic in TOPICS]
        positions = {item: stored.get((item.topic, item.partition)) for item in partitions_of(kafka, topics)}
        connect = partial(connect_consumer, kafka, client_id=f"{run}-{member}", records_max=sink.batch_records_max)
        with closing(connect(positions, linger_seconds=sink.linger_seconds)) as lingering:
            stalls = StallWatch(delivery.stall_seconds, log, where=f"sink of run {run}")
            writer.waiting = lambda: stalls.waiting_for(f"the disk, to store records in {database}")
            while not stop():
                follow_partitions(lingering, topics)
                records = poll(lingering, delivery, records_max=sink.batch_records_max)
                if records:
                    writer.submit(records)
                else:
                    writer.write(records)  # Waits for pending batches, and lets an idle run's segment close.
                stalls.progress()
            writer.flush()
        stored = writer.positions()
        positions = {item: stored.get((item.topic, item.partition)) for item in partitions_of(kafka, topics)}
        with closing(connect(positions)) as hurried:  # There is no need to wait for more: no more will come.
            ends = end_offsets(kafka, list(positions))
            deadline = time.monotonic() + drain_seconds
            while (behind := records_behind(hurried, ends)) and time.monotonic() < deadline:
                if records := poll(hurried, delivery, records_max=sink.batch_records_max):
                    writer.write(records)
            if behind:
                log.warning("sink of run %s: %s records wait for the next sink", run, f"{behind:,}")
