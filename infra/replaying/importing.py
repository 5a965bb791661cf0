"""Import of external feedback to a run's topics, with a request for each search if an index gives it a context.

The records carry the times of the traffic, so that it can be replayed at its original speed. The caller must read the
whole input once before the import. If the import fails, it deletes everything that it made.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from heapq import heappop, heappush
from itertools import islice

import msgspec
from kafka import TopicPartition

from infra.app.app import App
from infra.app.progress import Report
from infra.recipes.leser.index import LeserIndex, open_leser_index
from infra.runs.listening import join
from infra.runs.new_log import new_log
from search_env.traffic.impressions import as_live
from storage.ledger import LEDGER
from storage.sink import Sink, SinkSettings
from streams.clients import connect_producer, partitions_of
from streams.clock import now_ms
from streams.codec import encode_event
from streams.delivery import Outbox
from streams.events import Context, Event, Request
from streams.inputs.values import TIME_MS_MAX
from streams.pseudonyms import Pseudonyms
from streams.ranges import log_bounds, read_range
from streams.stopping import Stop
from streams.topics import BY_EVENT, TOPICS, topic_name
from streams.traffic_events import Feedback, UserAction

AT_ONCE = 1000


def import_feedback(app: App, feedback: Iterable[Feedback], *, into: str, index: str | None, report: Report) -> int:
    """Write every search to the topics of the run `into`, join its actions, and store all; return the searches' number.

    A search is one record of feedback, as it was logged, and an impression with actions, as live traffic has them.
    Clients and sessions get their pseudonyms before anything is written.
    index: if given, also write each search to the requests topic as a live request, which may be answered but never
    trains.
    Raises SettingsError if the run exists or another installation owns its topics; raises DeliveryError if a topic does
    not fit.
    """
    kafka = app.connections.kafka
    with _requests(app, index, into, report) as requests, new_log(app.home, kafka, into, option="--into"):
        count = _write(app, feedback, requests, into=into, report=report)
        # All outcomes become final, because the traffic has ended.
        join(app, into, worker=1, stop=Stop(), until_read=True)
        store_log(app, into)
    return count


def _write(app: App, feedback: Iterable[Feedback], requests: _Requests, *, into: str, report: Report) -> int:
    """Write every search, and its request if there is one; return the number of searches."""
    kafka = app.connections.kafka
    partitions = len(partitions_of(kafka, [topic_name(into, "feedback")]))
    producer = connect_producer(kafka, client_id=f"{into}-import")
    outbox = Outbox(producer, into, stage="import", settings=app.settings.delivery)
    count = last_ms = 0
    began_ms = now_ms()
    pseudonyms = Pseudonyms(app.home.people)
    searches = (_without_names(each, pseudonyms) for each in feedback)
    later = LaterActions()

    def send(event: Event, partition: int, at_ms: int) -> None:
        topic = BY_EVENT[type(event)]
        outbox.forward(
            topic=topic_name(into, topic.kind),
            partition=partition,
            key=topic.key(event).encode(),
            value=encode_event(event),
            timestamp_ms=at_ms,
        )

    try:
        while some := list(islice(searches, AT_ONCE)):
            asked: list[Request | None] = [*requests(some)] or [None] * len(some)
            for search, request in zip(some, asked, strict=True):
                # A search without a time gets the time of the previous one: a pause of years would end every replay.
                last_ms = search.at_ms or last_ms or began_ms
                for waited in later.until(last_ms):
                    send(*waited)
                impression, actions = as_live(search, logged_ms=last_ms)
                told: list[Event] = [search, impression, *([request] if request else [])]
                for event in told:
                    send(event, count % partitions, last_ms)
                for action in actions:
                    later.add(action, count % partitions, max(action.at_ms, last_ms))
                count += 1
            outbox.flush()
            report("searches imported", count, 0)
        for waited in later.until(TIME_MS_MAX):
            send(*waited)
        outbox.flush()
    finally:
        producer.close()
        pseudonyms.close()
    return count


class LaterActions:
    """Actions that wait for their own time: the log gets them in its order, as if the traffic happened now."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, int, UserAction]] = []
        self._count = 0

    def add(self, action: UserAction, partition: int, at_ms: int) -> None:
        self._count += 1
        heappush(self._heap, (at_ms, self._count, partition, action))

    def until(self, at_ms: int) -> Iterator[tuple[UserAction, int, int]]:
        """Yield each action up to this time, with its partition and its record's time."""
        while self._heap and self._heap[0][0] <= at_ms:
            time_ms, _, partition, action = heappop(self._heap)
            yield action, partition, time_ms


def _without_names(search: Feedback, pseudonyms: Pseudonyms) -> Feedback:
    client, session = pseudonyms.of(search.client, search.session)
    return msgspec.structs.replace(search, client=client, session=session)


class _Requests:
    """A maker of requests from searches; it builds a query's context once."""

    def __init__(self, opened: LeserIndex | None, run: str) -> None:
        self._bench = opened
        self._run = run
        self._contexts: dict[str, Context] = {}

    def __call__(self, searches: list[Feedback]) -> list[Request]:
        """Return a request for each search; none without an index."""
        if self._bench is None:
            return []
        new = list(dict.fromkeys(each.query for each in searches if each.query not in self._contexts))
        self._contexts |= dict(zip(new, self._bench.contexts(new), strict=True)) if new else {}
        return [
            Request(
                request_id=f"{self._run}-{each.feedback_id}",
                run=self._run,
                query_id=each.query_id,
                query=each.query,
                index=self._bench.version.name,
                split="live",
                context=self._contexts[each.query],
                made_at_ms=each.at_ms,
            )
            for each in searches
        ]


@contextmanager
def _requests(app: App, index: str | None, run: str, report: Report) -> Iterator[_Requests]:
    if index is None:
        yield _Requests(None, run)
        return
    with open_leser_index(app.home.index(index), app.settings, app.engine, report) as opened:
        yield _Requests(opened, run)


def store_log(app: App, run: str) -> None:
    """Store the records that the run's topics hold now; a run that is being made has no sink."""
    kafka = app.connections.kafka
    partitions = partitions_of(kafka, [topic_name(run, topic.kind) for topic in TOPICS])
    settings: SinkSettings = app.settings.sink
    with Sink(app.home.run(run) / LEDGER, settings) as sink:
        for item, (start, end) in log_bounds(kafka, partitions).items():
            records = read_range(kafka, TopicPartition(*item), start, end, client_id=f"{run}-import")
            while some := list(islice(records, AT_ONCE)):
                sink.submit(some)
