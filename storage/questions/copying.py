"""A second ledger of a run whose sink holds the first: made from the archive, then kept current from Kafka.

It has the same code and the same rows as the sink's. It lies in a scratch folder and is removed at the end; that of a
killed process goes at the next start of pages (`scratch`). Nothing depends on it, and a page that starts anew makes it
anew.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path

import duckdb

from storage.archive import ARCHIVE, find_segments, read_segment
from storage.ledger import LEDGER, Partition, build_batch, read_positions, store_registered
from storage.questions.asking import READING
from storage.questions.scratch import Scratch
from storage.schema import migrate
from streams.clients import connect_consumer, existing_topics, follow_partitions, partitions_of
from streams.delivery import DeliverySettings, poll
from streams.kafka_settings import KafkaSettings
from streams.records import Received
from streams.topics import TOPICS, topic_name

log = logging.getLogger(__name__)

RECORDS_AT_ONCE = 512
COPYING = {**READING, "memory_limit": "1GiB"}
WAIT_SECONDS = 0.5
RETRY_SECONDS = 2.0
RAW = "records"  # The table of records as they came. Nobody asks for them here, and they are most of the bytes.


class LiveCopy:
    """A ledger that follows a run while its sink writes the run's own file.

    A thread of its own fills it. `version` rises with each batch of records that can be asked for. `trouble` says why
    it does not go on, or is "".
    """

    def __init__(self, folder: Path, run: str, kafka: KafkaSettings | None) -> None:
        """folder: of the run. kafka: None follows the archive alone, whose newest records may be a minute old."""
        self.version = 0
        self.trouble = ""
        self.segments_read = 0
        self.segments = 0
        self.caught_up = threading.Event()
        self._folder = folder
        self._run = run
        self._kafka = kafka
        self._stop = threading.Event()
        self._scratch = Scratch()
        self._connection = duckdb.connect(str(self._scratch.path / LEDGER), config=COPYING)
        migrate(self._connection)
        self._read: set[Path] = set()
        self._thread = threading.Thread(target=self._follow, name=f"copy of {run}", daemon=True)
        self._thread.start()

    @contextmanager
    def cursor(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Give a cursor that sees all batches stored by now."""
        with self._connection.cursor() as cursor:
            yield cursor

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
        consumer = connect_consumer(kafka, positions, client_id=f"{self._run}-ui", records_max=RECORDS_AT_ONCE)
        with closing(consumer):
            while not self._stop.is_set():
                follow_partitions(consumer, topics)
                if records := poll(consumer, DeliverySettings(), timeout_seconds=WAIT_SECONDS):
                    self._store(records)
                else:
                    self.trouble = ""
                    self.caught_up.set()

    def _store(self, records: Sequence[Received]) -> None:
        batch = build_batch(records)
        store_registered(
            self._connection, {name: rows for name, rows in batch.tables.items() if name != RAW}, batch.extents
        )
        self.version += 1


def _is_new(record: Received, stored: dict[Partition, int]) -> bool:
    return record.position.offset >= stored.get((record.position.topic, record.position.partition), 0)
