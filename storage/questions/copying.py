"""A second ledger of a run whose sink holds the first: made from the archive, then kept current from Kafka.

It has the same code and the same rows as the sink's. A transaction costs much, whatever is in it. So the copy of a run
that goes fast rests after each one, for as long as keeps it within its share of the processor, at most `PAUSE_SECONDS`.
What a slow run writes is stored at once: the share that was not taken is kept, up to `BURST_SECONDS`.

It lies in a scratch folder and is removed at the end; that of a killed process goes at the next start of pages
(`scratch`). Nothing depends on it, and a page that starts anew makes it anew.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path

import duckdb
from kafka import KafkaConsumer

from storage.archive import ARCHIVE, find_segments, read_segment
from storage.errors import StorageError
from storage.ledger import LEDGER, Partition, build_batch, read_positions, store_registered
from storage.questions.asking import reading_options
from storage.questions.spending import Spending
from storage.schema import migrate
from storage.scratch import Scratch
from streams.clients import connect_consumer, existing_topics, follow_partitions, partitions_of
from streams.delivery import DeliverySettings, poll
from streams.kafka_settings import KafkaSettings
from streams.lag import end_offsets, records_behind
from streams.records import Received
from streams.topics import TOPICS, topic_name

log = logging.getLogger(__name__)

RECORDS_AT_ONCE = 512
RECORDS_MAX = 4096  # In one transaction.
WAIT_SECONDS = 0.5
MORE_SECONDS = 0.02
LINGER_SECONDS = 0.25  # To be given each record by itself costs more than to store it.
PAUSE_SECONDS = 10.0
BURST_SECONDS = 0.5  # Of processor time.
RETRY_SECONDS = 2.0
SNAPSHOT = f"snapshot.{LEDGER}"


class LiveCopy:
    """A ledger that follows a run while its sink writes the run's own file.

    A thread of its own fills it. `version` rises with each batch of records that can be asked for. `trouble` says why
    it does not go on, or is "".
    """

    def __init__(
        self,
        folder: Path,
        run: str,
        kafka: KafkaSettings | None,
        *,
        share: float = 1.0,
        spending: Spending | None = None,
    ) -> None:
        """folder: of the run. kafka: None follows the archive alone, whose newest records may be a minute old.

        share: of one core, that it may take when it has caught up. spending: counts what it takes.
        """
        self.version = 0
        self.trouble = ""
        self.segments_read = 0
        self.segments = 0
        self.caught_up = threading.Event()
        self._folder = folder
        self._run = run
        self._kafka = kafka
        self._share = share
        self._spending = spending or Spending()
        self._stop = threading.Event()
        self._scratch = Scratch()
        self._storing = threading.Lock()
        self._snapshot_of = -1
        self._connection = duckdb.connect(
            str(self._scratch.path / LEDGER), config=reading_options(spill=self._scratch.path)
        )
        migrate(self._connection)
        self._read: set[Path] = set()
        self._thread = threading.Thread(target=self._follow, name=f"copy of {run}", daemon=True)
        self._thread.start()

    @contextmanager
    def cursor(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Give a cursor that sees all batches stored by now."""
        with self._connection.cursor() as cursor:
            yield cursor

    def snapshot(self) -> Path:
        """Return a file with what is stored by now, for another process: this one holds the copy itself.

        It is made anew when there is more, so nobody may ask the last one any more. Raises StorageError.
        """
        made = self._scratch.path / SNAPSHOT
        with self._storing:
            if self._snapshot_of != self.version:
                self._snapshot_of = -1
                try:
                    for end in ("", ".wal"):
                        to, source = made.with_name(made.name + end), self._scratch.path / f"{LEDGER}{end}"
                        to.unlink(missing_ok=True)
                        if source.exists():
                            shutil.copyfile(source, to)
                except OSError as error:
                    raise StorageError(
                        f"{made}: a copy for SQL cannot be made ({error.strerror}); free space"
                    ) from error
                self._snapshot_of = self.version
        return made

    def close(self) -> None:
        """Stop following, and remove the copy."""
        self._stop.set()
        self._thread.join()
        try:
            self._connection.interrupt()
            self._connection.close()
        except (duckdb.Error, RuntimeError) as error:  # A question that does not stop still runs on it.
            log.warning("%s: the copy is removed while it is asked (%s)", self._run, error)
        finally:
            self._scratch.remove()

    def _follow(self) -> None:
        while not self._stop.is_set():
            try:
                self._take_archive()
                if self._kafka is not None:
                    self._take_topics(self._kafka)
                self.trouble = ""
                self.caught_up.set()
            except Exception as error:  # Whatever it is, the pages say it, and the next try may go better.
                self.trouble = " ".join(str(error).split()) or type(error).__name__
                log.warning("%s: %s", self._run, self.trouble)
            self._stop.wait(RETRY_SECONDS)

    def _take_archive(self) -> None:
        archive = self._folder / ARCHIVE
        found = [path for path in find_segments(archive) if path not in self._read]
        self.segments += len(found)
        for path in found:
            if self._stop.is_set():
                return
            stored = read_positions(self._connection)
            fresh = (each for each in read_segment(path) if _is_new(each, stored))
            while some := list(islice(fresh, RECORDS_AT_ONCE)):
                self._store(some)
            self._read.add(path)
            self.segments_read += 1

    def _take_topics(self, kafka: KafkaSettings) -> None:
        """Follow the topics until told to stop. Raises DeliveryError."""
        wanted = [topic_name(self._run, topic.kind) for topic in TOPICS]
        topics = existing_topics(kafka, wanted)
        if not topics:
            return
        stored = read_positions(self._connection)
        positions = {item: stored.get((item.topic, item.partition)) for item in partitions_of(kafka, topics)}
        ends = end_offsets(kafka, list(positions))
        consumer = connect_consumer(
            kafka,
            positions,
            client_id=f"{self._run}-ui",
            records_max=RECORDS_AT_ONCE,
            linger_seconds=LINGER_SECONDS,
        )
        with closing(consumer):
            saved, since = BURST_SECONDS, time.monotonic()
            while not self._stop.is_set():
                began = time.thread_time()
                follow_partitions(consumer, topics)
                if records := self._take(consumer):
                    self._store(records)
                else:
                    self.trouble = ""
                if not self.caught_up.is_set() and not records_behind(consumer, ends):
                    self.caught_up.set()
                spent = time.thread_time() - began
                self._spending.spend(spent)
                now = time.monotonic()
                saved, since = min(saved + self._share * (now - since), BURST_SECONDS) - spent, now
                if not self.caught_up.is_set():
                    saved = BURST_SECONDS  # To read the log once is no part of the share.
                if saved < 0:
                    saved = max(saved, -PAUSE_SECONDS * self._share)
                    self._stop.wait(-saved / self._share)

    def _take(self, consumer: KafkaConsumer) -> list[Received]:
        """Return the records that have come by now, for one transaction."""
        found = poll(consumer, DeliverySettings(), timeout_seconds=WAIT_SECONDS)
        while found and len(found) < RECORDS_MAX and self.caught_up.is_set():
            more = poll(consumer, DeliverySettings(), timeout_seconds=MORE_SECONDS)
            if not more:
                break
            found += more
        return found

    def _store(self, records: Sequence[Received]) -> None:
        batch = build_batch(records, raw=False)  # Nobody asks for records as they came, and they are most of the bytes.
        with self._storing:
            store_registered(self._connection, batch.tables, batch.extents)
            self.version += 1


def _is_new(record: Received, stored: dict[Partition, int]) -> bool:
    return record.position.offset >= stored.get((record.position.topic, record.position.partition), 0)
