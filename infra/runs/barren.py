"""Barren requests: those that end without a reward. A run that gets no other ends, instead of asking for ever."""

from __future__ import annotations

from kafka import TopicPartition

from infra.app.command_line import pasteable
from infra.app.home import Home
from streams.codec import decode
from streams.errors import EventError, SearchloopError
from streams.events import DeadLetter
from streams.kafka_settings import KafkaSettings
from streams.ranges import log_bounds, read_range
from streams.topics import topic_name

BARREN_MAX = (
    1000  # Even of the largest set of requests. If 1 % of them were fruitful, this many in a row fail once in 23,000.
)
LETTERS_READ = 16


class BarrenRunError(SearchloopError, RuntimeError):
    """No request of a run gets a reward."""


class BarrenCount:
    """Counts the requests that were used up since the last update, in one call of `train`.

    An update uses up requests too, so what counts is what was used up after it. Requests that were published before
    this call do not count: whoever has mended the cause and calls again gets as many requests as the first time.
    """

    def __init__(self, *, published: int, asked: int, ahead: int) -> None:
        """published: requests in the log at the start. asked: different requests. ahead: how many are open at once."""
        self.limit = max(ahead, min(asked, BARREN_MAX))
        self._from = published

    def updated(self, used_up: int) -> None:
        """Start anew: an update was made when so many requests were used up."""
        self._from = max(self._from, used_up)

    def over(self, used_up: int) -> bool:
        """Return whether so many requests have ended without a reward that no further one is expected to get one."""
        return used_up - self._from >= self.limit


def barren_run(home: Home, kafka: KafkaSettings, run: str, *, count: int) -> BarrenRunError:
    """Return the error of a run whose last `count` requests got no reward, with the newest reason in its log."""
    return BarrenRunError(
        f"run {run!r}: expected rewards, got none for the last {count} requests: each ended in the dead letters. The "
        f"newest of them says: {_newest_reason(kafka, run)} Remove the cause and train again, as a new run if "
        f"its policy must be another one. See them all: {pasteable(home, 'dead-letters', 'list', '--run', run)}"
    )


def _newest_reason(kafka: KafkaSettings, run: str) -> str:
    letters = TopicPartition(topic_name(run, "dead-letters"), 0)
    first, end = log_bounds(kafka, [letters])[letters]
    said = "nothing."
    for record in read_range(kafka, letters, max(first, end - LETTERS_READ), end, client_id=f"{run}-letters"):
        try:
            event = decode(record.value)
        except EventError:
            continue
        if isinstance(event, DeadLetter):
            said = f"{event.stage}: {event.error.rstrip('.')}."
    return said
