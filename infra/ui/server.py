"""The pages' process: it answers until a signal, and then ends its streams and removes its copies."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from infra.app.app import App
from infra.app.doors import LOOPBACK, open_door
from infra.monitoring.scraping import LoopMetrics
from infra.ui import alerts, api, evaluated, judging, pages, people
from infra.ui.answers import LEDGERS, explain_errors
from infra.ui.guarding import guard
from infra.ui.ledgers import IDLE_SECONDS, Ledgers
from infra.ui.searching import SERVER, ShopServer
from infra.ui.telling import Telling
from storage.questions.settings import UiSettings
from storage.questions.spending import Spending
from storage.scratch import remove_abandoned
from streams.secrets import reveal

log = logging.getLogger(__name__)

STOP_SECONDS = 5.0
COUNT_SECONDS = 1.0
LINE_BYTES_MAX = 128 * 1024  # An address may hold a query of 10,000 characters, each as three bytes in percent signs.


async def show_pages(app: App, *, told: Callable[[str], None]) -> None:
    """Serve the pages of a home until SIGTERM or SIGINT. told: called with the address that opens them.

    Raises SettingsError if the port is taken.
    """
    settings: UiSettings = app.settings.ui
    token = reveal(settings.token) or secrets.token_urlsafe(24)
    door = open_door(settings.host, settings.port, table="ui")
    host, port = door.getsockname()[:2]
    async with opened(app, settings) as ledgers, counted(ledgers.whole):
        runner = web.AppRunner(
            make_pages(ledgers, settings, token),
            access_log=None,
            shutdown_timeout=STOP_SECONDS,
            max_line_size=LINE_BYTES_MAX,
        )
        await runner.setup()
        await web.SockSite(runner, door).start()
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, ended.set)
        shown = f"[{host}]" if ":" in host else host
        told(f"http://{shown}:{port}/" + ("" if settings.token else f"?token={token}"))
        try:
            await ended.wait()
        finally:
            await runner.cleanup()


@asynccontextmanager
async def counted(whole: Spending) -> AsyncIterator[None]:
    """Count what this process takes, which works for the pages alone."""

    async def count() -> None:
        while True:
            began = time.process_time()
            await asyncio.sleep(COUNT_SECONDS)
            whole.spend(time.process_time() - began)

    counting = asyncio.create_task(count())
    try:
        yield
    finally:
        counting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await counting


@asynccontextmanager
async def opened(app: App, settings: UiSettings) -> AsyncIterator[Ledgers]:
    """Give the ledgers of a home, whose copies are swept while nobody uses them and removed at the end.

    Copies of pages that were killed are removed first.

    If a question still runs then that cannot be stopped, the process ends at once: it would be held for as long as
    the question takes.
    """
    for folder in remove_abandoned():
        log.info("removed %s, which pages that were killed have left", folder)
    ledgers = Ledgers(app, settings)
    sweeping = asyncio.create_task(_sweep(ledgers))
    try:
        yield ledgers
    finally:
        sweeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sweeping
        ledgers.close()
        if ledgers.busy:
            os._exit(0)


def make_pages(ledgers: Ledgers, settings: UiSettings, token: str, *, base: str = "") -> web.Application:
    """Return the application with its routes and guards. base: the path below which another server mounts it."""
    names = LOOPBACK | {settings.host.lower()} | {each.lower() for each in settings.names}
    application = web.Application(middlewares=[guard(token, frozenset(names), base=base), explain_errors])
    application[LEDGERS] = ledgers
    application[pages.BASE] = base
    application[SERVER] = ShopServer(settings)
    application[api.ENDING] = asyncio.Event()
    application[api.TELLING] = Telling()

    async def end_streams(ended: web.Application) -> None:
        ended[api.ENDING].set()

    application.on_shutdown.append(end_streams)
    application[api.METRICS] = LoopMetrics(ledgers.app.home, ledgers.kafka, open_run=ledgers.log)
    routes = application.router
    for path in (*pages.PAGES, *pages.HIDDEN):
        routes.add_get(path, pages.show)
    routes.add_get("/static/{name:.+}", pages.static)
    routes.add_get("/metrics", api.metrics)
    routes.add_get("/health", api.health)
    routes.add_get("/api/runs", api.runs)
    routes.add_get("/api/page/{page}", api.page)
    routes.add_get("/api/ask/{name}", api.answer)
    routes.add_get("/api/overview", api.overview)
    routes.add_get("/api/alerts", alerts.alerts)
    routes.add_get("/api/evaluations", api.evaluations)
    routes.add_get("/api/evaluated", evaluated.evaluated)
    routes.add_get("/api/group", api.group)
    routes.add_get("/api/stream", api.stream, allow_head=False)
    routes.add_get("/api/people", people.people)
    routes.add_get("/api/ramp", people.ramp)
    routes.add_get("/api/judging", judging.judging)
    routes.add_get("/api/pair", judging.pair)
    routes.add_post("/api/judge", judging.judge)
    routes.add_get("/api/search", api.search)
    routes.add_post("/api/click", api.click)
    routes.add_post("/api/sql", api.sql)
    return application


async def _sweep(ledgers: Ledgers) -> None:
    while True:
        await asyncio.sleep(IDLE_SECONDS / 10)
        ledgers.sweep()
