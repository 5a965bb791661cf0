"""The search engine as the server asks it: one search at a time, within a deadline, and never again after a failure."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
from elastic_transport import TransportError
from elasticsearch import ApiError, AsyncElasticsearch

from search_env.catalogue.corpora import Ranking
from search_env.engine.errors import EngineUnavailable, RetrievalError, explain
from search_env.engine.forms import QueryForm
from search_env.engine.searching import RetrievalSettings, expanded_bodies, fusion_of, searched_below, union_of

_PARAMETERS = {"allow_partial_search_results": "false"}
_TITLES_AT_ONCE = 1_000


class AsyncSearcher:
    """Searches one index with a run's way to ask an expanded query."""

    def __init__(self, client: AsyncElasticsearch, form: QueryForm, settings: RetrievalSettings) -> None:
        self.client = client
        self.form = form
        self.settings = settings
        self.trouble = ""  # Why no search may be answered now.
        self._filter = form.answer_filter.replace("responses.", "")

    async def search(
        self, query: str, expansions: Sequence[str], *, size: int, terms_min: int | None = None
    ) -> Ranking:
        """Return the ranking of a query, raw without expansions. terms_min: as in `Routes`.

        Raises EngineUnavailable if the engine is away or too slow, RetrievalError if it refuses.
        """
        if self.trouble:
            raise EngineUnavailable(self.trouble)
        settings = searched_below(self.settings, terms_min)
        bodies = expanded_bodies(self.form, query, expansions, settings, size=size)
        found = await asyncio.gather(*map(self._one, bodies))
        if len(found) == 1:
            return found[0]
        if self.settings.mode == "union":
            return union_of(found, size=size)
        return fusion_of(found, size=size, fusion_k=self.settings.fusion_k)

    async def summaries(self, ids: Sequence[str], *, index: str) -> dict[str, dict[str, str]]:
        """Return title and summary by document id, for the documents that the index holds. Raises as `search` does."""
        if not ids:
            return {}
        try:
            answer = await self.client.mget(index=index, ids=list(ids), source_includes=["title", "summary"])
        except (ApiError, TransportError) as error:
            raise _explained(error, index) from error
        return {
            each["_id"]: {name: str(each["_source"].get(name, "")) for name in ("title", "summary")}
            for each in answer["docs"]
            if each.get("found")
        }

    async def _one(self, body: dict[str, Any]) -> Ranking:
        path = self.form.path
        try:
            answer = await self.client.perform_request(
                "POST",
                f"/{path}/_search",
                params=_PARAMETERS | {"filter_path": self._filter},
                headers={
                    "accept": "application/vnd.elasticsearch+json; compatible-with=9",
                    "content-type": "application/vnd.elasticsearch+json; compatible-with=9",
                },
                body=msgspec.json.encode(body),
            )
        except (ApiError, TransportError) as error:
            raise _explained(error, path) from error
        item: dict[str, Any] = answer.body
        if item.get("timed_out") or item.get("_shards", {}).get("failed"):
            raise EngineUnavailable(f"search on '{path}': answered in part only; a part is not an answer")
        return self.form.ranking(item.get("hits", {}).get("hits", ()))


def _explained(error: ApiError | TransportError, index: str) -> RetrievalError:
    if isinstance(error, ApiError) and error.meta.status not in (401, 403, 404, 429, 502, 503, 504):
        return RetrievalError(f"search on '{index}' failed: {explain(error)}")
    return EngineUnavailable(f"search on '{index}' failed: {explain(error)}")
