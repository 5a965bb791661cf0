"""An index that somebody else made and keeps: what searchloop knows of it, and the form in which it is asked.

Nothing is ever written to it. An attachment holds the owner's own search with the marked places of the query, the
fields of the documents, and their types at the time of attaching. If a type changes, searches stop with the reason,
because a search of a missing field finds nothing and says nothing.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import msgspec
from elasticsearch import Elasticsearch

from search_env.catalogue.corpora import Ranking, rank_by_score
from search_env.engine.errors import EngineUnavailable
from search_env.engine.field_types import field_types
from search_env.engine.forms import Body, Boosted
from search_env.engine.marked_query import Marked, fill

ID = "_id"
OBJECTS = frozenset({"object", "nested"})
LOOK_SECONDS = 30.0
_STATE = "responses.status,responses.error,responses.timed_out,responses._shards.failed"
_TIE_BREAKER = 0.3


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """An attached index.

    index: the index, alias or data stream. id_field: the field that names a document; "_id" takes the engine's own id.
    title, texts, attributes: the fields of a document's parts; an attribute may be an object of many values.
    searched: the fields in which expansions are searched, with a boost as "title^2".
    raw, helped: the owner's search body with marks; see `marked_query`. types: of these fields when it was attached.
    documents: their number when it was attached. source: whether its mapping keeps the source of its documents.
    """

    index: str
    id_field: str = ID
    title: str = ""
    texts: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    searched: tuple[str, ...]
    raw: dict[str, Any]
    helped: dict[str, Any]
    types: dict[str, str] = {}
    documents: int = 0
    source: bool = True

    @property
    def sha256(self) -> str:
        """The hash of everything on which a ranking depends."""
        parts = [self.index, self.id_field, self.searched, self.raw, self.helped]
        return hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()

    def fields(self) -> list[str]:
        """Return the names of all fields that are read or searched, without boosts."""
        named = [
            self.id_field,
            self.title,
            *self.texts,
            *self.attributes,
            *(each.split("^")[0] for each in self.searched),
        ]
        return sorted({name for name in named if name and name != ID})


class AttachedForm:
    """Asks an attached index with its owner's search; expansions stand beside the query as boosted clauses.

    The order of the hits is the owner's. A document that comes twice, from two indexes behind one alias, counts once.
    """

    def __init__(self, attachment: Attachment) -> None:
        self.attachment = attachment
        self._checked_at = -LOOK_SECONDS
        self.path = attachment.index
        name = "hits.hits._id" if attachment.id_field == ID else f"hits.hits.fields.{attachment.id_field}"
        self.answer_filter = f"{_STATE},responses.{name},responses.hits.hits._score"
        self._marked = Marked(raw=attachment.raw, helped=attachment.helped)

    def body(self, query: str, words: Sequence[Boosted] = (), *, whole_boost: float = 0.0, size: int) -> Body:
        """Return the owner's body for this query, with the words beside it if there are any."""
        if words:
            clauses = [self._clause(text, boost=round(boost, 6)) for text, boost in words]
            if whole_boost:
                clauses.append(self._clause(query, boost=whole_boost, whole=True))
            body = fill(self._marked.helped, query, clauses, " ".join(text for text, _ in words))
        else:
            body = fill(self._marked.raw, query)
        body |= {"size": size, "_source": False, "track_total_hits": False}
        if self.attachment.id_field != ID:
            body["docvalue_fields"] = [self.attachment.id_field]
        return body

    def ranking(self, hits: Sequence[dict[str, Any]]) -> Ranking:
        """Return ids and scores in the owner's order; equal scores are in the order of their ids, as everywhere.

        Where the owner sorts by something else than the score, a hit's score is 1 / rank.
        """
        found: dict[str, float | None] = {}
        for hit in hits:
            name = self._id(hit)
            if name:
                found.setdefault(name, hit.get("_score"))
        scores = [score for score in found.values() if score is not None]
        if len(scores) < len(found) or any(later > earlier for earlier, later in pairwise(scores)):
            return Ranking(list(found), [1.0 / rank for rank in range(1, len(found) + 1)])
        return rank_by_score(list(found), scores)

    def require_unchanged(self, client: Elasticsearch) -> None:
        """Look at most every `LOOK_SECONDS` whether the fields still have the types that they had when attached.

        Raises EngineUnavailable if one has not, or if the index is gone; both may be mended.
        """
        now = time.monotonic()
        if now - self._checked_at >= LOOK_SECONDS:
            require_types(client, self.attachment)
            self._checked_at = now

    def _id(self, hit: dict[str, Any]) -> str:
        if self.attachment.id_field == ID:
            return str(hit["_id"])
        values = hit.get("fields", {}).get(self.attachment.id_field, ())
        return str(values[0]) if values else ""

    def _clause(self, text: str, *, boost: float, whole: bool = False) -> dict[str, Any]:
        parts: dict[str, Any] = {"query": text, "fields": list(self.attachment.searched), "boost": boost}
        if whole:
            return {"multi_match": {**parts, "type": "cross_fields", "operator": "and"}}
        return {"multi_match": {**parts, "type": "best_fields", "tie_breaker": _TIE_BREAKER}}


def require_types(client: Elasticsearch, attachment: Attachment) -> None:
    """Raise EngineUnavailable if a field of an attachment has another type now, or is gone."""
    if not attachment.types:
        return
    # The engine tells an object only beside the fields within it.
    within = [f"{name}.*" for name, kind in attachment.types.items() if kind in OBJECTS]
    found = field_types(client, attachment.index, [*attachment.types, *within])
    for name, before in attachment.types.items():
        if found.get(name, "missing") != before:
            raise EngineUnavailable(
                f"index '{attachment.index}' has changed: expected the field {name!r} to be {before}, as when it was "
                f"attached, got {found.get(name, 'no such field')}. Mend the index, or attach it again"
            )
