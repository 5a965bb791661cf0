"""Records a second of a replay as fast as it goes, against a raw kafka-python consumer of the same records.

A replay reads a window and writes it to topics of its own. Five sides take the same records, in turn: a kafka-python
consumer, which only reads; our reading of the window, as every verb on a log does it; that consumer with kafka-python's
producer behind it, which is what a copy costs without us; our copy; our copy from the Parquet archive. Every producer
is idempotent and waits for every replica. After each copy the log is compared with what was recorded: keys, values,
headers, times. Connecting and making topics is not timed, except where our reading of a window connects.

Run: python tests/benchmarks/replay.py [--records 4000] [--runs 7]
or, on a log of your own: … --kafka HOST:PORT --home HOME --run RUN [--topic rewards]
SEARCHLOOP_TEST_KAFKA=HOST:PORT uses a broker that is up already.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from kafka import TopicPartition

from infra.app.home import Home
from services.local import LocalServices
from services.settings import LocalSettings
from storage.ledger import LEDGER
from storage.recorded import Limits, Recorded, Window
from storage.sink import Sink, SinkSettings
from streams.clients import connect_admin, connect_consumer, connect_producer, create_topics
from streams.delivery import DeliverySettings, Outbox
from streams.kafka_settings import KafkaSettings
from streams.ranges import log_bounds, read_range
from streams.raw_log import RawLog
from streams.records import Received
from streams.replay import copy
from streams.stopping import Stop
from streams.topics import topic_name
from tests.stored_events import reward

GOAL = 0.7
RECORDS_AT_ONCE = 2000
SIDES = {
    "consumer": "kafka-python consumer",
    "read": "our window",
    "floor": "kafka-python consumer and producer",
    "copy": "our copy",
    "archive": "our copy from the archive",
}


def main() -> None:
    """Time all sides in turn, print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--records", type=int, default=4000, help="reward records that are made, groups of 8")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--kafka", help="address of a broker that holds the log")
    parser.add_argument("--home", type=Path)
    parser.add_argument("--run")
    parser.add_argument("--topic", default="rewards")
    arguments = parser.parse_args()
    if arguments.kafka:
        folder = Home(arguments.home).run(arguments.run)
        report(Bench(KafkaSettings(bootstrap=arguments.kafka), folder, arguments.run, arguments.topic), arguments.runs)
        return
    with made_log(arguments.records) as (kafka, folder, run):
        report(Bench(kafka, folder, run, "rewards"), arguments.runs)


class Bench:
    """The sides, each with a method of its name that returns seconds."""

    def __init__(self, kafka: KafkaSettings, folder: Path, run: str, kind: str) -> None:
        self.kafka = kafka
        self.into = f"r-{uuid.uuid4().hex[:8]}"
        self.source = Recorded(folder, run, kafka)
        self.archive = Recorded(folder, run, None)
        (self.window,) = self.source.windows(kind, Limits(), Limits(), partition=0)
        (self.archived,) = self.archive.windows(kind, Limits(), Limits(), partition=0)
        if (self.archived.first, self.archived.end) != (self.window.first, self.window.end):
            raise SystemExit(f"the archive holds another window than Kafka: {self.archived}, {self.window}")
        self.place = TopicPartition(self.window.topic, 0)
        self.target = TopicPartition(topic_name(self.into, kind), 0)
        self.records, self.bytes, self.digest = self.contents(self.place, self.window.first, self.window.end)

    def consumer(self) -> float:
        """Read every record with kafka-python, as fast as it goes."""
        consumer = self.connect_raw()
        began = time.perf_counter()
        for _ in self.consume(consumer):
            pass
        seconds = time.perf_counter() - began
        consumer.close()
        return seconds

    def read(self) -> float:
        """Read every record as our verbs do; connecting is a part of it."""
        began = time.perf_counter()
        for _ in self.source.read(self.window):
            pass
        return time.perf_counter() - began

    def floor(self) -> float:
        """Send every record on with kafka-python's producer."""
        consumer, producer = self.connect_raw(), connect_producer(self.kafka, client_id="floor")
        began = time.perf_counter()
        for record in self.consume(consumer):
            producer.send(
                self.target.topic,
                partition=0,
                key=record.key,
                value=record.value,
                headers=record.headers,
                timestamp_ms=record.timestamp,
            )
        producer.flush()
        seconds = time.perf_counter() - began
        producer.close()
        consumer.close()
        return seconds

    def copy(self) -> float:
        """Copy the window out of Kafka."""
        return self.copied(self.source, self.window)

    def from_archive(self) -> float:
        """Copy the window out of the archive."""
        return self.copied(self.archive, self.archived)

    def copied(self, source: Recorded, window: Window) -> float:
        """Copy a window with our own means."""
        with RawLog(self.kafka, client_id="copy") as log:
            count = copy([(self.target, source.read_raw(window, log))], log.writer(), stop=Stop())
        return count.seconds

    def connect_raw(self) -> Any:
        """Return a kafka-python consumer at the window's beginning, with our fetch sizes."""
        return connect_consumer(
            self.kafka, {self.place: self.window.first}, client_id="raw", records_max=RECORDS_AT_ONCE
        )

    def consume(self, consumer: Any) -> Iterator[Any]:
        """Yield the window's records."""
        while consumer.position(self.place) < self.window.end:
            yield from consumer.poll(timeout_ms=500).get(self.place, [])

    def contents(self, partition: TopicPartition, first: int, end: int) -> tuple[int, int, str]:
        """Return how many records lie there, their values' bytes, and a hash of everything that a copy must keep."""
        digest, count, size = hashlib.sha256(), 0, 0
        for record in read_range(self.kafka, partition, first, end, client_id="check"):
            digest.update(repr((record.timestamp_ms, record.key, record.value, record.headers)).encode())
            count, size = count + 1, size + len(record.value or b"")
        return count, size, digest.hexdigest()

    def timed(self, side: str) -> tuple[float, float]:
        """Run a side; return its seconds and this process's processor seconds. A copy is checked afterwards."""
        ((_, start),) = log_bounds(self.kafka, [self.target]).values()
        began = time.process_time()
        seconds = {
            "consumer": self.consumer,
            "read": self.read,
            "floor": self.floor,
            "copy": self.copy,
            "archive": self.from_archive,
        }[side]()
        spent = time.process_time() - began
        ((_, end),) = log_bounds(self.kafka, [self.target]).values()
        if end > start or side in ("floor", "copy", "archive"):
            found = self.contents(self.target, start, end)
            if found != (self.records, self.bytes, self.digest):
                raise SystemExit(f"{side}: the copy differs from what was recorded")
        return seconds, spent


@contextmanager
def made_log(records: int) -> Iterator[tuple[KafkaSettings, Path, str]]:
    """Write reward records of some 15 kB to a broker, let a sink archive them; give the broker, the folder, the run."""
    run = f"recorded-{uuid.uuid4().hex[:8]}"
    with ExitStack() as opened:
        home = opened.enter_context(tempfile.TemporaryDirectory(prefix="replay-bench-", ignore_cleanup_errors=True))
        Path(home).chmod(0o755)
        address = os.environ.get("SEARCHLOOP_TEST_KAFKA", "")
        if not address:
            services = LocalServices(home, LocalSettings(quick_start=True), attached=True)
            opened.callback(services.remove)
            address = services.up().kafka
        kafka = KafkaSettings(bootstrap=address)
        write_log(kafka, Path(home) / "run", run, records)
        yield kafka, Path(home) / "run", run
        delete_topics(kafka, run)


def write_log(kafka: KafkaSettings, folder: Path, run: str, records: int) -> None:
    """Produce the records, and store them as the sink does."""
    create_topics(kafka, run)
    producer = connect_producer(kafka, client_id="bench")
    outbox = Outbox(producer, run, stage="bench", settings=DeliverySettings())
    for number in range(records):
        outbox.send(reward(number))
    outbox.flush()
    producer.close()
    partition = TopicPartition(topic_name(run, "rewards"), 0)
    with Sink(folder / LEDGER, SinkSettings()) as sink:
        for batch in batches(read_range(kafka, partition, 0, records, client_id="bench"), 256):
            sink.write(batch)


def delete_topics(kafka: KafkaSettings, run: str) -> None:
    """Remove the topics of a run."""
    admin = connect_admin(kafka)
    admin.delete_topics([name for name in admin.list_topics() if name.startswith(f"{run}.")])
    admin.close()


def batches(records: Iterable[Received], size: int) -> Iterator[list[Received]]:
    """Yield lists of so many records."""
    held: list[Received] = []
    for record in records:
        held.append(record)
        if len(held) == size:
            yield held
            held = []
    if held:
        yield held


def report(bench: Bench, runs: int) -> None:
    """Time every side so often, and say what came of it."""
    create_topics(bench.kafka, bench.into, retention_ms=-1)
    try:
        taken = run_in_turn(bench.timed, runs)
    finally:
        delete_topics(bench.kafka, bench.into)
    speed = {side: bench.records / statistics.median(wall for wall, _ in times) for side, times in taken.items()}
    spent = {side: statistics.median(cpu for _, cpu in times) for side, times in taken.items()}
    print(f"{'':38}{'records/s':>10}{'of (a)':>8}{'seconds (min, median, max)':>28}{'processor s':>13}")
    for side, times in taken.items():
        walls = [wall for wall, _ in times]
        spread = f"{min(walls):.2f} {statistics.median(walls):.2f} {max(walls):.2f}"
        print(
            f"{SIDES[side]:38}{speed[side]:>10,.0f}{speed[side] / speed['consumer']:>8.2f}{spread:>28}"
            f"{spent[side]:>13.2f}"
        )
    print(
        json.dumps(
            {
                "benchmark": "replay",
                "topic": bench.window.topic,
                "records": bench.records,
                "record_bytes": bench.bytes // bench.records,
                "runs": runs,
                "records_per_second": {side: round(value) for side, value in speed.items()},
                "ratio": {side: round(speed[side] / speed["consumer"], 3) for side in SIDES},
                "processor_ratio": {side: round(spent["consumer"] / spent[side], 3) for side in SIDES},
                "byte_exact": True,
                "goal": GOAL,
            }
        )
    )


def run_in_turn(timed: Callable[[str], tuple[float, float]], runs: int) -> dict[str, list[tuple[float, float]]]:
    """Run each side so often, and once before to warm up; each round begins with another side."""
    taken: dict[str, list[tuple[float, float]]] = {side: [] for side in SIDES}
    order = list(SIDES)
    for number in range(runs + 1):
        for side in order:
            times = timed(side)
            if number:
                taken[side].append(times)
        order = order[1:] + order[:1]
    return taken


if __name__ == "__main__":
    main()
