"""The worker of this package: it writes every topic of a run into DuckDB, rows and offsets in one transaction."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

from storage.errors import StorageError
from storage.shared_archive import SharedArchive
from storage.sink import Sink, SinkSettings
from streams.clients import connect_consumer, follow_partitions, partitions_of
from streams.delivery import poll
from streams.lag import end_offsets, records_behind
from streams.lease import Lease
from streams.locks import only_one
from streams.posts import Post
from streams.stalls import StallWatch
from streams.topics import TOPICS, topic_name

log = logging.getLogger(__name__)

DRAIN_SECONDS = 15.0
LOCK_FILE = "sink.lock"


def run_sink(post: Post, *, database: Path, sink: SinkSettings, drain_seconds: float = DRAIN_SECONDS) -> None:
    """Write records until told to stop, then the remaining records of that moment, for at most `drain_seconds`.

    At the start it seeks to the offsets that the database itself holds. With a store, it also stores closed segments
    there, and is the run's only sink on any machine: raises LeaseError if another one works.
    """
    run, kafka, delivery = post.run, post.kafka, post.delivery
    shared = SharedArchive(post.store, run) if post.store is not None else None
    with ExitStack() as opened:
        keep = _only_sink(post, database, opened)
        with Sink(database, sink) as writer:
            stored = writer.positions()
            topics = [topic_name(run, topic.kind) for topic in TOPICS]
            positions = {item: stored.get((item.topic, item.partition)) for item in partitions_of(kafka, topics)}
            connect = partial(connect_consumer, kafka, client_id=post.client, records_max=sink.batch_records_max)
            with closing(connect(positions, linger_seconds=sink.linger_seconds)) as lingering:
                stalls = StallWatch(delivery.stall_seconds, log, where=f"sink of run {run}")
                writer.waiting = lambda: stalls.waiting_for(f"the disk, to store records in {database}")
                while not post.stop():
                    keep()
                    follow_partitions(lingering, topics)
                    records = poll(lingering, delivery, records_max=sink.batch_records_max)
                    if records:
                        writer.submit(records)
                    else:
                        writer.write(records)  # Waits for pending batches, and lets an idle run's segment close.
                    if shared is not None:
                        shared.push_new(writer.archive, writer.closed)
                    stalls.progress()
                writer.flush()
            stored = writer.positions()
            positions = {item: stored.get((item.topic, item.partition)) for item in partitions_of(kafka, topics)}
            with closing(connect(positions)) as hurried:  # There is no need to wait for more: no more will come.
                ends = end_offsets(kafka, list(positions))
                deadline = time.monotonic() + drain_seconds
                while (behind := records_behind(hurried, ends)) and time.monotonic() < deadline:
                    keep()
                    if records := poll(hurried, delivery, records_max=sink.batch_records_max):
                        writer.write(records)
                if behind:
                    log.warning("sink of run %s: %s records wait for the next sink", run, f"{behind:,}")
        if shared is not None:
            shared.push(writer.archive)


def _only_sink(post: Post, database: Path, opened: ExitStack) -> Callable[[], None]:
    """Return what looks whether this is still the run's only sink; without a store, the file's own lock suffices.

    The broker takes two sinks of one machine for one member, and would end the first. So the second is refused before.
    """
    if post.store is None:
        return lambda: None
    taken = StorageError(f"{database}: another sink of this machine holds this file; stop it first")
    opened.enter_context(only_one(database.with_name(LOCK_FILE), taken))
    return opened.enter_context(
        Lease(post.run, "sink", machine=post.machine, kafka=post.kafka, delivery=post.delivery)
    ).keep
