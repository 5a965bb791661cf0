"""The worker of this room: it reads impressions and actions, and writes each impression's outcomes.

*Exactly once.* Decisions are written in two steps. First the worker keeps them in one file, whole, together with the
join's state and the positions that it has read. Only then does it send them. After a crash it sends the kept decisions
again, the same bytes, and goes on from the kept positions; nothing that was decided later had been sent. So a second
record of an outcome is a copy of the first, and of one impression's final outcomes the first in the log counts.
"""

from __future__ import annotations

import contextlib
import logging
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
from kafka import KafkaConsumer, TopicPartition

from search_env.feedback.attribution import JoinSettings
from search_env.feedback.joining import Joiner
from search_env.feedback.outcomes import REASONS, Decided, JoinCounts
from search_env.feedback.snapshots import FeedbackError
from streams.clients import connect_consumer, connect_producer, follow_partitions, partitions_of
from streams.codec import decode, encode_event
from streams.delivery import Outbox, known_position, poll
from streams.errors import EventError
from streams.events import DeadLetter, Event
from streams.kafka_errors import told
from streams.lag import end_offsets, records_behind
from streams.locks import only_one
from streams.merging import Merger
from streams.posts import Post
from streams.records import Received
from streams.topics import BY_EVENT, topic_name
from streams.traffic_events import Impression, ImpressionOutcome, UserAction
from streams.whole_file import write_file

log = logging.getLogger(__name__)

STATE_FILE = "join.state"
STAGE = "joiner"
READ_AT_ONCE = 5_000
HELD_MAX = 20_000  # Records of one partition that wait for another partition's.
REST = 4  # Times of a settling that lie at least between two.
VERSION = 1


class KeptJoin(msgspec.Struct, frozen=True, kw_only=True, tag=VERSION, tag_field="version"):
    """The file of a join. positions: next offset by topic and partition. join: a snapshot. unsent: (partition, event).

    The unsent decisions are sent after the file is written, and again after a crash.
    """

    positions: list[tuple[str, int, int]]
    join: bytes
    unsent: list[tuple[int, bytes]]


Report = Callable[[JoinCounts], None]
Ends = dict[TopicPartition, int]


def run_joiner(
    post: Post, folder: Path, settings: JoinSettings, *, until_read: bool = False, report: Report = lambda _: None
) -> JoinCounts:
    """Join a run's impressions and actions until `stop` is set, and return the counts.

    folder: keeps the state. until_read: also end when everything is read that the log holds at the start, and make
    every outcome final, because the traffic has ended. report: called after each step.
    Raises FeedbackError if another joiner works here, or if the kept state is damaged.
    """
    taken = FeedbackError(f"{folder}: expected one joiner, but another one works here. Stop it, or let it go on")
    with only_one(folder / f"{STATE_FILE}.lock", taken), contextlib.ExitStack() as closing:
        topics = [topic_name(post.run, kind) for kind in ("impressions", "actions")]
        kept = _read_state(folder / STATE_FILE)
        producer = connect_producer(post.kafka, client_id=post.client)
        closing.callback(producer.close)
        work = _Work(
            post, folder / STATE_FILE, kept, settings, Outbox(producer, post.run, stage=STAGE, settings=post.delivery)
        )
        work.send()
        positions = {
            item: work.positions.get((item.topic, item.partition)) for item in partitions_of(post.kafka, topics)
        }
        consumer = connect_consumer(post.kafka, positions, client_id=post.client, records_max=READ_AT_ONCE)
        closing.callback(consumer.close)
        ends = end_offsets(post.kafka, list(positions)) if until_read else {}
        for _ in _until(consumer, post, topics, work, ends=ends, until_read=until_read):
            report(work.joiner.counts())
        if until_read and not post.stop():
            work.decide(work.joiner.finish())
        work.settle(provisional=not until_read)
        report(work.joiner.counts())
        return work.joiner.counts()


def _until(
    consumer: KafkaConsumer, post: Post, topics: list[str], work: _Work, *, ends: Ends, until_read: bool
) -> Iterator[None]:
    """Take records in the order of their times until the stop, or until those before `ends`; yield after each step."""
    merger = Merger()
    while not post.stop():
        follow_partitions(consumer, topics)
        merger.add(poll(consumer, post.delivery, records_max=READ_AT_ONCE))
        # An earlier record may come from any partition whose log holds more, also from one that has some here now.
        with told("could not read the end offsets of the topics"):
            known = consumer.end_offsets(list(consumer.assignment()))
        behind = [item for item in known if (at := known_position(consumer, item)) is not None and at < known[item]]
        for record in merger.ready(behind):
            work.take(record)
        full = {item for item in consumer.assignment() if merger.held(item) >= HELD_MAX}
        consumer.pause(*full)
        consumer.resume(*(consumer.assignment() - full))
        if work.is_due():
            work.settle()
        yield
        if until_read and not records_behind(consumer, ends) and not any(map(merger.held, consumer.assignment())):
            return


class _Work:
    """A join, and the decisions that were not sent yet."""

    def __init__(self, post: Post, path: Path, kept: KeptJoin | None, settings: JoinSettings, outbox: Outbox) -> None:
        self.joiner = Joiner.restore(kept.join) if kept else Joiner(settings)
        if kept and self.joiner.settings != settings:  # Decisions of one log must follow one rule.
            log.warning("the join of run %s keeps the settings [join] with which it began", post.run)
        self.positions = {(topic, partition): offset for topic, partition, offset in kept.positions} if kept else {}
        self._unsent = list(kept.unsent) if kept else []
        self._post = post
        self._path = path
        self._outbox = outbox
        self._settings = settings
        self._settled = time.monotonic()
        self._provisional = time.monotonic()
        self._dirty = False
        self._settling_seconds = 0.0
        outcomes = topic_name(post.run, "impression-outcomes")
        self._partitions = len(partitions_of(post.kafka, [outcomes]))

    def take(self, record: Received) -> None:
        """Join one record. One that holds no impression and no action becomes a dead letter."""
        position = record.position
        self.positions[position.topic, position.partition] = position.offset + 1
        self._dirty = True
        try:
            event = decode(record.value)
        except EventError as error:
            self._bury(record, str(error))
            return
        if isinstance(event, Impression | UserAction):
            self.decide(self.joiner.add(event, position, logged_ms=record.timestamp_ms))
        else:
            self._bury(record, f"expected an impression or an action, got {type(event).__name__}")

    def decide(self, decided: list[Decided]) -> None:
        """Note decisions; they are sent when they are kept."""
        for each in decided:
            if isinstance(each, ImpressionOutcome):
                self._note(self._timed(each))
                continue
            event = each.impression if hasattr(each, "impression") else each.action
            key = event.impression_id.encode()
            source = Received(position=each.position, timestamp_ms=0, key=key, value=encode_event(event), headers=())
            self._bury(source, f"{each.reason}: {REASONS[each.reason]}")

    def is_due(self) -> bool:
        """Return whether decisions should be kept and sent now."""
        # A large state takes seconds to write: the join gets most of the time all the same.
        return time.monotonic() - self._settled >= max(self._settings.settle_seconds, REST * self._settling_seconds)

    def settle(self, *, provisional: bool = True) -> None:
        """Keep state, positions and decisions in one file; then send the decisions."""
        now = time.monotonic()
        if provisional and now - self._provisional >= self._settings.provisional_seconds:
            self._provisional = now
            for outcome in self.joiner.provisional():
                self._note(outcome)
        if self._dirty or self._unsent:
            self._keep()
            self.send()
        self._settled = time.monotonic()
        self._settling_seconds = self._settled - now

    def send(self) -> None:
        """Send the kept decisions, and wait until Kafka has them."""
        for partition, content in self._unsent:
            event = decode(content)
            topic = BY_EVENT[type(event)]
            self._outbox.forward(
                topic=topic_name(self._post.run, topic.kind),
                partition=partition if topic.partitioned else 0,
                key=topic.key(event).encode(),
                value=content,
            )
        self._outbox.flush()
        self._unsent = []

    def _keep(self) -> None:
        positions = [(topic, partition, offset) for (topic, partition), offset in sorted(self.positions.items())]
        kept = KeptJoin(positions=positions, join=self.joiner.snapshot(), unsent=self._unsent)
        write_file(self._path, msgspec.msgpack.encode(kept))
        self._dirty = False

    def _timed(self, outcome: ImpressionOutcome) -> ImpressionOutcome:
        """Give a final outcome the end of its window as its time, so that its bytes are a function of the log."""
        return msgspec.structs.replace(outcome, made_at_ms=outcome.impression.at_ms + self.joiner.settings.window_ms)

    def _bury(self, record: Received, error: str) -> None:
        letter = DeadLetter(
            source=record.position,
            key=record.key,
            value=record.value,
            headers=record.headers,
            stage=STAGE,
            error=error,
            attempts=1,
            made_at_ms=record.timestamp_ms,
        )
        self._note(letter)

    def _note(self, event: Event) -> None:
        key = event.impression.impression_id.encode() if isinstance(event, ImpressionOutcome) else b""
        self._unsent.append((zlib.crc32(key) % self._partitions, encode_event(event)))


def read_positions(folder: Path) -> dict[tuple[str, int], int]:
    """Return the next offsets of the join in this folder; empty if there is none. Raises FeedbackError if damaged."""
    kept = _read_state(folder / STATE_FILE)
    return {(topic, partition): offset for topic, partition, offset in kept.positions} if kept else {}


def _read_state(path: Path) -> KeptJoin | None:
    try:
        return msgspec.msgpack.decode(path.read_bytes(), type=KeptJoin)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as error:
        raise FeedbackError(
            f"{path}: expected the state of a join, got damaged bytes ({error}). Restore the file, or join a copy "
            "of the traffic: searchloop replay copy"
        ) from error
