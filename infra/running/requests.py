"""Which request comes next: a task's requests in a shuffled order, epoch after epoch, the same for the same seed.

The n-th request is a function of n, so a run that is started again goes on where the requests topic ends.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from streams.clients import KafkaSettings, partitions_of
from streams.delivery import Outbox, now_ms
from streams.events import Request
from streams.lag import end_offsets
from streams.topics import topic_name


class RequestSequence:
    """Every training request once per epoch, each epoch in an order of its own."""

    def __init__(self, asked: Sequence[Request], *, run: str, seed: int) -> None:
        """asked: what a task prepared; each is numbered, and made this run's, when it is its turn."""
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
        return msgspec.structs.replace(asked, request_id=f"{self._run}-{number:08d}", run=self._run)


class RequestFeed:
    """Writes a sequence to the requests topic, from where the topic ends, and never far ahead of the learner."""

    def __init__(self, sequence: RequestSequence, kafka: KafkaSettings, outbox: Outbox, run: str) -> None:
        self._sequence = sequence
        self._outbox = outbox
        partitions = partitions_of(kafka, [topic_name(run, "requests")])
        self._partitions = len(partitions)
        self.published = sum(end_offsets(kafka, partitions).values())

    def publish_until(self, number: int) -> None:
        """Publish all requests below this number that are not published yet; return when Kafka has them."""
        if number <= self.published:
            return
        for index in range(self.published, number):
            stamped = msgspec.structs.replace(self._sequence[index], made_at_ms=now_ms())
            self._outbox.send(stamped, partition=index % self._partitions)
        self._outbox.flush()
        self.published = number
