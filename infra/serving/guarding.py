"""Guards at the door of the server: the token, the origins of pages, and clients that send nothing or too slowly."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from streams.secrets import reveal

OPEN = frozenset({"/health", "/ready", "/openapi.json", "/snippet.js"})
"""The paths that need no token: they tell nothing of the shop."""

METRICS = frozenset({"/metrics"})

FROM_PAGE = "from_page"
"""Marks a request that a page of an allowed origin has sent; a page cannot keep a token."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def token_guard(token: str, *, open_paths: frozenset[str] = frozenset(), guarded: web.Application | None = None) -> Any:
    """Return a middleware that asks for `Authorization: Bearer TOKEN`; with an empty token, it asks for nothing.

    open_paths: further paths that need no token. guarded: an application within, which asks for a token of its own.
    """

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        if (
            token
            and request.path not in OPEN | open_paths
            and not request.get(FROM_PAGE)
            and request.method != "OPTIONS"
            and (guarded is None or guarded not in request.match_info.apps)
        ):
            given = request.headers.get("authorization", "").encode(errors="surrogateescape")
            if not hmac.compare_digest(given, f"Bearer {reveal(token)}".encode()):
                return web.json_response(
                    {"error": "not allowed", "expected": "Authorization: Bearer TOKEN", "got": "another token or none"},
                    status=401,
                )
        return await handler(request)

    return guard


def origin_guard(origins: tuple[str, ...], *, guarded: web.Application | None = None) -> Any:
    """Return a middleware that lets pages of these origins, and of the server's own, send events, and nothing else.

    guarded: an application within, which looks at origins itself, also behind a gateway that speaks TLS.
    """

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        if guarded is not None and guarded in request.match_info.apps:
            return await handler(request)
        origin = request.headers.get("origin", "")
        ours = origin in origins or origin == f"{request.scheme}://{request.host}"
        allowed = bool(origin) and ours and request.path == "/events"
        if origin and not ours and request.method != "OPTIONS":
            said = {"error": "not allowed", "expected": "an origin in serve.origins", "got": origin[:200]}
            return web.json_response(said, status=403)
        if allowed:
            request[FROM_PAGE] = True
        if request.method == "OPTIONS" and "access-control-request-method" in request.headers:
            answer: web.StreamResponse = web.Response(status=204 if allowed else 403)
        else:
            answer = await handler(request)
        if allowed:
            answer.headers["access-control-allow-origin"] = origin
            answer.headers["access-control-allow-methods"] = "POST"
            answer.headers["access-control-allow-headers"] = "content-type"
            answer.headers["vary"] = "origin"
        return answer

    return guard


class SlowClients(asyncio.Protocol):
    """One connection that must send the head of its first request, and read its answers, within some seconds each.

    Otherwise it is closed. The time that a connection may be idle, or send a further head, is the server's own.
    """

    def __init__(self, inner: Any, seconds: float) -> None:
        self._inner = inner
        self._seconds = seconds
        self._timer: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._transport: Any = None
        self._head = bytearray()

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for a request."""
        self._transport = transport
        self._timer = asyncio.get_running_loop().call_later(self._seconds, transport.abort)
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Pass bytes on; the first whole head ends the waiting."""
        if self._timer is not None:
            self._head += data[-4:] if len(data) > 4 else data
            if b"\r\n\r\n" in data or b"\r\n\r\n" in self._head[-8:]:
                self._timer.cancel()
                self._timer = None
                self._head.clear()
        self._inner.data_received(data)

    def eof_received(self) -> Any:
        """Pass the end on."""
        return self._inner.eof_received()

    def connection_lost(self, error: Exception | None) -> None:
        """Stop waiting."""
        for timer in (self._timer, self._unread):
            if timer is not None:
                timer.cancel()
        self._inner.connection_lost(error)

    def pause_writing(self) -> None:
        """Begin to wait until the client reads what lies ready for it."""
        self._unread = asyncio.get_running_loop().call_later(self._seconds, self._transport.abort)
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """Stop waiting."""
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
        self._inner.resume_writing()
