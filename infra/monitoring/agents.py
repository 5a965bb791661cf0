"""The monitor's connection to Kafka: a faust app that folds a run's topics into windows and publishes the changes.

The app works around these faults of faust-streaming 0.15.3. Its `exactly_once` leaks duplicates, so the monitor uses no
commits: it acknowledges nothing, has a separate consumer group, and starts at the log's beginning. faust acknowledges
records that it cannot decode, so it gets bytes, and we decode them. It drops records at its start, so `ReadPositions`
requests them again. Its command line opens a web server on all interfaces, so the app starts without it.

The windows are in a faust table in memory. The table's changelog is the topic that the monitor publishes. At its start
the monitor restores the table from the changelog, so it publishes only differences.
"""

from __future__ import annotations

import asyncio
import logging
import os
import uuid
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faust
import msgspec
from faust.types import TP

from infra.app.app import App
from infra.app.home import read_settings_file
from infra.monitoring.alerting import AlertRounds
from infra.monitoring.lock import only_monitor
from infra.runs.topics import make_derived_topics
from storage.monitor.reading import ReadPositions
from storage.monitor.windows import EXPECTED, MonitorSettings, Windows
from streams.clients import partitions_of
from streams.clock import now_ms
from streams.codec import RECORD_BYTES_MAX, decode_window, encode_event
from streams.doors import kafka_context
from streams.errors import DeliveryError, EventError, SettingsError
from streams.events import Position, VersionWindow, WindowEvent
from streams.kafka_settings import KafkaSettings
from streams.ranges import log_bounds
from streams.secrets import reveal
from streams.stopping import Stop
from streams.topics import kind_of, topic_name

SESSION_SECONDS = 8.0
STOP_SECONDS = 8.0
SEEK_SECONDS = 2.0  # Longer than a fetch waits for new records (1.5 s).
YEAR_SECONDS = 365 * 86_400.0
FOLDER = "monitor"
log = logging.getLogger(__name__)

RAW: dict[str, Any] = {"key_type": bytes, "value_type": bytes, "key_serializer": "raw", "value_serializer": "raw"}


class MonitorTables(msgspec.Struct, frozen=True, kw_only=True):
    """The table of a run's settings that a monitor needs."""

    monitor: MonitorSettings = MonitorSettings()


class MonitorRun(msgspec.Struct, frozen=True, kw_only=True):
    """The part of `RunSettings` that a monitor needs."""

    settings: MonitorTables


class PublishedTable(faust.Table):  # type: ignore[misc]  # faust's types are not read
    """A table whose changelog has one partition, whatever the partition of the current record."""

    def partition_for_key(self, key: bytes) -> int:
        """Return 0. The method of faust reads the current record, and a timer has none."""
        return 0


def run_monitor_worker(app: App, *, run: str, stop: Stop) -> None:
    """Maintain the windows of a run until told to stop.

    Raises DeliveryError if another monitor of this run is running, or if faust fails.
    """
    run_dir = app.home.run(run)
    settings = read_settings_file(run_dir, MonitorRun).settings.monitor
    kafka = app.connections.kafka
    with only_monitor(run_dir), alerting(app, run) as alerts:
        make_derived_topics(app, run)
        asyncio.run(_serve(run, kafka, settings, stop, datadir=run_dir / FOLDER, alerts=alerts))


@contextmanager
def alerting(app: App, run: str) -> Iterator[AlertRounds | None]:
    """Judge the run's alerts meanwhile; wrong rules cost the alerts, and not the windows."""
    try:
        rounds = AlertRounds(app, run)
    except SettingsError as error:
        log.error("no alerts: %s", error)
        yield None
        return
    try:
        yield rounds
    finally:
        rounds.close()


def build_app(
    run: str, kafka: KafkaSettings, windows: Windows, reading: ReadPositions, *, datadir: Path
) -> tuple[Any, PublishedTable]:
    """Return the faust app of one monitor and its table, both not connected yet."""
    app = faust.App(
        f"{run}.monitor.{uuid.uuid4().hex[:8]}",
        broker=[f"kafka://{address}" for address in kafka.bootstrap.split(",")],
        broker_credentials=credentials(kafka),
        broker_session_timeout=SESSION_SECONDS,
        broker_heartbeat_interval=SESSION_SECONDS / 4,
        consumer_auto_offset_reset="earliest",
        consumer_max_fetch_size=RECORD_BYTES_MAX + 64 * 1024,
        producer_max_request_size=RECORD_BYTES_MAX + 64 * 1024,
        stream_wait_empty=False,  # Otherwise a stop waits for acknowledgements that never come.
        stream_processing_timeout=YEAR_SECONDS,  # Otherwise faust reports a quiet topic as hanging every 7 s.
        store="memory://",
        datadir=datadir,  # faust makes this folder, by default in the working directory, and stores nothing.
        autodiscover=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        web_enabled=False,
        worker_redirect_stdouts=False,
    )
    published = app.topic(topic_name(run, "windows"), partitions=1, **RAW)
    table = PublishedTable(
        app, name="windows", store="memory://", key_type=bytes, value_type=bytes, changelog_topic=published
    )
    app.tables.add(table)

    async def fold(stream: Any) -> None:
        async for event in stream.noack().events():
            message = event.message
            if not reading.take((message.topic, message.partition), message.offset):
                continue
            windows.add(
                Position(topic=message.topic, partition=message.partition, offset=message.offset),
                event.value,
                timestamp_ms=int((message.timestamp or 0) * 1000),
                now_ms=now_ms(),
                headers=tuple(event.headers.items()),  # faust makes a dictionary of them.
            )

    for kind in EXPECTED:
        app.agent(app.topic(topic_name(run, kind), **RAW), name=f"{run}.monitor.{kind}", concurrency=1)(fold)

    return app, table


def publish(windows: Windows, table: MutableMapping[bytes, bytes], *, truncated: bool) -> None:
    """Put the changed windows into the table, which sends them to its topic.

    truncated: True if retention has deleted the log's beginning. A window that was published with more groups then
    stays unchanged, because it was counted while the log still held them.
    """
    for name, event in windows.changes().items():
        key = name.encode()
        if event is None:
            table.pop(key, None)
        elif table.get(key) != (value := encode_event(event)) and not (
            truncated and _lost_groups(table.get(key), event)
        ):
            table[key] = value


def _lost_groups(published: bytes | None, event: WindowEvent) -> bool:
    try:
        before = decode_window(published)
    except EventError:
        return False
    return isinstance(before, VersionWindow) and isinstance(event, VersionWindow) and before.groups > event.groups


def credentials(kafka: KafkaSettings) -> Any:
    """Return the broker's credentials in faust's form; None for a broker that needs none."""
    context = kafka_context(kafka)
    if kafka.security_protocol.startswith("SASL"):
        return faust.SASLCredentials(
            username=kafka.sasl_username,
            password=reveal(kafka.sasl_password),
            mechanism=kafka.sasl_mechanism or "PLAIN",
            ssl_context=context,
        )
    return faust.SSLCredentials(context) if context is not None else None


async def _serve(
    run: str, kafka: KafkaSettings, settings: MonitorSettings, stop: Stop, *, datadir: Path, alerts: AlertRounds | None
) -> None:
    bounds = log_bounds(kafka, partitions_of(kafka, [topic_name(run, kind) for kind in EXPECTED]))
    truncated = any(start > 0 for start, _ in bounds.values())
    ends = {(kind_of(item.topic), item.partition): end for item, (start, end) in bounds.items() if start < end}
    windows = Windows(run, settings, ends=ends)
    reading = ReadPositions({(item.topic, item.partition): start for item, (start, _) in bounds.items()})
    app, table = build_app(run, kafka, windows, reading, datadir=datadir)
    ready = asyncio.Event()

    async def publish_changes() -> None:
        ready.set()
        publish(windows, table, truncated=truncated)
        if alerts is not None and windows.caught_up:
            alerts.publish(dict(table.items()))

    async def seek_overdue() -> None:
        known = {(item.topic, item.partition): app.consumer.highwater(item) for item in app.consumer.assignment()}
        for (topic, partition), offset in reading.overdue({item: end or 0 for item, end in known.items()}).items():
            log.info("%s[%d]: requesting the records from offset %d again", topic, partition, offset)
            # Not `seek`: faust 0.15.3 calls aiokafka from this thread then, while the consumer's own thread may be
            # taking records of the same partition, and that thread dies of a KeyError.
            await app.consumer.seek_wait({TP(topic, partition): offset})

    app.timer(settings.publish_seconds)(publish_changes)
    app.timer(SEEK_SECONDS)(seek_overdue)
    app.finalize()
    await app.start()
    while not stop() and not app.should_stop:
        await asyncio.sleep(0.1)
    crash = app.crash_reason if app.crashed else None
    try:
        # If faust 0.15.3 is stopped during its start, it waits forever for tables that are never registered.
        await asyncio.wait_for(ready.wait(), STOP_SECONDS if crash is None else 0.0)
        publish(windows, table, truncated=truncated)
        await asyncio.wait_for(asyncio.shield(app.stop()), STOP_SECONDS)
    except TimeoutError:
        # Its threads would keep the process alive. The process has no state to lose.
        log.warning("faust does not stop; leaving without it")
        os._exit(0 if crash is None else 1)
    if crash is not None:
        raise DeliveryError(f"the monitor of run {run!r} ended: {crash!r}. Start it again: nothing depends on it")
