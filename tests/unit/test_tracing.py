"""Traces: headers beside the event and never in it, sound parents, and nothing at all when they are off."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from streams.codec import encode_event
from streams.delivery import DeliverySettings, Outbox
from streams.errors import SettingsError
from streams.tracing import WAITING_MAX, Headers, Tracing, TracingSettings, current_tracing, traced, tracing_to
from tests.stored_events import RUN, generation, record, request, reward, update

ROOT = Path(__file__).parents[2]
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"  # The example of the W3C's recommendation.

SAMPLED = 1  # The lowest bit of the flags; the next one says that the id is random.


class FakeProducer:
    """Keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []

    def send(self, topic: str, **record: Any) -> None:
        self.sent.append({"topic": topic, **record})


@pytest.fixture
def exported() -> Iterator[InMemorySpanExporter]:
    """Give the spans of this process, which is a worker of the environment."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with tracing_to(provider, MeterProvider(), run=RUN, stage="environment"):
        yield exporter


def outbox() -> tuple[Outbox, list[dict[str, Any]]]:
    producer = FakeProducer()
    return Outbox(producer, RUN, stage="environment", settings=DeliverySettings()), producer.sent


def by_name(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


def hexed(span: ReadableSpan) -> tuple[str, str, str]:
    """Return trace, span and parent."""
    context = span.get_span_context()
    assert context is not None
    parent = f"{span.parent.span_id:016x}" if span.parent else ""
    return f"{context.trace_id:032x}", f"{context.span_id:016x}", parent


def test_an_answer_goes_on_with_the_trace_of_its_record(exported: InMemorySpanExporter) -> None:
    came = msgspec.structs.replace(
        record(generation(1), 7), headers=(("traceparent", PARENT.encode()),), taken_ns=1_700_000_000_000_000_000
    )
    box, sent = outbox()
    box.answer(came, reward(1))
    found = by_name(exported)
    trace, worker, parent = hexed(found["process test.generations"])
    assert (trace, parent) == (PARENT.split("-")[1], PARENT.split("-")[2])
    assert found["process test.generations"].start_time == 1_700_000_000_000_000_000
    _, sending, of = hexed(found["send test.rewards"])
    assert of == worker
    assert sent[0]["headers"] == [("traceparent", f"00-{trace}-{sending}-01".encode())]


def test_headers_lie_beside_the_event_and_change_no_byte(exported: InMemorySpanExporter) -> None:
    box, sent = outbox()
    box.send(request(1))
    box.answer(record(generation(1), 7), reward(1))
    assert [each["value"] for each in sent] == [encode_event(request(1)), encode_event(reward(1))]
    assert all([name for name, _ in each["headers"]] == ["traceparent"] for each in sent)


def test_without_tracing_a_record_gets_no_header() -> None:
    assert current_tracing() is None
    box, sent = outbox()
    box.send(request(1))
    box.answer(record(generation(1), 7), reward(1))
    box.bury(record(generation(1), 7), "no event")
    assert [each["headers"] for each in sent] == [None, None, None]


def test_without_tracing_no_worker_imports_the_library() -> None:
    # The client of Elasticsearch imports the interface where it is installed, and nothing behind it.
    code = (
        "import sys, learner.workers, search_env.workers, infra.runs.workers, infra.runs.training\n"
        "from streams.tracing import TracingSettings, traced\n"
        "with traced(TracingSettings(), run='r', stage='s'): pass\n"
        "sys.exit(any(name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter')) for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize(
    "headers",
    [
        (),
        (("traceparent", b""),),
        (("traceparent", b"\xff\x00"),),
        (("traceparent", PARENT.upper().replace("-", "_").encode()),),
        (("traceparent", b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01"),),
        (("traceparent", b"a" * 100_000),),
        (("tracestate", b"=,=,\r\n"), ("traceparent", b"99")),
    ],
)
def test_a_record_without_a_sound_context_begins_a_trace(exported: InMemorySpanExporter, headers: Headers) -> None:
    box, sent = outbox()
    box.answer(msgspec.structs.replace(record(generation(1), 7), headers=headers), reward(1))
    trace, _, parent = hexed(by_name(exported)["process test.generations"])
    assert parent == "" and int(trace, 16) != 0
    assert trace.encode() in sent[0]["headers"][0][1]


def test_a_buried_record_shows_as_an_error_in_its_trace(exported: InMemorySpanExporter) -> None:
    came = msgspec.structs.replace(record(generation(1), 7), headers=(("traceparent", PARENT.encode()),))
    box, sent = outbox()
    box.bury(came, "the engine is away" * 100)
    found = by_name(exported)["process test.generations"]
    assert hexed(found)[0] == PARENT.split("-")[1]
    assert found.status.description is not None and found.status.description.startswith("the engine is away")
    assert len(found.status.description) == 500
    assert PARENT.split("-")[1].encode() in sent[0]["headers"][0][1]


def test_an_update_and_its_groups_name_each_other(exported: InMemorySpanExporter) -> None:
    tracing = current_tracing()
    assert tracing is not None
    made = msgspec.structs.replace(update(1, [1, 2]), flat=(generation(3).group_id,))
    for number in (1, 2, 3, 4):
        tracing.waits(generation(number).group_id, record(reward(number), number))
    tracing.updated(made, began_ns=5)
    spans = exported.get_finished_spans()
    (whole,) = [span for span in spans if span.name == "update"]
    assert whole.start_time == 5 and whole.attributes is not None
    assert whole.attributes["messaging.batch.message_count"] == 3
    last = [span for span in spans if span.name == "process test.rewards"]
    assert sorted(str((span.attributes or {})["searchloop.fate"]) for span in last) == ["flat", "trained", "trained"]
    assert {hexed(whole)[1]} == {f"{link.context.span_id:016x}" for span in last for link in span.links}
    tracing.updated(msgspec.structs.replace(made, trained=(generation(4).group_id,)), began_ns=6)
    assert len([span for span in exported.get_finished_spans() if span.name == "process test.rewards"]) == 4, (
        "once each"
    )


def test_groups_that_no_update_takes_are_forgotten_in_the_end(exported: InMemorySpanExporter) -> None:
    tracing = current_tracing()
    assert tracing is not None
    came = record(reward(1), 1)
    for number in range(WAITING_MAX + 10):
        tracing.waits(f"g{number}", came)
    assert len(tracing._waiting) == WAITING_MAX and "g9" not in tracing._waiting


def test_a_request_that_was_not_drawn_leaves_no_span_in_any_stage() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=ParentBased(TraceIdRatioBased(0.0)))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing = Tracing(provider, MeterProvider(), run=RUN, stage="generator")
    headers = tracing.sent("test.requests", "k")
    assert int(headers[0][1][-2:], 16) & SAMPLED == 0
    came = msgspec.structs.replace(record(request(1), 1), headers=headers)
    assert tracing.answered(came, "test.generations", "g")[0][1].split(b"-")[1] == headers[0][1].split(b"-")[1]
    assert exporter.get_finished_spans() == ()


def test_a_collector_that_is_away_costs_spans_and_no_record(caplog: pytest.LogCaptureFixture) -> None:
    settings = TracingSettings(on=True, endpoint="http://127.0.0.1:1")
    box, sent = outbox()
    with traced(settings, run=RUN, stage="environment"):
        box.send(request(1))
    assert len(sent) == 1 and sent[0]["headers"]
    assert current_tracing() is None


def test_headers_for_the_collector_do_not_travel_in_the_open(monkeypatch: pytest.MonkeyPatch) -> None:
    far = TracingSettings(on=True, endpoint="http://collector.example:4318")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=secret")
    with pytest.raises(SettingsError, match="expected TLS") as refused, traced(far, run=RUN, stage="learner"):
        pass
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("endpoint", ["", "collector:4318", "ftp://collector", "http://"])
def test_an_endpoint_that_is_no_address_is_refused(endpoint: str) -> None:
    with (
        pytest.raises(SettingsError, match=r"tracing\.endpoint: expected an address"),
        traced(TracingSettings(on=True, endpoint=endpoint), run=RUN, stage="learner"),
    ):
        pass


def test_without_the_library_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with (
        pytest.raises(SettingsError, match=r"pip install 'searchloop\[tracing\]'"),
        traced(TracingSettings(on=True), run=RUN, stage="learner"),
    ):
        pass
