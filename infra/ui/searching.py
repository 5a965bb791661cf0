"""The Search page: one query, raw and helped, asked of a running `searchloop serve`, and clicks sent back to it."""

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
NO_SERVER = (
    "The Search page asks a running server. Start one with `searchloop serve --index NAME`, and say where it is: "
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

    def _session(self) -> aiohttp.ClientSession:
        if not self._address:
            raise SearchTrouble(409, NO_SERVER)
        return aiohttp.ClientSession(headers=self._headers, timeout=aiohttp.ClientTimeout(total=SECONDS))

    async def _search(self, session: aiohttp.ClientSession, query: str, helped: str) -> dict[str, Any]:
        body = {"query": query, "size": SIZE, "helped": helped, "application": APPLICATION}
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
                    status = 400 if answer.status < 500 else 502
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
