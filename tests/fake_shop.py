"""A small server that answers the pages as `searchloop serve` does, and takes events with the server's own rules."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
from aiohttp import web

from infra.serving.events import read_batch, read_event
from streams.traffic_events import Impression, UserAction
from tests.stored_events import RUN

VERSION = "1-abcdef-000002"


class FakeShop:
    """A server with two rankings of each query. events: what it has taken; searches: what it was asked.

    broken: it refuses events for now, as a server whose disk is full.
    """

    def __init__(self) -> None:
        self.events: list[Impression | UserAction] = []
        self.searches: list[dict[str, Any]] = []
        self.broken = False
        self.policy = VERSION
        self.address = ""

    def application(self) -> web.Application:
        """Return its routes."""
        made = web.Application()
        made.router.add_get("/ready", self._ready)
        made.router.add_post("/search", self._search)
        made.router.add_post("/events", self._events)
        return made

    async def _ready(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ready", "run": RUN, "index": "shop-1", "policy": self.policy})

    async def _search(self, request: web.Request) -> web.Response:
        given = await request.json()
        self.searches.append(given)
        query, helped = given["query"], given["helped"]
        if helped not in ("raw", self.policy) or (helped != "raw" and "unanswered" in query):
            return web.json_response({"error": "wrong request", "expected": "another version"}, status=404)
        names = [f"{query}-{n}" for n in range(given["size"])]
        if helped != "raw" and "alike" not in query:
            names.reverse()
        hits = [{"id": name, "rank": rank, "score": 1.0} for rank, name in enumerate(names, 1)]
        return web.json_response({"query_id": "q", "expansions": [], "hits": hits, "logged": given.get("log", True)})

    async def _events(self, request: web.Request) -> web.Response:
        if self.broken:
            return web.json_response({"error": "events cannot be kept now"}, status=503)
        for number, each in enumerate(read_batch(await request.read())):
            self.events.append(read_event(each, now_ms=1_700_000_000_000 + number, pseudonyms=lambda *_: ("", "")))
        return web.json_response({"accepted": len(self.events), "refused": []})

    def logged(self) -> list[Impression | UserAction]:
        """Return the events as a log would hold them: each with a time of its own."""
        return [msgspec.structs.replace(each, at_ms=each.at_ms + at) for at, each in enumerate(self.events)]


@contextmanager
def fake_shop() -> Iterator[FakeShop]:
    """Run the shop in a thread, on a free port."""
    shop, loop, ready = FakeShop(), asyncio.new_event_loop(), threading.Event()
    runner = web.AppRunner(shop.application())

    async def start() -> None:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        shop.address = f"http://127.0.0.1:{runner.addresses[0][1]}"
        ready.set()

    def run() -> None:
        loop.run_until_complete(start())
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(30)
    try:
        yield shop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
