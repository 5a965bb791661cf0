"""Long work between two polls without leaving the consumer group: a thread works, and the consumer keeps polling.

kafka-python's heartbeat leaves the group if two polls lie further apart than `kafka.poll_interval_seconds_max`. The
work done by then could not be committed, and the new owner of the partitions would repeat it, forever. The consumer
stays in the thread that made it; only the work moves to another thread.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from typing import Any, TypeVar

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import RebalanceInProgressError
from kafka.structs import MemberState

from streams.delivery import commit, paused
from streams.errors import DeliveryError
from streams.records import Received
from streams.stopping import Stop

E = TypeVar("E")
THREAD = "searchloop-work"
KEEP_ALIVE_SECONDS = 1.0
GRACE_SECONDS = 2.0  # A process gets less than 5 s between the signal and its end.
REBALANCE_SECONDS = 60.0
REBALANCE_LOOK_SECONDS = 0.1
_busy = threading.Event()
log = logging.getLogger(__name__)


class Working:
    """Runs one piece of work at a time in a separate thread, and keeps a consumer's membership alive meanwhile."""

    def __init__(
        self,
        consumer: KafkaConsumer,
        stop: Stop,
        *,
        grace_seconds: float = GRACE_SECONDS,
        waiting: Callable[[], object] = lambda: None,
    ) -> None:
        """grace_seconds: how long work may continue after a stop request. waiting: is called during the wait for it."""
        self._consumer = consumer
        self._stop = stop
        self._grace_seconds = grace_seconds
        self._waiting = waiting
        interval = float(consumer.config["max_poll_interval_ms"]) / 1000
        self._pause_seconds = min(KEEP_ALIVE_SECONDS, interval / 4)
        self._tasks: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        # A daemon: abandoned work must not hold the process.
        threading.Thread(target=self._serve, name=THREAD, daemon=True).start()

    def __call__(self, act: Callable[[], E]) -> E | None:
        """Return the result of `act`, or raise its error; return None if a stop request ended the wait.

        Abandoned work continues in its thread until the process ends, and nothing of it may be committed.
        """
        future: Future[E] = Future()
        self._tasks.put((act, future))
        if not _done(future, self._pause_seconds):
            # Only work that takes longer pays for the pause: otherwise the fetched records stay in place.
            with paused(self._consumer) as keep_alive:
                asked_at: float | None = None
                while not _done(future, self._pause_seconds):
                    keep_alive()
                    self._waiting()
                    if self._stop():
                        asked_at = asked_at or time.monotonic()
                        if time.monotonic() - asked_at > self._grace_seconds:
                            log.warning("stop requested: unfinished work is abandoned and will be repeated")
                            return None
        return future.result()

    def close(self) -> None:
        """Let the thread end after its current work."""
        self._tasks.put(None)

    def _serve(self) -> None:
        while (task := self._tasks.get()) is not None:
            act, future = task
            _busy.set()
            try:
                future.set_result(act())
            except BaseException as error:
                future.set_exception(error)
            finally:
                _busy.clear()


def work_goes_on() -> bool:
    """Return whether a thread of this process still works.

    It may be in native code, which an exit should not interrupt.
    """
    return _busy.is_set()


def still_owned(consumer: KafkaConsumer, records: Sequence[Received]) -> list[Received]:
    """Return the records of partitions that are still ours; the new owners of the other partitions handle the rest.

    The function waits for a rebalance that is under way.
    Raises DeliveryError if the rebalance does not end within `REBALANCE_SECONDS`.
    """
    deadline = time.monotonic() + REBALANCE_SECONDS
    if consumer.group_metadata().state != MemberState.STABLE:
        with paused(consumer) as keep_alive:
            while consumer.group_metadata().state != MemberState.STABLE:
                _check(deadline, consumer)
                keep_alive()
    owned = consumer.assignment()
    return [each for each in records if _partition(each) in owned]


def commit_owned(consumer: KafkaConsumer, records: Sequence[Received]) -> None:
    """Commit handled records of the partitions that are still ours, and continue after them.

    Kafka accepts no commit during a rebalance, so the function waits for its end. A rebalance also resets the consumer
    to its previous commit, so that it would read the same records again; the function therefore seeks forward.
    Raises the errors of `commit`, and DeliveryError if a rebalance does not end within `REBALANCE_SECONDS`.
    """
    deadline = time.monotonic() + REBALANCE_SECONDS
    while True:
        kept = still_owned(consumer, records)
        try:
            commit(consumer, kept)
            break
        except RebalanceInProgressError:
            _check(deadline, consumer)
            with paused(consumer) as keep_alive:
                keep_alive()
    ends = {_partition(each): each.position.offset + 1 for each in kept}
    for item, end in ends.items():
        if item in consumer.assignment() and (consumer.position(item) or 0) < end:
            consumer.seek(item, end)


def _check(deadline: float, consumer: KafkaConsumer) -> None:
    if time.monotonic() > deadline:
        raise DeliveryError(
            f"group {consumer.config['group_id']!r} has not finished assigning its partitions within "
            f"{REBALANCE_SECONDS:g} s; this worker stops, and its uncommitted work is repeated. Another member "
            "may hang: see searchloop status"
        )
    time.sleep(REBALANCE_LOOK_SECONDS)  # A poll does not rejoin before the heartbeat has reported the rebalance.


def _partition(record: Received) -> TopicPartition:
    return TopicPartition(record.position.topic, record.position.partition)


def _done(future: Future[Any], seconds: float) -> bool:
    return bool(wait_for([future], timeout=seconds).done)
