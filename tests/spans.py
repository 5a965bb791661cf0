"""A collector of OpenTelemetry spans for tests: it takes OTLP over HTTP and keeps what came."""

from __future__ import annotations

import gzip
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Span(NamedTuple):
    """One span. links: of other spans, by trace and span id."""

    trace: str
    span: str
    parent: str
    name: str
    kind: int
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    links: tuple[tuple[str, str], ...]
    error: str
    service: dict[str, Any]


class Collector:
    """The spans and counts that have come, and the address that takes them.

    counts: the newest value of each series, by name, service and destination; of a histogram, its number of values.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.spans: list[Span] = []
        self.counts: dict[tuple[str, str, str], int] = {}

    def take(self, path: str, body: bytes) -> None:
        """Read one request of the protocol, as its own library does."""
        if path == "/v1/metrics":
            self._take_counts(body)
            return
        assert path == "/v1/traces"
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = _attributes(resource.resource.attributes)
            for scope in resource.scope_spans:
                self.spans += [_span(each, service) for each in scope.spans]

    def _take_counts(self, body: bytes) -> None:
        for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
            service = _attributes(resource.resource.attributes)["service.instance.id"]
            for metric in (each for scope in resource.scope_metrics for each in scope.metrics):
                for point in (*metric.sum.data_points, *metric.histogram.data_points):
                    place = metric.name, service, _attributes(point.attributes)["messaging.destination.name"]
                    self.counts[place] = point.count if metric.HasField("histogram") else point.as_int

    def of(self, trace: str) -> list[Span]:
        """Return a trace's spans, by their start."""
        return sorted((each for each in self.spans if each.trace == trace), key=lambda each: each.start_ns)


@contextmanager
def collecting() -> Iterator[Collector]:
    """Take spans on a free port until the block ends."""
    collector = Collector("")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            collector.take(self.path, gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield collector
    server.shutdown()
    server.server_close()


def _span(each: Any, service: dict[str, Any]) -> Span:
    return Span(
        trace=each.trace_id.hex(),
        span=each.span_id.hex(),
        parent=each.parent_span_id.hex(),
        name=each.name,
        kind=each.kind,
        start_ns=each.start_time_unix_nano,
        end_ns=each.end_time_unix_nano,
        attributes=_attributes(each.attributes),
        links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in each.links),
        error=each.status.message,
        service=service,
    )


def _attributes(found: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in found}
