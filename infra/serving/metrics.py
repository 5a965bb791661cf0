"""The server's metrics: counted in each process, summed over the processes of one server, and answered at /metrics."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Literal, Protocol

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from infra.monitoring.exposition import CONTENT_TYPE, Families, Series
from storage.monitor import metrics
from storage.monitor.metrics import Metric
from streams.spool import waiting_on_disk

SHARED = "PROMETHEUS_MULTIPROC_DIR"
"""The client library's variable: a folder in which the processes of one server keep what they count."""

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
GONE = "gone"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ToldService(Protocol):
    """The parts of a service that its metrics tell."""

    @property
    def run(self) -> str: ...
    @property
    def index(self) -> Any: ...
    @property
    def policies(self) -> Any: ...
    @property
    def searcher(self) -> Any: ...
    @property
    def forwarder(self) -> Any: ...
    @property
    def spool(self) -> Any: ...
    @property
    def draining(self) -> list[bool]: ...


class ServeMetrics:
    """Counts what a server does. With the variable `SHARED`, the counts of all its processes are summed."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._shared = SHARED in os.environ
        self._registry = CollectorRegistry()
        self._requests: Counter = self._made(Counter, metrics.REQUESTS)
        self._seconds: Histogram = self._made(Histogram, metrics.SECONDS, buckets=BUCKETS)
        self._searches: Counter = self._made(Counter, metrics.SEARCHES)
        self._events: Counter = self._made(Counter, metrics.EVENTS)
        self._lost: Counter = self._made(Counter, metrics.LOST)
        self._started = time.time()
        # A series that begins at 0 shows its first event as an increase.
        for shown in ("raw", "helped", "interleaved"):
            self._searches.labels(shown)
        for outcome in ("accepted", "refused", "unkept"):
            self._events.labels(outcome)

    def answered(self, route: str, status: str, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(route, status).inc()
        self._seconds.labels(route).observe(seconds)

    def searched(self, shown: Literal["raw", "helped", "interleaved"]) -> None:
        """Count a search by what was shown."""
        self._searches.labels(shown).inc()

    def took(self, *, accepted: int = 0, refused: int = 0, unkept: int = 0) -> None:
        """Count events of people."""
        for outcome, count in (("accepted", accepted), ("refused", refused), ("unkept", unkept)):
            self._events.labels(outcome).inc(count)

    def lost(self) -> None:
        """Count an impression that could not be logged."""
        self._lost.inc()

    def text(self, service: ToldService) -> bytes:
        """Return the metrics in Prometheus' text format."""
        registry = self._registry
        if self._shared:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        now = CollectorRegistry()
        now.register(Families(self._now(service)))
        return generate_latest(registry) + generate_latest(now)

    def _now(self, service: ToldService) -> Iterator[tuple[Metric, list[Series]]]:
        """Yield what every process of a server would answer alike."""
        policies = service.policies
        helping = {"process": policies.tail.policy if policies.tail is not None else ""}
        helping["ramp"] = policies.ramp.version if policies.ramp is not None else ""
        trouble = {
            "policy": policies.trouble,
            "kafka": service.forwarder.trouble,
            "index": service.searcher.trouble,
        }
        yield metrics.SERVE_INFO, [((service.run, service.index.name), 1)]
        yield metrics.SERVE_POLICY_INFO, [((role, name), 1) for role, name in helping.items() if name]
        spools = service.spool.folder.parent.glob("spool-*")  # One for each process of this server.
        yield metrics.WAITING, [((), sum(map(waiting_on_disk, spools)))]
        yield metrics.ANSWERS, [((), len(policies.answers))]
        yield metrics.TROUBLE, [((part,), int(bool(said))) for part, said in trouble.items()]
        yield metrics.DRAINING, [((), int(bool(service.draining)))]
        yield metrics.STARTED, [((), self._started)]

    def _made(self, kind: Any, metric: Metric, **more: Any) -> Any:
        registry = None if self._shared else self._registry
        return kind(metric.name, metric.says, metric.labels, registry=registry, **more)


def measure(counted: ServeMetrics, *, left_out: web.Application | None = None) -> Any:
    """Return a middleware that counts each request by its route and its status; it belongs before all others.

    left_out: an application within whose requests are not people's.
    """

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if left_out is not None and left_out in request.match_info.apps:
            return await handler(request)
        resource = request.match_info.route.resource
        route = resource.canonical if resource is not None else "other"  # Never a path of the client's choice.
        began = time.perf_counter()
        status = "5xx"
        try:
            answer = await handler(request)
            status = f"{answer.status // 100}xx"
            return answer
        except web.HTTPException as error:
            status = f"{error.status // 100}xx"
            raise
        except asyncio.CancelledError:
            status = GONE
            raise
        finally:
            counted.answered(route, status, time.perf_counter() - began)

    return middleware


def metrics_response(text: bytes) -> web.Response:
    """Return an answer that Prometheus understands."""
    return web.Response(body=text, headers={"content-type": CONTENT_TYPE, "cache-control": "no-store"})
