"""Guards of the pages: the token, the names under which they are asked for, and the headers of each answer."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from streams.secrets import reveal

COOKIE = "searchloop_ui"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
DENIED = (
    "The pages need their token. Open the address that `searchloop ui` printed: it ends in ?token=…\n"
    "If you have set ui.token, add ?token= and your token to the address.\n"
    "A script sends it as: Authorization: Bearer TOKEN\n"
)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def guard(token: str, names: frozenset[str], *, base: str = "") -> Any:
    """Return the middleware in front of every page. base: the path below which they lie, such as "/ui".

    token: opens the pages, as a cookie, as `?token=` (which sets the cookie and leaves the address), or as a bearer.
    names: host names under which requests may come. Any other name belongs to a page that has pointed its own name at
    this machine (DNS rebinding). A request from another origin is refused, too; a link
    there may open a page, and nothing else.
    """
    secret = reveal(token).encode()

    def fits(given: str | None) -> bool:
        return given is not None and hmac.compare_digest(given.encode(errors="surrogateescape"), secret)

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if (name := host_name(request.host)) not in names:
            said = f"expected one of the names in ui.names, got {name[:100]!r}\n"
            return web.Response(status=421, text=said, headers=HEADERS)
        # The scheme is not compared: a gateway in front may speak TLS.
        if (origin := request.headers.get("origin")) and origin.partition("://")[2] != request.host:
            return web.Response(status=403, text="expected a request of the pages themselves\n", headers=HEADERS)
        site, mode = (request.headers.get(f"sec-fetch-{each}", "") for each in ("site", "mode"))
        opens = mode == "navigate" and request.method == "GET" and not request.path.startswith(f"{base}/api/")
        if site not in ("", "same-origin", "none") and not opens:
            return web.Response(status=403, text="expected a request of the pages themselves\n", headers=HEADERS)
        cookie = cookie_name(request.host)
        if request.path == f"{base}/health":
            return await handler(request)
        if fits(request.query.get("token")):
            place = request.rel_url.without_query_params("token")
            place = place.with_path("/" + place.path.lstrip("/"), keep_query=True)
            answer: web.StreamResponse = web.HTTPSeeOther(place)
            answer.set_cookie(cookie, secret.decode(), httponly=True, samesite="Strict", path=f"{base}/")
            answer.headers.update(HEADERS)
            return answer
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not (fits(request.cookies.get(cookie)) or fits(bearer)):
            return web.Response(status=401, text=DENIED, headers=HEADERS)
        answer = await handler(request)
        if not answer.prepared:
            answer.headers.update({name: value for name, value in HEADERS.items() if name not in answer.headers})
        return answer

    return middleware


def cookie_name(host: str) -> str:
    """Return the name of the cookie for a Host header: browsers send cookies to every port of a host."""
    return f"{COOKIE}_{host.rpartition(':')[2] if host.rpartition(':')[2].isdecimal() else 'default'}"


def host_name(host: str) -> str:
    """Return the name of a Host header without its port; "" if it is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
