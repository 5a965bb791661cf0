"""The way from the spool to Kafka goes on after any failure, and ends at once while Kafka is away."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from infra.serving import forwarding
from infra.serving.forwarding import Forwarder
from streams.delivery import DeliverySettings
from streams.errors import SettingsError
from streams.kafka_settings import KafkaSettings
from streams.spool import Spool, Spooled
from streams.tracing import tracing_to

EVENT = Spooled(kind="actions", key=b"k", value=b"v")


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    made = Spool(tmp_path / "spool", bytes_max=1_000_000)
    made.append([EVENT])
    yield made
    made.close()


def forwarder(spool: Spool, prepare: threading.Event, failures: list[Exception]) -> Forwarder:
    def fail() -> None:
        prepare.set()
        if failures:
            raise failures.pop(0)
        raise SettingsError("Kafka is still away")

    return Forwarder(spool, "live", KafkaSettings(), DeliverySettings(), fail)


def test_a_failure_that_nobody_expects_does_not_end_it(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarding, "PAUSE_SECONDS", 0.01)
    failures: list[Exception] = [RuntimeError("a fault of a library"), ZeroDivisionError()]
    made = forwarder(spool, threading.Event(), failures)
    made.start()
    deadline = time.monotonic() + 20
    while made.trouble != "Kafka is still away" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (made.trouble, failures) == ("Kafka is still away", [])
    assert spool.waiting_bytes > 0
    made.stop(10)


def test_it_ends_at_once_while_kafka_is_away_and_the_events_stay(spool: Spool) -> None:
    called = threading.Event()
    made = forwarder(spool, called, [])
    made.start()
    assert called.wait(20)
    while not made.trouble:
        time.sleep(0.01)
    began = time.monotonic()
    made.stop(60)
    assert time.monotonic() - began < 10
    assert spool.read(10)[0] == [EVENT]


class FakeProducer:
    """Keeps what it is told to send, with its headers."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes, dict[str, bytes]]] = []

    def send(self, topic: str, *, key: bytes, headers: list[tuple[str, bytes]] | None, **_: Any) -> SimpleNamespace:
        self.sent.append((topic, key, dict(headers or [])))
        return SimpleNamespace(get=lambda timeout: None)

    def flush(self, timeout: float | None = None) -> None:
        """Everything was taken at once."""


def forwarded(tmp_path: Path, records: list[Spooled]) -> list[tuple[str, bytes, dict[str, bytes]]]:
    spool, producer = Spool(tmp_path / "spool", bytes_max=1_000_000), FakeProducer()
    spool.append(records)
    made = Forwarder(spool, "live", KafkaSettings(), DeliverySettings(), lambda: None)
    made._partitions = {"impressions": 1, "actions": 1}
    assert made._send_some(producer)  # type: ignore[arg-type]
    spool.close()
    return producer.sent


def test_a_search_begins_a_trace_and_what_people_do_goes_on_with_it(tmp_path: Path) -> None:
    records = [
        Spooled(kind=kind, key=key, value=b"v")
        for kind, key in (("impressions", b"one"), ("impressions", b"two"), ("actions", b"one"), ("actions", b"lost"))
    ]
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with tracing_to(provider, MeterProvider(), run="live", stage="serve"):
        sent = forwarded(tmp_path, records)
    assert [(topic, key) for topic, key, _ in sent] == [(f"live.{each.kind}", each.key) for each in records]
    one, two, click, lost = exporter.get_finished_spans()
    for span, (topic, _, headers) in zip((one, two, click, lost), sent, strict=True):
        about = span.get_span_context()
        assert headers["traceparent"].decode().split("-")[1:3] == [f"{about.trace_id:032x}", f"{about.span_id:016x}"]
        assert span.attributes is not None
        assert (span.name, span.attributes["searchloop.stage"]) == (f"send {topic}", "serve")
    assert one.parent is None and two.parent is None and lost.parent is None
    assert click.parent is not None and click.parent.span_id == one.get_span_context().span_id
    assert len({span.get_span_context().trace_id for span in (one, two, click, lost)}) == 3


def test_without_tracing_no_header_is_written(tmp_path: Path) -> None:
    ((_, _, headers),) = forwarded(tmp_path, [Spooled(kind="impressions", key=b"one", value=b"v")])
    assert headers == {}
