"""Traces from request to update, for OpenTelemetry: a record's context lies in its Kafka headers, as W3C writes it.

A request begins a trace. Each worker that answers a record adds a span to its trace, and hands the context on beside
the answer. An update belongs to many traces: it begins one of its own, linked with those of its groups in both ways.
Events do not know of it, so their bytes, ids and replays stay what they are. Off, which is the default, nothing is
imported and no header is written; a record then costs one look at an empty variable.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import msgspec

from streams.descriptions import describe
from streams.errors import SettingsError
from streams.events import Update, fates_of
from streams.records import Received
from streams.tls import guard_plain
from streams.topics import topic_name, version_name

if TYPE_CHECKING:
    from kafka import TopicPartition
    from opentelemetry.context import Context
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Link, Span, SpanKind

WAITING_MAX = 10_000  # Groups that the learner has taken and not learned from; older ones lose their last span.
ERROR_CHARACTERS_MAX = 500
EXPORT_SECONDS = 2.0
COUNTS_SECONDS = 15.0
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)  # Of the conventions.
HEADER_VARIABLES = tuple(f"OTEL_EXPORTER_OTLP_{part}HEADERS" for part in ("", "TRACES_", "METRICS_"))
Headers = tuple[tuple[str, bytes], ...]


class TracingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Traces of the loop for OpenTelemetry."""

    on: Annotated[
        bool,
        describe(
            "True sends a span for each record that a worker handles, and counts of records, and writes W3C headers "
            "into Kafka."
        ),
    ] = False
    endpoint: Annotated[
        str,
        describe(
            "Address of a collector that takes OTLP over HTTP; `/v1/traces` and `/v1/metrics` are added. Headers for "
            "it, such as a token, come from the variable OTEL_EXPORTER_OTLP_HEADERS."
        ),
    ] = "http://127.0.0.1:4318"
    allow_insecure: Annotated[bool, describe("True allows to send those headers without TLS to other machines.")] = (
        False
    )
    share: Annotated[
        float, msgspec.Meta(ge=0, le=1), describe("Share of the requests that are traced, drawn at random.")
    ] = 1.0


class Tracing:
    """The spans and counts of one worker. They go to the providers, which the caller closes."""

    def __init__(self, provider: TracerProvider, meters: MeterProvider, *, run: str, stage: str) -> None:
        from opentelemetry import context, trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._trace = trace
        self._empty: Context = context.Context()
        self._tracer = provider.get_tracer("searchloop")
        self._propagator = TraceContextTextMapPropagator()
        self._run = run
        self._common = {"messaging.system": "kafka", "searchloop.run": run, "searchloop.stage": stage}
        self._waiting: OrderedDict[str, Received] = OrderedDict()
        self._searches: OrderedDict[str, Headers] = OrderedDict()
        meter = meters.get_meter("searchloop")
        self._sent = meter.create_counter("messaging.client.sent.messages", "{message}")
        self._consumed = meter.create_counter("messaging.client.consumed.messages", "{message}")
        self._durations = meter.create_histogram(
            "messaging.process.duration", "s", explicit_bucket_boundaries_advisory=SECONDS
        )

    def count_sent(self, topic: str) -> None:
        """Count a record that was handed to the producer."""
        self._sent.add(1, self._counted("send", topic))

    def count_consumed(self, topic: str, records: int) -> None:
        """Count records that came."""
        self._consumed.add(records, self._counted("poll", topic))

    def sent(self, topic: str, key: str, *, within: Context | None = None) -> Headers:
        """Add the span of a sent record, and return the record's headers. within: None begins a trace."""
        kind = self._trace.SpanKind.PRODUCER
        span = self._span(f"send {topic}", within or self._empty, kind, **self._message("send", topic, key))
        span.end()
        return self._headers(span)

    def told(self, topic: str, key: str) -> Headers:
        """Add the span of a record about a search, and return the record's headers.

        The first record with a key, the impression, begins the trace; what people do goes on with it, as long as the
        search is among the newest.
        """
        begun = self._searches.get(key)
        headers = self.sent(topic, key, within=self._read(begun) if begun is not None else None)
        if begun is None:
            self._searches[key] = headers
            while len(self._searches) > WAITING_MAX:
                self._searches.popitem(last=False)
        return headers

    def answered(self, record: Received, topic: str, key: str, *, error: str = "") -> Headers:
        """Add the spans of a handled record and of its answer; return the answer's headers.

        error: why the record was given up; its answer is a dead letter.
        """
        span = self._processed(record)
        if error:
            status = self._trace.Status(self._trace.StatusCode.ERROR, error[:ERROR_CHARACTERS_MAX])
            span.set_status(status)
        headers = self.sent(topic, key, within=self._trace.set_span_in_context(span, self._empty))
        span.end()
        return headers

    def waits(self, group_id: str, record: Received) -> None:
        """Remember the record of a group's reward until an update takes the group."""
        self._waiting[group_id] = record
        while len(self._waiting) > WAITING_MAX:
            self._waiting.popitem(last=False)

    def updated(self, update: Update, *, began_ns: int) -> Headers:
        """Add the span of an update, and a last one to the trace of each of its groups; return the update's headers."""
        fates = {group: fate for fate, groups in fates_of(update).items() for group in groups}
        records = {group: self._waiting.pop(group) for group in fates if group in self._waiting}
        version: dict[str, Any] = {
            "searchloop.policy.version": version_name(update.policy),
            "searchloop.step": update.policy.step,
        }
        span = self._span(
            "update",
            self._empty,
            self._trace.SpanKind.INTERNAL,
            links=[link for record in records.values() if (link := self._link(self._context(record))) is not None],
            start_time=began_ns,
            **{"messaging.batch.message_count": len(fates), "searchloop.trained": len(update.trained)} | version,
        )
        within = self._trace.set_span_in_context(span, self._empty)
        for group, record in records.items():
            last = self._processed(record, links=[self._trace.Link(span.get_span_context())])
            last.set_attributes({"searchloop.fate": fates[group], **version})
            last.end()
        headers = self.sent(topic_name(self._run, "updates"), version_name(update.policy), within=within)
        span.end()
        return headers

    def _processed(self, record: Received, *, links: list[Link] | None = None) -> Span:
        place = record.position
        if record.taken_ns:
            seconds = (time.time_ns() - record.taken_ns) / 1e9
            self._durations.record(max(seconds, 0.0), self._counted("process", place.topic))
        key = (record.key or b"").decode(errors="replace")
        return self._span(
            f"process {place.topic}",
            self._context(record),
            self._trace.SpanKind.CONSUMER,
            links=links,
            start_time=record.taken_ns or None,
            **self._message("process", place.topic, key)
            | {
                "messaging.destination.partition.id": str(place.partition),
                "messaging.kafka.offset": place.offset,
            },
        )

    def _span(
        self,
        name: str,
        within: Context,
        kind: SpanKind,
        *,
        links: list[Link] | None = None,
        start_time: int | None = None,
        **attributes: Any,
    ) -> Span:
        return self._tracer.start_span(
            name, context=within, kind=kind, links=links, start_time=start_time, attributes=self._common | attributes
        )

    def _counted(self, does: str, topic: str) -> dict[str, Any]:
        return {**self._common, "messaging.operation.name": does, "messaging.destination.name": topic}

    def _message(self, does: str, topic: str, key: str) -> dict[str, Any]:
        return {
            "messaging.operation.name": does,
            "messaging.operation.type": does,
            "messaging.destination.name": topic,
            "messaging.kafka.message.key": key,
        }

    def _headers(self, span: Span) -> Headers:
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, self._trace.set_span_in_context(span, self._empty))
        return tuple((name, value.encode()) for name, value in sorted(carrier.items()))

    def _context(self, record: Received) -> Context:
        """Return the context in a record's headers; without a sound one, an empty context, which begins a trace."""
        return self._read(record.headers)

    def _read(self, headers: Iterable[tuple[str, bytes]]) -> Context:
        carrier: Mapping[str, str] = {name: value.decode(errors="replace") for name, value in headers}
        return self._propagator.extract(carrier, self._empty)

    def _link(self, context: Context) -> Link | None:
        found = self._trace.get_current_span(context).get_span_context()
        return self._trace.Link(found) if found.is_valid else None


_current: list[Tracing] = []


def current_tracing() -> Tracing | None:
    """Return the spans of this process; None if tracing is off."""
    return _current[-1] if _current else None


def taken_ns(records: Mapping[TopicPartition, Sequence[object]]) -> int:
    """Count these records, by partition, as taken now, and return the time; 0 if tracing is off."""
    if not _current:
        return 0
    for partition, found in records.items():
        _current[-1].count_consumed(partition.topic, len(found))
    return time.time_ns()


@contextmanager
def tracing_to(provider: TracerProvider, meters: MeterProvider, *, run: str, stage: str) -> Iterator[Tracing]:
    """Send the spans and counts of this process to two providers until the block ends."""
    made = Tracing(provider, meters, run=run, stage=stage)
    _current.append(made)
    try:
        yield made
    finally:
        _current.remove(made)


@contextmanager
def traced(settings: TracingSettings, *, run: str, stage: str) -> Iterator[None]:
    """Send the spans and counts of this process to a collector until the block ends; without `tracing.on`, do nothing.

    A collector that is away costs spans, never records: they wait in a bounded queue, and are then dropped.
    Raises SettingsError if the library is missing, or if headers would travel without TLS.
    """
    if not settings.on:
        yield
        return
    _require_tls(settings)
    provider, meters = _providers(settings, stage)
    try:
        with tracing_to(provider, meters, run=run, stage=stage):
            yield
    finally:
        provider.force_flush(int(EXPORT_SECONDS * 1000))
        provider.shutdown()
        meters.shutdown(timeout_millis=EXPORT_SECONDS * 1000)


def _require_tls(settings: TracingSettings) -> None:
    address = urlsplit(settings.endpoint)
    if address.scheme not in ("http", "https") or not address.hostname:
        raise SettingsError(
            f"tracing.endpoint: expected an address such as https://collector.example:4318, got {settings.endpoint!r}"
        )
    if address.scheme == "http" and any(os.environ.get(name) for name in HEADER_VARIABLES):
        guard_plain(
            "tracing",
            what="the value of OTEL_EXPORTER_OTLP_HEADERS",
            hosts=[address.hostname],
            instead="Set tracing.endpoint to an https:// address",
            allowed=settings.allow_insecure,
        )


def _providers(settings: TracingSettings, stage: str) -> tuple[TracerProvider, MeterProvider]:
    try:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import SpanLimits, TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
    except ImportError as error:
        raise SettingsError(
            "tracing.on: expected the OpenTelemetry libraries, found none. Run: pip install 'searchloop[tracing]'"
        ) from error
    resource = Resource.create({"service.name": "searchloop", "service.instance.id": stage})
    base = settings.endpoint.rstrip("/")
    provider = TracerProvider(
        resource=resource,
        sampler=ParentBased(TraceIdRatioBased(settings.share)),
        span_limits=SpanLimits(max_links=WAITING_MAX),
        shutdown_on_exit=False,
    )
    spans = OTLPSpanExporter(endpoint=f"{base}/v1/traces", timeout=EXPORT_SECONDS)
    provider.add_span_processor(BatchSpanProcessor(spans))
    counts = OTLPMetricExporter(endpoint=f"{base}/v1/metrics", timeout=EXPORT_SECONDS)
    reader = PeriodicExportingMetricReader(counts, export_interval_millis=COUNTS_SECONDS * 1000)
    return provider, MeterProvider([reader], resource, shutdown_on_exit=False)
