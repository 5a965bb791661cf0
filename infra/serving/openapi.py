"""The description of the server's interface, OpenAPI 3.1: one table of routes, which the server itself uses."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from aiohttp import web

from infra.serving import api

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Route(NamedTuple):
    """One path: its methods, its handler, and what it takes and gives."""

    path: str
    methods: tuple[str, ...]
    handler: Handler
    summary: str
    takes: dict[str, dict[str, Any]]
    gives: dict[str, dict[str, Any]]


def _text(said: str) -> dict[str, Any]:
    return {"type": "string", "description": said}


QUERY = {"query": _text("A person's query, at most 512 characters.")}
HELPED = {
    "helped": _text(
        '"auto" (the default) chooses, and tells the probability; "raw" adds nothing; or the name of a version.'
    )
}
VISITOR = {
    "application": _text("Name of your application."),
    "client_id": _text("Id of the visitor's browser, as in UBI."),
    "session_id": _text("Id of the visit."),
}
SIZE = {"size": {"type": "integer", "minimum": 1, "default": 10, "description": "Number of results."}}
LOGS = {
    "log": {"type": "boolean", "default": True, "description": "False logs no impression: nobody sees the results."}
}
CHOSEN = {
    "policy": _text('The policy version that helped; "" for raw results.'),
    "action_propensity": {
        "type": ["number", "null"],
        "description": "Probability of that choice; null if interleaved.",
    },
    "expansions": {"type": "array", "items": {"type": "string"}, "description": "The words beside the query."},
}
HIT = {
    "type": "object",
    "properties": {"id": {"type": "string"}, "rank": {"type": "integer"}, "score": {"type": "number"}},
}

ROUTES = (
    Route(
        "/search",
        ("GET", "POST"),
        api.search,
        "Search, with raw or helped results. The impression is logged.",
        QUERY | SIZE | HELPED | VISITOR | LOGS,
        {"query_id": _text("Id of this search: send it with each event.")}
        | CHOSEN
        | {"hits": {"type": "array", "items": HIT}, "logged": {"type": "boolean"}}
        | {"routes": {"type": "object", "description": "What each version may show for this part of the queries."}}
        | {"interleaved": {"type": "array", "items": _text("A policy whose ranking is in the list; none otherwise.")}},
    ),
    Route(
        "/expand",
        ("GET", "POST"),
        api.expand,
        "Give only the words, for a team that searches itself. Nothing is logged: send the query to /events.",
        QUERY | HELPED,
        CHOSEN | {"offered": {"type": "object", "description": "Probability of each choice, by version."}},
    ),
    Route(
        "/summaries",
        ("GET", "POST"),
        api.summaries,
        "Give title and summary of documents.",
        {"ids": _text("Document ids: a list, or in an address separated by commas.")},
        {"policy": _text("The version that wrote the summaries."), "summaries": {"type": "object"}},
    ),
    Route(
        "/events",
        ("POST",),
        api.events,
        "Take UBI queries and events: one, a list, or one a line. One that is sent twice counts once.",
        {},
        {"accepted": {"type": "integer"}, "refused": {"type": "array", "items": {"type": "object"}}},
    ),
    Route("/health", ("GET",), api.health, "Tell whether the process lives.", {}, {"status": _text("alive")}),
    Route(
        "/ready",
        ("GET",),
        api.ready,
        "Tell whether requests should be sent here (200), or not (503).",
        {},
        {"status": _text("ready or draining"), "trouble": {"type": "array", "items": {"type": "string"}}},
    ),
    Route("/metrics", ("GET",), api.metrics, "The server's metrics in Prometheus' text format.", {}, {}),
    Route("/snippet.js", ("GET",), api.snippet, "The script for a shop's pages.", {}, {}),
)


def openapi() -> dict[str, Any]:
    """Return the description of every route."""
    paths: dict[str, Any] = {}
    for route in ROUTES:
        paths[route.path] = {method.lower(): _operation(route, method) for method in route.methods}
    return {
        "openapi": "3.1.0",
        "info": {"title": "searchloop", "version": "1", "description": "Search results that learn from people."},
        "paths": paths,
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"token": []}],
    }


def _operation(route: Route, method: str) -> dict[str, Any]:
    made: dict[str, Any] = {
        "summary": route.summary,
        "operationId": f"{method.lower()}_{route.path.strip('/').partition('.')[0]}",
        "responses": {
            "200": {
                "description": "The answer.",
                "content": {"application/json": {"schema": {"type": "object", "properties": route.gives}}},
            },
            "400": {"description": "Wrong request: JSON with error, expected, got, what_to_do."},
            "503": {"description": "A service is away; try again later."},
        },
    }
    if method == "GET":
        made["parameters"] = [
            {"name": name, "in": "query", "required": name in ("query", "ids"), "schema": schema}
            for name, schema in route.takes.items()
        ]
    else:
        needed = [name for name in ("query", "ids") if name in route.takes]
        schema = {"type": "object", "properties": route.takes, **({"required": needed} if needed else {})}
        made["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return made


async def describe(request: web.Request) -> web.Response:
    """Answer with the description."""
    return web.json_response(openapi())
