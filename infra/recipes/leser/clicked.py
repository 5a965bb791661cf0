"""LESER's environment of clicks, wired: the outcomes of the live run, as Kafka has them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager

from kafka import KafkaConsumer, TopicPartition

from infra.app.app import App
from infra.app.run_settings import RunSettings
from search_env.environments import Environment
from search_env.leser.clicked import ClickedEnvironment
from streams.clients import connect_consumer, existing_topics, partitions_of
from streams.codec import decode
from streams.delivery import DeliverySettings, known_position, poll
from streams.errors import EventError, SettingsError
from streams.events import Position
from streams.kafka_errors import told
from streams.kafka_settings import KafkaSettings
from streams.topics import topic_name
from streams.traffic_events import ImpressionOutcome

READ_AT_ONCE = 5_000
POLL_SECONDS = 0.1


class LiveOutcomes:
    """The outcomes of a live run's impressions, read from their topic over one connection."""

    def __init__(self, kafka: KafkaSettings, live: str, *, member: str) -> None:
        """Raises SettingsError if the live run has no topics yet."""
        topic = topic_name(live, "impression-outcomes")
        if topic not in existing_topics(kafka, [topic]):
            raise SettingsError(
                f"leser.clicks.live: expected a live run with topics, got {live!r}, which has none. Run: searchloop "
                f"serve --run {live}, and: searchloop listen --run {live}"
            )
        self._items = partitions_of(kafka, [topic])
        ends: dict[TopicPartition, int | None] = dict.fromkeys(self._items)
        self._consumer: KafkaConsumer = connect_consumer(kafka, ends, client_id=member, records_max=READ_AT_ONCE)
        self._consumer.seek_to_end(*self._items)
        self._delivery = DeliverySettings()

    def close(self) -> None:
        """Close the connection."""
        self._consumer.close()

    def since(self, at_ms: int) -> dict[int, int]:
        """Read again from this time on, if it is past already; return the first offset of each partition."""
        with told("could not find the outcomes of a time"):
            found = self._consumer.offsets_for_times(dict.fromkeys(self._items, max(at_ms, 0)))
            ends = self._consumer.end_offsets(self._items)
        begins = {}
        for item in self._items:
            first = found[item].offset if found.get(item) is not None else ends[item]
            at = known_position(self._consumer, item)
            if at is None or first < at:
                self._consumer.seek(item, first)
            begins[item.partition] = first
        return begins

    def read(self) -> list[tuple[Position, ImpressionOutcome]]:
        """Return the next outcomes, in order within each partition; none if there are no more now."""
        found = []
        for record in poll(self._consumer, self._delivery, records_max=READ_AT_ONCE, timeout_seconds=POLL_SECONDS):
            with contextlib.suppress(EventError):
                event = decode(record.value)
                if isinstance(event, ImpressionOutcome):
                    found.append((record.position, event))
        return found

    def read_to(self) -> dict[int, int]:
        """Return the next offset of each partition; one that is not known yet is left out."""
        places = {item.partition: known_position(self._consumer, item) for item in self._items}
        return {partition: offset for partition, offset in places.items() if offset is not None}


@contextmanager
def open_clicked(app: App, run: RunSettings) -> Iterator[Environment]:
    """Yield the environment of a run whose rewards are clicks. Raises SettingsError without a live run."""
    settings = run.settings.leser
    with contextlib.closing(
        LiveOutcomes(app.connections.kafka, settings.clicks.live, member=f"{run.run}-environment-outcomes")
    ) as outcomes:
        yield ClickedEnvironment(
            outcomes,
            app.home.run(settings.clicks.live),
            run=run.run,
            index=run.index_version,
            settings=settings.clicks,
            utility=run.settings.utility,
            expansions=settings.expansions,
        )
