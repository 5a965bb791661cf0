"""The order of a run's requests: shuffled anew in each epoch, the same for the same seed.

The n-th request is a function of n, and the set of published requests is a function of the requests topic. A run that
is started again therefore publishes the missing requests, and goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from streams.clients import partitions_of
from streams.clock import now_ms
from streams.codec import decode
from streams.delivery import Outbox
from streams.errors import DeliveryError, EventError
from streams.events import Request
from streams.flow import lies_within
from streams.kafka_settings import KafkaSettings
from streams.ranges import log_bounds, read_range, requests_end
from streams.records import Received
from streams.resending import RESENT
from streams.topics import topic_name

log = logging.getLogger(__name__)

NUMBERS_AT_ONCE = 1024  # Requests sent before the broker must have acknowledged all of them.
DIGITS_MAX = 15


class RequestSequence:
    """Every training request once per epoch, in another order in each epoch."""

    def __init__(self, asked: Sequence[Request], *, run: str, seed: int) -> None:
        """asked: the requests that a recipe prepared. Each gets its id and the run's name when it is its turn."""
        self._asked = asked
        self._run = run
        self._seed = seed
        self._epoch = -1
        self._order = np.arange(0)

    def __getitem__(self, number: int) -> Request:
        """Return the request with this number, counted from 0."""
        epoch, place = divmod(number, len(self._asked))
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([self._seed, epoch]).permutation(len(self._asked))
        asked = self._asked[int(self._order[place])]
        return msgspec.structs.replace(asked, request_id=request_id(self._run, number), run=self._run)


class Published(NamedTuple):
    """The requests of a sequence that lie in the log: all below `end`, except `missing`."""

    end: int
    missing: tuple[int, ...]


Read = Callable[[int, int, int], Iterable[Received]]
"""A function from a partition, an offset, and the offset after the last: gives the records between, in order."""


class RequestFeed:
    """Writer of a sequence to the requests topic, from the end of the topic, and never far ahead of the learner.

    Only the log says which requests were published. One partition may hold requests that another one lacks, if the
    process was killed, or if the broker took one batch and refused another. Request n goes to partition n modulo the
    number of partitions.
    """

    def __init__(self, sequence: RequestSequence, kafka: KafkaSettings, outbox: Outbox, run: str) -> None:
        self._sequence = sequence
        self._kafka = kafka
        self._outbox = outbox
        self._run = run
        self._partitions = partitions_of(kafka, [topic_name(run, "requests")])
        self._published: Published | None = self._read_published()
        self._announced: list[Mapping[int, int]] = []

    @property
    def published(self) -> int:
        """Return how many requests the log holds, as far as this feed knows."""
        return self._published.end if self._published else 0

    def publish_until(self, number: int) -> None:
        """Publish all requests below this number that are not published yet; return when Kafka has them.

        Raises DeliveryError if Kafka does not take one; the next call looks up the ones that it took.
        """
        published = self._published or self._read_published()
        self._published = None
        self._publish(published.missing)
        for start in range(published.end, number, NUMBERS_AT_ONCE):
            self._publish(range(start, min(start + NUMBERS_AT_ONCE, number)))
        self._published = Published(max(published.end, number), ())

    def used_up(self, announced: Iterable[Mapping[int, int]]) -> int:
        """Return the number of requests that are used up, by these announcements.

        announced: for each announcement, per partition, the offset below which every request is used up. An
        announcement that speaks of more requests than the log has is left out.
        If the broker does not say where the log ends, the announcements are kept for the next call, and the answer is
        0.
        """
        self._announced += announced
        if not self._announced:
            return 0
        try:
            ends = requests_end(self._kafka, self._run)
        except DeliveryError as error:
            log.warning("the number of used-up requests is unknown for now: %s", error)
            return 0
        said, self._announced = self._announced, []
        return max((sum(each.values()) for each in said if lies_within(each, ends)), default=0)

    def _publish(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            stamped = msgspec.structs.replace(self._sequence[number], made_at_ms=now_ms())
            self._outbox.send(stamped, partition=number % len(self._partitions))
        self._outbox.flush()

    def _read_published(self) -> Published:
        items = {item.partition: item for item in self._partitions}
        bounds = {item.partition: held for item, held in log_bounds(self._kafka, self._partitions).items()}

        def read(partition: int, first: int, end: int) -> Iterable[Received]:
            return read_range(self._kafka, items[partition], first, end, client_id=f"{self._run}-requests")

        return find_published(bounds, read, run=self._run)


def find_published(
    bounds: Mapping[int, tuple[int, int]], read: Read, *, run: str, at_once: int = NUMBERS_AT_ONCE
) -> Published:
    """Return the requests of a run that lie in the log, from as little of its end as tells it.

    bounds: first offset, and the offset after the last, of each partition. at_once: number of requests that are sent
    before all of them are acknowledged. Missing requests are thus among the last `at_once`.
    Records of others, damaged records and resent dead letters do not count. If retention has deleted the evidence, a
    request counts as published: a request left out costs less than a request that trains twice.
    """
    written = sum(end for _, end in bounds.values())
    firsts = {partition: end for partition, (_, end) in bounds.items()}
    seen: dict[int, set[int]] = {partition: set() for partition in bounds}
    width = at_once // max(len(bounds), 1) + 64
    while True:
        newest = max((number for numbers in seen.values() for number in numbers), default=-1)
        unread = [
            partition
            for partition, (start, _) in bounds.items()
            if firsts[partition] > start and min(seen[partition], default=newest + 1) > newest - at_once
        ]
        if not unread:
            break
        for partition in unread:
            end = firsts[partition]
            firsts[partition] = max(end - width, bounds[partition][0])
            numbers = (request_number(record, run) for record in read(partition, firsts[partition], end))
            # Of all numbers, only the last `at_once` may lack a record. A number above that bound is forged.
            seen[partition].update(number for number in numbers if number is not None and number < written + at_once)
        width *= 2
    deleted = {partition for partition, (start, _) in bounds.items() if start > 0 and firsts[partition] == start}
    if any(not seen[partition] for partition in deleted):
        # Only the offsets tell the number of the last one, and not exactly.
        guesses = [(end - 1) * len(bounds) + place + 1 for place, (_, end) in enumerate(bounds.values()) if end]
        return Published(max(newest + 1, written, *guesses), ())
    oldest = max((min(seen[partition]) for partition in deleted), default=-1)
    known = set().union(*seen.values())
    low = max(newest + 1 - at_once, oldest, 0)
    return Published(newest + 1, tuple(number for number in range(low, newest) if number not in known))


def request_number(record: Received, run: str) -> int | None:
    """Return the number of the run's request in this record; None for any other record."""
    if any(name == RESENT for name, _ in record.headers):
        return None
    try:
        event = decode(record.value)
    except EventError:
        return None
    if not isinstance(event, Request) or event.run != run:
        return None
    digits = event.request_id.removeprefix(f"{run}-")
    if len(digits) > DIGITS_MAX or not digits.isascii() or not digits.isdecimal():
        return None
    return int(digits) if event.request_id == request_id(run, int(digits)) else None


def request_id(run: str, number: int) -> str:
    """Return the id of the run's request with this number."""
    return f"{run}-{number:08d}"
