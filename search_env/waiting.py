"""The worker of an environment whose groups wait: it opens each group at once, and answers it when it has closed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from kafka import KafkaConsumer, TopicPartition

from search_env.environments import WaitingEnvironment
from search_env.workers import answering
from streams.codec import content_sha256
from streams.delivery import Outbox, decode_or_bury, poll
from streams.events import Generation, Position, Reward
from streams.posts import Post
from streams.records import Received
from streams.working import commit_owned, still_owned

POLL_SECONDS = 0.1


class AnswerQueue:
    """Records in the order of their partitions, each with its answer once it has one.

    Rewards leave in the order of their records, because the learner takes a reward as the sign that every earlier
    request of its partition is over.
    """

    def __init__(self) -> None:
        self._records: dict[int, deque[Received]] = {}
        self._answers: dict[Position, Reward | None] = {}
        self._known: set[Position] = set()

    def __len__(self) -> int:
        return len(self._known)

    def add(self, record: Received) -> bool:
        """Take the next record of its partition, and return whether it is new."""
        if record.position in self._known:
            return False
        self._known.add(record.position)
        self._records.setdefault(record.position.partition, deque()).append(record)
        return True

    def skip(self, record: Received) -> None:
        """Note that a record gets no answer."""
        self._answers[record.position] = None

    def answer(self, rewards: Iterable[Reward]) -> None:
        """Take answers."""
        self._answers |= {reward.source: reward for reward in rewards if reward.source in self._known}

    def ready(self) -> list[tuple[Received, Reward | None]]:
        """Take the records out that have their answer, or need none, and no earlier record that waits."""
        found: list[tuple[Received, Reward | None]] = []
        for records in self._records.values():
            while records and records[0].position in self._answers:
                record = records.popleft()
                self._known.discard(record.position)
                found.append((record, self._answers.pop(record.position)))
        return found

    def drop(self, partitions: Iterable[int]) -> None:
        """Forget everything of these partitions."""
        for partition in partitions:
            for record in self._records.pop(partition, ()):
                self._known.discard(record.position)
                self._answers.pop(record.position, None)

    @property
    def partitions(self) -> set[int]:
        """Return the partitions with records."""
        return {partition for partition, records in self._records.items() if records}


def run_waiting_environment(post: Post, environment: WaitingEnvironment) -> None:
    """Open every generation, and answer it when it has closed, in input order per partition, until `stop` is set.

    Nothing is committed before its answer is acknowledged. So after a crash the same groups are opened again. The
    worker polls all the time, so it stays a member of its group however long the groups wait.
    """
    with answering(post) as (consumer, outbox, stalls):
        waiting = AnswerQueue()
        came = 0
        while not post.stop():
            _keep_owned(consumer, environment, waiting)
            _open(_fetched(consumer, post, environment), environment, waiting, outbox)
            waiting.answer(environment.closed())
            ready = waiting.ready()
            if ready:
                _answer(consumer, ready, outbox)
            if ready or not environment.open_groups or environment.counted > came:
                came = environment.counted
                stalls.progress()
            else:
                stalls.waiting_for(f"people: {environment.open_groups} groups were not seen often enough yet")


def _fetched(consumer: KafkaConsumer, post: Post, environment: WaitingEnvironment) -> list[Received]:
    """Return the next records, at most as many as may be opened; without room the partitions pause."""
    room = min(environment.room, post.delivery.records_max)
    if room:
        consumer.resume(*consumer.paused())
    else:
        consumer.pause(*consumer.assignment())
    fetched = poll(consumer, post.delivery, records_max=max(room, 1), timeout_seconds=POLL_SECONDS)
    if room:
        return fetched
    # A partition that a rebalance has just brought was not paused. It is read again when there is room.
    for record in reversed(fetched):
        consumer.seek(TopicPartition(record.position.topic, record.position.partition), record.position.offset)
    return []


def _open(records: Sequence[Received], environment: WaitingEnvironment, waiting: AnswerQueue, outbox: Outbox) -> None:
    """Open the groups of new records; a malformed one is buried, and keeps its place."""
    new = [record for record in records if waiting.add(record)]
    good = decode_or_bury(new, Generation, outbox)
    waits = {record.position for record, _ in good}
    for record in new:
        if record.position not in waits:
            waiting.skip(record)
    environment.open([(event, record.position, content_sha256(record.value or b"")) for record, event in good])


def _answer(consumer: KafkaConsumer, ready: Sequence[tuple[Received, Reward | None]], outbox: Outbox) -> None:
    """Send answers, wait for their acknowledgement, and commit their records."""
    owned = {record.position for record in still_owned(consumer, [record for record, _ in ready])}
    for record, reward in ready:
        if reward is not None and record.position in owned:
            outbox.answer(record, reward)
    outbox.flush()
    commit_owned(consumer, [record for record, _ in ready if record.position in owned])


def _keep_owned(consumer: KafkaConsumer, environment: WaitingEnvironment, waiting: AnswerQueue) -> None:
    """Forget the groups of partitions that another worker has now."""
    lost = waiting.partitions - {item.partition for item in consumer.assignment()}
    if lost:
        waiting.drop(lost)
        environment.drop(lambda source: source.partition in lost)
