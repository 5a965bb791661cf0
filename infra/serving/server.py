"""The server's process: everything is opened, requests are answered until a signal, and what is under way is ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web

from infra.app.app import App
from infra.app.doors import BACKLOG, LOOPBACK, open_door
from infra.runs.listening import begin_live
from infra.serving.api import errors, note_shadow
from infra.serving.engine import AsyncSearcher
from infra.serving.forwarding import Forwarder
from infra.serving.guarding import METRICS, SlowClients, origin_guard, token_guard
from infra.serving.metrics import ServeMetrics, measure
from infra.serving.openapi import ROUTES, describe
from infra.serving.policies import Policies
from infra.serving.service import SERVICE, Service
from infra.serving.tail import TailStart
from infra.serving.workers import READY
from infra.ui.ledgers import Ledgers
from infra.ui.server import LINE_BYTES_MAX, make_pages, opened
from search_env.engine.attachments import LOOK_SECONDS, AttachedForm, require_types
from search_env.engine.client import connect_async
from search_env.engine.errors import EngineUnavailable
from search_env.engine.forms import OwnForm, QueryForm
from search_env.engine.index import IndexVersion, load_manifest
from search_env.engine.searching import RetrievalSettings
from search_env.serving.settings import ServeSettings
from streams.errors import SearchloopError, SettingsError
from streams.events import Context
from streams.pseudonyms import Pseudonyms
from streams.secrets import reveal
from streams.spool import Spool
from streams.tracing import traced

if TYPE_CHECKING:
    from infra.app.settings import Settings

log = logging.getLogger(__name__)

CONNECTIONS = 32
MIB = 2**20
PAGES = "/ui"
LINE_BYTES = 8_190  # Of a request without pages: the library's own limit.
IDLE = 6  # Times serve.read_seconds that a connection may be idle between two requests.


class Inherited(msgspec.Struct, frozen=True, kw_only=True):
    """A server process's inheritance: the socket to answer on, and one end of a pair; see `workers`."""

    door: socket.socket
    parent: socket.socket


async def serve(
    app: App,
    *,
    index: str,
    run: str,
    learned: str,
    policy: str,
    worker: int,
    inherited: Inherited | None,
    told: Callable[[str, int], None],
) -> None:
    """Serve an index until SIGTERM or SIGINT.

    run: of the live traffic; its topics take the events. learned: the run whose policy serves; "" serves raw results
    and ready answers. policy: a name of its versions, or "none". worker: number of this process; each has a spool.
    inherited: for one process of several. told: called with host and port when requests are answered.
    Raises SettingsError for an address beyond this machine without a token.
    """
    settings = app.settings.serve
    require_token(settings)
    require_pages(app.settings)
    folder = app.home.index(index)
    version = load_manifest(folder)
    retrieval = _retrieval(app, learned)
    app.home.run(run).mkdir(parents=True, exist_ok=True)
    spool = Spool(
        app.home.run(run) / f"spool-{worker}", bytes_max=settings.spool_mib_max * MIB, sync=settings.spool_sync
    )
    pseudonyms = Pseudonyms(app.home.people)
    client = connect_async(
        app.connections.elasticsearch, connections=CONNECTIONS, timeout_seconds=settings.search_timeout_ms / 1000
    )
    # Each process makes sure of the topics before it sends. If it trusted another one, and that one died before it had
    # written down whose topics they are, the records of this process would make them look like somebody else's.
    prepare = partial(begin_live, app, run)
    forwarder = Forwarder(spool, run, app.connections.kafka, app.settings.delivery, prepare)
    start = TailStart(
        home=str(app.home.root.absolute()),
        index=index,
        run=learned,
        policy=policy if learned else "none",
        variables=app.worker_environment(),
    )
    service: Service

    def shadow(query: str, context: Context) -> None:
        note_shadow(service, query, context)

    folders = app.home.run(learned or run), app.home.run(run)
    policies = Policies(start, *folders, version.name, settings, shadow)
    service = Service(
        run=run,
        index=version,
        settings=settings,
        searcher=AsyncSearcher(client, _form(version), retrieval),
        policies=policies,
        spool=spool,
        forwarder=forwarder,
        pseudonyms=pseudonyms,
        draining=[],
        metrics=ServeMetrics(),
    )
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(traced(app.settings.tracing, run=run, stage="serve"))
        ledgers = await stack.enter_async_context(opened(app, app.settings.ui)) if settings.pages else None
        try:
            forwarder.start()
            await policies.look()
            watching = asyncio.create_task(_watch_index(app, service))
            await _answer(service, inherited, told, ledgers)
            watching.cancel()
        finally:
            policies.close()
            forwarder.stop(settings.drain_seconds)
            spool.close()
            pseudonyms.close()
            await client.close()


async def _watch_index(app: App, service: Service) -> None:
    """Look for ever whether an attached index is as it was: a search of a missing field finds nothing, silently."""
    if service.index.attached is None:
        return
    attachment = service.index.attached

    def look() -> None:
        with contextlib.closing(app.engine()) as client:
            require_types(client, attachment)

    while True:
        try:
            await asyncio.to_thread(look)
            service.searcher.trouble = ""
        except EngineUnavailable as error:
            if str(error) != service.searcher.trouble:
                log.error("searches stop: %s", error)
            service.searcher.trouble = str(error)
        except SearchloopError as error:
            log.warning("the attached index could not be looked at: %s", error)
        await asyncio.sleep(LOOK_SECONDS)


async def _answer(
    service: Service, inherited: Inherited | None, told: Callable[[str, int], None], ledgers: Ledgers | None
) -> None:
    settings, policies = service.settings, service.policies
    door = open_door(settings.host, settings.port, table="serve") if inherited is None else inherited.door
    pages = None if ledgers is None else _pages(ledgers, service, *door.getsockname()[:2])
    application = make_application(service, pages)
    runner = web.AppRunner(
        application,
        access_log=None,
        keepalive_timeout=IDLE * settings.read_seconds,
        max_line_size=LINE_BYTES if pages is None else LINE_BYTES_MAX,
    )
    await runner.setup()
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    inner = runner.server
    assert inner is not None
    server = await loop.create_server(lambda: SlowClients(inner(), settings.read_seconds), sock=door, backlog=BACKLOG)
    following = asyncio.create_task(policies.follow())
    if inherited is not None:
        inherited.parent.setblocking(False)
        loop.add_reader(inherited.parent, ended.set)  # It becomes readable when the parent is gone, and only then.
        inherited.parent.send(READY)
    told(*door.getsockname()[:2])
    try:
        await ended.wait()
    finally:
        if inherited is not None:
            loop.remove_reader(inherited.parent)
        service.draining.append(True)
        following.cancel()
        server.close()
        with contextlib.suppress(asyncio.CancelledError):
            await following
        await application.shutdown()  # The streams of pages end; they would be under way for ever.
        # What is under way is answered; idle connections are closed.
        await inner.shutdown(settings.drain_seconds)
        await runner.cleanup()


def make_application(service: Service, pages: web.Application | None = None) -> web.Application:
    """Return the application with its routes and guards. pages: the pages, which have guards of their own."""
    settings = service.settings
    open_paths = METRICS if settings.metrics == "open" else frozenset[str]()
    application = web.Application(
        middlewares=[
            measure(service.metrics, left_out=pages),
            origin_guard(settings.origins, guarded=pages),
            errors,
            token_guard(settings.token, open_paths=open_paths, guarded=pages),
        ],
        client_max_size=settings.body_kib_max * 1024,
    )
    application[SERVICE] = service
    for route in ROUTES:
        for method in route.methods:
            application.router.add_route(method, route.path, route.handler)
    application.router.add_get("/openapi.json", describe)
    if pages is not None:
        application.add_subapp(f"{PAGES}/", pages)
    return application


def _pages(ledgers: Ledgers, service: Service, host: str, port: int) -> web.Application:
    """Return the pages, which ask this server itself unless the settings name another one."""
    settings = ledgers.app.settings.ui
    if not settings.server:
        here = "127.0.0.1" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
        settings = msgspec.structs.replace(
            settings, server=f"http://{here}:{port}", server_token=service.settings.token
        )
    return make_pages(ledgers, settings, settings.token, base=PAGES)


def require_pages(settings: Settings, *, workers: int = 1) -> None:
    """Raise SettingsError if the pages are wanted and would be open to whom they are not meant for."""
    if not settings.serve.pages:
        return
    token = reveal(settings.ui.token)
    if not token or token == reveal(settings.serve.token):
        got = "the same" if token else "none"
        raise SettingsError(
            f"serve.pages: expected a token of the pages' own, which no shop has (ui.token), got {got}. Set "
            "SEARCHLOOP_UI__TOKEN to a long random text"
        )
    if workers > 1:
        raise SettingsError(
            f"serve.pages: expected one server process, got {workers}: each would keep a copy of the log. Set "
            "serve.pages=false, and run `searchloop ui` beside the server"
        )


def require_token(settings: ServeSettings) -> None:
    if settings.host not in LOOPBACK and not settings.token:
        raise SettingsError(
            f"serve.host: expected a token for an address beyond this machine ({settings.host}), got none. Set "
            "SEARCHLOOP_SERVE__TOKEN, or listen on 127.0.0.1 behind your own gateway"
        )


def _form(version: IndexVersion) -> QueryForm:
    return OwnForm(version.name) if version.attached is None else AttachedForm(version.attached)


def _retrieval(app: App, learned: str) -> RetrievalSettings:
    """Return the search settings that the policy has learned with."""
    if not learned:
        return app.settings.retrieval
    from infra.app.run_settings import read_run_settings

    return read_run_settings(app.home.run(learned)).settings.retrieval
