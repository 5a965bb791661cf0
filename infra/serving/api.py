"""The requests that the server answers. Each handler reads one request, asks one service, and answers in JSON."""

from __future__ import annotations

import asyncio
import logging
import random
import uuid
from collections.abc import Mapping
from importlib import resources
from typing import Any

import msgspec
from aiohttp import web

from infra.serving.events import Refused, read_batch, read_event
from infra.serving.finding import AUTO, choose_words, find
from infra.serving.guarding import FROM_PAGE
from infra.serving.metrics import metrics_response
from infra.serving.service import SERVICE, Service, Wrong
from search_env.engine.errors import EngineUnavailable, RetrievalError
from streams.clock import now_ms
from streams.events import Context, Event, Request
from streams.inputs.text import QUERY_CHARACTERS_MAX, clean_text, visible_text
from streams.inputs.values import read_id
from streams.pseudonyms import PseudonymError
from streams.spool import SpoolFull
from streams.traffic_events import Impression, Shown

log = logging.getLogger(__name__)

Words = tuple[str, ...]
RETRY_SECONDS = "5"
NAME_CHARACTERS_MAX = 100


async def search(request: web.Request) -> web.Response:
    """Search, raw or helped: choose, search, note the impression unless the request asks for none, answer."""
    service = request.app[SERVICE]
    given = await _parameters(request)
    noted = _logs(given)
    query, size = _query(given), _size(given, service.settings.size_max)
    impression_id = uuid.uuid4().hex
    client, session = _pseudonyms(service, given)
    helped = given.get("helped", AUTO)
    found = await find(service, query, size=size, impression_id=impression_id, person=client, helped=helped)
    choice = found.choice
    shown = tuple(Shown(document_id=name, rank=rank) for rank, name in enumerate(found.ids, start=1))
    impression = Impression(
        impression_id=impression_id,
        query_id=impression_id,
        query=query,
        application=_visitor(given, "application"),
        client=client,
        session=session,
        shown=shown,
        at_ms=now_ms(),
        policy=choice.policy,
        action_propensity=choice.propensity,
        offered=choice.offered,
        index=service.index.name,
        made_at_ms=now_ms(),
        teams=found.teams or msgspec.UNSET,
        routes=found.routes or msgspec.UNSET,
    )
    logged = noted and _note(service, impression)
    service.metrics.searched("interleaved" if found.teams else "helped" if choice.policy else "raw")
    hits = [
        {"id": name, "rank": rank, "score": score}
        for rank, (name, score) in enumerate(zip(found.ids, found.scores, strict=True), start=1)
    ]
    return _json(
        {
            "query_id": impression_id,
            "query": query,
            "policy": choice.policy,
            "action_propensity": choice.propensity,
            "interleaved": sorted(set(found.teams)),
            "routes": found.routes,
            "expansions": found.words,
            "logged": logged,
            "hits": hits,
        },
        headers={"server-timing": f"search;dur={1000 * found.seconds:.2f}"},
    )


async def expand(request: web.Request) -> web.Response:
    """Answer with words alone, for a team that searches itself."""
    service = request.app[SERVICE]
    given = await _parameters(request)
    query = _query(given)
    choice, words = await choose_words(service, query, uuid.uuid4().hex, given.get("helped", AUTO))
    return _json(
        {
            "query": query,
            "policy": choice.policy,
            "action_propensity": choice.propensity,
            "offered": choice.offered,
            "expansions": words,
        }
    )


async def summaries(request: web.Request) -> web.Response:
    """Answer with title and summary by document id."""
    service = request.app[SERVICE]
    given = await _parameters(request)
    if service.index.attached is not None:
        raise Wrong(
            404,
            "an index that searchloop made, with summaries",
            f"the attached index {service.index.alias!r}",
            "Read the documents from your own index",
        )
    asked = given.get("ids", [])
    ids = asked.split(",") if isinstance(asked, str) else asked
    if not isinstance(ids, list) or len(ids) > 1_000 or any(read_id(each) is None for each in ids):
        raise Wrong(400, "ids: a list of at most 1,000 document ids", str(asked)[:100])
    found = await service.searcher.summaries(list(map(str, ids)), index=service.index.name)
    return _json({"policy": service.index.summaries, "summaries": found})


async def events(request: web.Request) -> web.Response:
    """Take events: UBI queries and actions. An event that is sent twice counts once."""
    service = request.app[SERVICE]
    body = await _body(request, service.settings.body_kib_max * 1024)
    try:
        batch = read_batch(body)
    except Refused as error:
        raise Wrong(400, "JSON: an event, a list of events, or one a line", str(error)) from None
    if len(batch) > service.settings.events_max:
        raise Wrong(
            413,
            f"at most {service.settings.events_max:,} events in one request",
            f"{len(batch):,}",
            "Send them in parts",
        )
    taken: list[Event] = []
    refused = []
    for number, each in enumerate(batch):
        try:
            event = read_event(
                each, now_ms=now_ms(), pseudonyms=service.pseudonyms.of, from_page=bool(request.get(FROM_PAGE))
            )
            taken.append(event)
        except Refused as error:
            refused.append({"event": number, "reason": str(error)})
    if taken:
        try:
            service.keep(taken)
        except (SpoolFull, OSError):
            service.metrics.took(unkept=len(taken), refused=len(refused))
            raise
    service.metrics.took(accepted=len(taken), refused=len(refused))
    return _json({"accepted": len(taken), "refused": refused}, status=200 if taken or not batch else 400)


async def health(request: web.Request) -> web.Response:
    """Answer whether the process lives."""
    return _json({"status": "alive"})


async def ready(request: web.Request) -> web.Response:
    """Answer whether requests should be sent here, and the state of what is beside the server."""
    service = request.app[SERVICE]
    tail = service.policies.tail
    state = {
        "status": "draining" if service.draining else "ready",
        "run": service.run,
        "index": service.index.name,
        "policy": tail.policy if tail is not None else "",
        "ready_answers": len(service.policies.answers),
        "events_waiting_bytes": service.spool.waiting_bytes,
        "trouble": [each for each in (service.policies.trouble, service.forwarder.trouble) if each],
    }
    return _json(state, status=503 if service.draining else 200)


async def metrics(request: web.Request) -> web.Response:
    """Answer with the server's metrics in Prometheus' text format."""
    service = request.app[SERVICE]
    if service.settings.metrics == "off":
        raise Wrong(404, 'serve.metrics: "token" or "open"', '"off"', "Change the setting, and start the server again")
    return metrics_response(service.metrics.text(service))


async def snippet(request: web.Request) -> web.Response:
    """Answer with the script that a shop's page loads."""
    text = resources.files("infra.serving").joinpath("snippet.js").read_text()
    return web.Response(text=text, content_type="text/javascript", headers={"cache-control": "public, max-age=3600"})


def _pseudonyms(service: Service, given: Mapping[str, Any]) -> tuple[str, str]:
    """Return what client and session are called in the log; "" if nobody can tell now: an answer never waits."""
    try:
        return service.pseudonyms.of(_visitor(given, "client_id"), _visitor(given, "session_id"))
    except PseudonymError as error:
        log.error("an impression is logged without its client: %s", error)
        return "", ""


def _note(service: Service, event: Event) -> bool:
    """Note an event; return whether there was space for it. An answer never waits for that."""
    try:
        service.keep([event])
    except (SpoolFull, OSError) as error:
        log.error("an event is lost: %s", error)
        if isinstance(event, Impression):
            service.metrics.lost()
        return False
    return True


def note_shadow(service: Service, query: str, context: Context) -> None:
    """Make a query that the policy has answered a live request, too, for a share of them: scored, never shown."""
    if random.random() < service.settings.shadow:
        name = uuid.uuid4().hex
        _note(
            service,
            Request(
                request_id=f"shadow-{name}",
                run=service.run,
                query_id=name,
                query=query,
                index=service.index.name,
                split="live",
                context=context,
                made_at_ms=now_ms(),
            ),
        )


async def _parameters(request: web.Request) -> Mapping[str, Any]:
    """Return a request's parameters: of the address for GET, one JSON object for POST. Raises Wrong."""
    if request.method == "GET":
        return request.query
    body = await _body(request, 64 * 1024)
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Wrong(400, 'a JSON object such as {"query": "red mug"}', str(error)[:200]) from None


async def _body(request: web.Request, bytes_max: int) -> bytes:
    """Return a request's body. Raises Wrong if it is too large, or if the client is too slow."""
    if (request.content_length or 0) > bytes_max:
        raise Wrong(413, f"a body of at most {bytes_max:,} bytes", f"{request.content_length:,}", "Send it in parts")
    seconds = request.app[SERVICE].settings.read_seconds
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.content.iter_any():
                body += chunk
                if len(body) > bytes_max:
                    raise Wrong(413, f"a body of at most {bytes_max:,} bytes", "a longer one", "Send it in parts")
    except TimeoutError:
        raise Wrong(408, f"the whole body within {seconds:g} s", f"{len(body):,} bytes", "Send it at once") from None
    return bytes(body)


def _query(given: Mapping[str, Any]) -> str:
    query = given.get("query")
    if not isinstance(query, str):
        raise Wrong(400, "query: a text", "none" if query is None else type(query).__name__)
    if len(query) > 16 * QUERY_CHARACTERS_MAX or len(text := visible_text(query)) > QUERY_CHARACTERS_MAX:
        raise Wrong(400, f"query: at most {QUERY_CHARACTERS_MAX} characters", f"{len(query):,}", "Shorten it")
    if not text:
        raise Wrong(400, "query: a text with visible characters", "a blank one")
    return text


def _size(given: Mapping[str, Any], size_max: int) -> int:
    size = given.get("size", 10)
    try:
        found = int(size) if isinstance(size, int | str) and not isinstance(size, bool) else 0
    except ValueError:
        found = 0
    if not 1 <= found <= size_max:
        raise Wrong(400, f"size: a whole number from 1 to {size_max}", str(size)[:60])
    return found


def _logs(given: Mapping[str, Any]) -> bool:
    """Return whether a search is logged: it is, unless `log` is false."""
    asked = given.get("log", True)
    if isinstance(asked, bool):
        return asked
    if asked not in ("true", "false"):
        raise Wrong(400, "log: true or false", str(asked)[:60])
    return bool(asked == "true")


def _visitor(given: Mapping[str, Any], name: str) -> str:
    value = given.get(name, "")
    return clean_text(value, characters_max=NAME_CHARACTERS_MAX) if isinstance(value, str) else ""


def _json(value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(value),
        status=status,
        content_type="application/json",
        headers={"x-content-type-options": "nosniff", **(headers or {})},  # Text of others is never read as a page.
    )


@web.middleware
async def errors(request: web.Request, handler: Any) -> web.StreamResponse:
    """Turn a failure into JSON that says what was expected, what came, and what to do."""
    try:
        answer: web.StreamResponse = await handler(request)
        return answer
    except Wrong as error:
        return _json(error.body, status=error.status)
    except (SpoolFull, PseudonymError) as error:
        said = {"error": "events cannot be kept now", "got": str(error), "what_to_do": "Send them again later"}
        return _json(said, status=503, headers={"retry-after": RETRY_SECONDS})
    except EngineUnavailable as error:
        said = {"error": "the search engine is away", "got": str(error), "what_to_do": "Try again later"}
        return _json(said, status=503, headers={"retry-after": RETRY_SECONDS})
    except RetrievalError as error:
        return _json({"error": "the search engine refused", "got": str(error), "what_to_do": ""}, status=502)
    except web.HTTPException as error:
        return _json(
            {"error": error.reason, "got": request.path, "what_to_do": "See /openapi.json"}, status=error.status
        )
