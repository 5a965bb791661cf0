"""A running `searchloop serve` as the pages ask it: searches, raw and helped; clicks and judgments are sent to it."""

from __future__ import annotations

from typing import Any

import aiohttp
from aiohttp import web

from storage.questions.examples import move_of
from storage.questions.settings import UiSettings
from streams.secrets import reveal

SECONDS = 10.0
APPLICATION = "searchloop-ui"
SIZE = 20
JUDGED_SIZE = 10
NO_SERVER = (
    "This asks a running server. Start one with `searchloop serve --index NAME`, and say where it is: "
    "SEARCHLOOP_UI__SERVER=http://127.0.0.1:8600 searchloop ui"
)


class SearchTrouble(Exception):
    """The server cannot be asked, or refuses: an HTTP status and a sentence."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(said)
        self.status = status


class ShopServer:
    """A running `searchloop serve` as the pages ask it."""

    def __init__(self, settings: UiSettings) -> None:
        self._address = settings.server.rstrip("/")
        self._headers = {"authorization": f"Bearer {reveal(settings.server_token)}"} if settings.server_token else {}

    async def both(self, query: str) -> dict[str, Any]:
        """Return raw and helped results of a query, with each helped result's move. Raises SearchTrouble."""
        async with self._session() as session:
            ready = await self._ask(session, "GET", "/ready")
            raw = await self._search(session, query, "raw")
            policy = ready.get("policy") or ""
            helped = raw
            if policy:
                try:
                    helped = await self._search(session, query, policy)
                except SearchTrouble as error:
                    if error.status >= 500:
                        raise
                    policy = ""  # This version has no answer for the query (yet): people get raw results, too.
        ranks = {hit["id"]: hit["rank"] for hit in raw["hits"]}
        found = {hit["id"] for hit in helped["hits"]}
        return {
            "query": query,
            "index": ready.get("index") or "",
            "policy": policy or "raw results",
            "words": helped["expansions"],
            "raw_query_id": raw["query_id"],
            "query_id": helped["query_id"],
            "raw": [_hit(hit, None, "same") for hit in raw["hits"]],
            "helped": [
                _hit(hit, ranks.get(hit["id"]), move_of(hit["rank"], ranks.get(hit["id"]))) for hit in helped["hits"]
            ],
            "lost": [name for name in ranks if name not in found],
        }

    async def click(self, query_id: str, document_id: str) -> None:
        """Send a click as a feedback event. Raises SearchTrouble."""
        event = {
            "action_name": "click",
            "application": APPLICATION,
            "query_id": query_id,
            "event_attributes": {"object": {"object_id": document_id}},
        }
        async with self._session() as session:
            await self._ask(session, "POST", "/events", json=event)

    async def ready(self) -> dict[str, Any]:
        """Return what the server says of itself: its run, index and policy. Raises SearchTrouble."""
        async with self._session() as session:
            return await self._ask(session, "GET", "/ready")

    async def both_unlogged(self, query: str, version: str) -> tuple[list[str], list[str]]:
        """Return the document ids of the raw results and of a version's, without an impression in the log.

        Raises SearchTrouble, with status 404 if the version has no answer for the query.
        """
        async with self._session() as session:
            raw, helped = [
                await self._search(session, query, name, size=JUDGED_SIZE, log=False) for name in ("raw", version)
            ]
        return [hit["id"] for hit in raw["hits"]], [hit["id"] for hit in helped["hits"]]

    async def send(self, events: list[dict[str, Any]]) -> None:
        """Send events; the server keeps all or refuses. Raises SearchTrouble."""
        async with self._session() as session:
            answer = await self._ask(session, "POST", "/events", json=events)
        if answer.get("refused"):
            raise SearchTrouble(400, f"the server refused an event: {answer['refused'][0].get('reason', '')}")

    @property
    def named(self) -> bool:
        """Whether the settings name a server."""
        return bool(self._address)

    def _session(self) -> aiohttp.ClientSession:
        if not self._address:
            raise SearchTrouble(409, NO_SERVER)
        return aiohttp.ClientSession(headers=self._headers, timeout=aiohttp.ClientTimeout(total=SECONDS))

    async def _search(
        self, session: aiohttp.ClientSession, query: str, helped: str, *, size: int = SIZE, log: bool = True
    ) -> dict[str, Any]:
        body = {"query": query, "size": size, "helped": helped, "application": APPLICATION, "log": log}
        return await self._ask(session, "POST", "/search", json=body)

    async def _ask(self, session: aiohttp.ClientSession, method: str, path: str, **given: Any) -> dict[str, Any]:
        try:
            async with session.request(method, self._address + path, allow_redirects=False, **given) as answer:
                body = await answer.json(content_type=None)
                if answer.status != 200 or not isinstance(body, dict):
                    parts = body if isinstance(body, dict) else {}
                    said = "; ".join(
                        str(parts[name]) for name in ("error", "expected", "got", "what_to_do") if parts.get(name)
                    )
                    status = 502 if answer.status >= 500 else 404 if answer.status == 404 else 400
                    raise SearchTrouble(status, f"the server answered {answer.status}: {said or 'nothing readable'}")
                return body
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            said = (
                f"expected an answer from ui.server = {self._address}, got {type(error).__name__}. Is `serve` running?"
            )
            raise SearchTrouble(502, said) from error


SERVER: web.AppKey[ShopServer] = web.AppKey("server", ShopServer)


def _hit(hit: dict[str, Any], was: int | None, move: str) -> dict[str, Any]:
    return {"document_id": hit["id"], "rank": hit["rank"], "score": hit["score"], "was": was, "move": move}
