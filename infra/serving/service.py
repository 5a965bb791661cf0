"""The service that handlers of requests work with, and the request that cannot be answered as it is."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from aiohttp import web

from infra.serving.engine import AsyncSearcher
from infra.serving.forwarding import Forwarder
from infra.serving.metrics import ServeMetrics
from infra.serving.policies import Policies
from search_env.engine.index import IndexVersion
from search_env.serving.settings import ServeSettings
from streams.codec import encode_event
from streams.events import Event
from streams.pseudonyms import Pseudonyms
from streams.spool import Spool, Spooled
from streams.topics import BY_EVENT


class Wrong(Exception):
    """A request that cannot be answered as it is: an HTTP status, what was expected, what came, and what to do."""

    def __init__(self, status: int, expected: str, got: str, what_to_do: str = "") -> None:
        super().__init__(expected)
        self.status = status
        self.body = {"error": "wrong request", "expected": expected, "got": got, "what_to_do": what_to_do}


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the handlers work with."""

    run: str
    index: IndexVersion
    settings: ServeSettings
    searcher: AsyncSearcher
    policies: Policies
    spool: Spool
    forwarder: Forwarder
    pseudonyms: Pseudonyms
    draining: list[bool]
    metrics: ServeMetrics

    def keep(self, events: Sequence[Event]) -> None:
        """Write events to the spool. Raises SpoolFull."""
        records = []
        for event in events:
            topic = BY_EVENT[type(event)]
            records.append(Spooled(topic.kind, topic.key(event).encode(), encode_event(event)))
        self.spool.append(records)


SERVICE: web.AppKey[Service] = web.AppKey("service", Service)
