"""The documents of an attached index, read when they are needed and kept in bounded memory.

`sample_documents` draws a sample by point in time: the statistics of words and values come from it, and so do the
queries that are made from a catalogue. `DocumentReader` reads the documents that a search has found.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from elastic_transport import TransportError
from elasticsearch import ApiError, Elasticsearch

from search_env.catalogue.corpora import (
    METADATA_CHARACTERS_MAX,
    TEXT_CHARACTERS_MAX,
    TITLE_CHARACTERS_MAX,
    Document,
)
from search_env.engine.attachments import ID, Attachment
from search_env.engine.errors import EngineUnavailable, RetrievalError, explain
from streams.inputs.text import clean_metadata, clean_text

AT_ONCE = 500
KEEP_ALIVE = "2m"
_NAMES = ("name", "key", "label", "attribute")
_VALUES = ("value", "values", "val")

Progress = Callable[[str, int, int], None]


class DocumentReader:
    """Reads documents of an attached index by id, and keeps the `kept` most recently used. Not thread-safe."""

    def __init__(self, client: Elasticsearch, attachment: Attachment, *, kept: int = 20_000) -> None:
        self._client = client
        self._attachment = attachment
        self._kept = kept
        self._documents: OrderedDict[str, Document] = OrderedDict()

    def read(self, ids: Sequence[str]) -> dict[str, Document]:
        """Return the documents by id. One that is gone meanwhile has no title and no text.

        Raises EngineUnavailable if the engine does not answer, RetrievalError if it refuses.
        """
        missing = [name for name in dict.fromkeys(ids) if name not in self._documents]
        for start in range(0, len(missing), AT_ONCE):
            self._documents.update(self._fetched(missing[start : start + AT_ONCE]))
        found = {}
        for name in ids:
            found[name] = self._documents[name]
            self._documents.move_to_end(name)
        while len(self._documents) > self._kept:
            self._documents.popitem(last=False)
        return found

    def _fetched(self, ids: list[str]) -> dict[str, Document]:
        attachment = self._attachment
        named = {"ids": {"values": ids}} if attachment.id_field == ID else {"terms": {attachment.id_field: ids}}
        # Two indexes behind one alias may both hold an id, so more than one hit may come for each.
        body = {"query": named, "size": min(2 * len(ids) + 10, 10_000), "sort": ["_index"], **_parts(attachment)}
        with _told(attachment.index):
            answer = self._client.search(index=attachment.index, body=body, allow_partial_search_results=False)
        found = {name: Document(id=name, title="", text="") for name in ids}
        for hit in reversed(answer["hits"]["hits"]):
            document = document_of(hit, attachment)
            if document.id in found:
                found[document.id] = document
        return found


def sample_documents(
    client: Elasticsearch, attachment: Attachment, *, count: int, seed: int, report: Progress
) -> Iterator[Document]:
    """Yield `count` documents drawn at random, or all if there are not more; each id once.

    The same seed draws the same documents from an index that did not change. Raises as `DocumentReader.read` does.
    """
    index, seen = attachment.index, set[str]()
    with _told(index):
        opened = str(client.open_point_in_time(index=index, keep_alive=KEEP_ALIVE)["id"])
    drawn = {"random_score": {"seed": seed, "field": "_seq_no"}, "boost_mode": "replace"}
    body: dict[str, Any] = {
        "query": {"function_score": {"query": {"match_all": {}}, **drawn}},
        "sort": [{"_score": "desc"}, "_shard_doc"],
        "track_total_hits": False,
        **_parts(attachment),
    }
    try:
        while len(seen) < count:
            body |= {"size": min(AT_ONCE, count - len(seen)), "pit": {"id": opened, "keep_alive": KEEP_ALIVE}}
            with _told(index):
                answer = client.search(body=body, allow_partial_search_results=False)
            opened = str(answer["pit_id"])
            hits = answer["hits"]["hits"]
            for hit in hits:
                document = document_of(hit, attachment)
                if document.id and document.id not in seen:
                    seen.add(document.id)
                    yield document
            report("reading a sample of the documents", len(seen), count)
            if not hits:
                return
            body["search_after"] = hits[-1]["sort"]
    finally:
        with contextlib.suppress(ApiError, TransportError):  # It ends by itself soon.
            client.close_point_in_time(id=opened)


def document_of(hit: Mapping[str, Any], attachment: Attachment) -> Document:
    """Return a hit as a document; its source comes first, then its stored fields and doc values."""
    source, fields = hit.get("_source") or {}, hit.get("fields") or {}

    def read(name: str) -> Any:
        value = _at(source, name)
        return fields.get(name) if value is None else value

    name = hit["_id"] if attachment.id_field == ID else _first(read(attachment.id_field))
    attributes: dict[str, Any] = {}
    for field in attachment.attributes:
        attributes.update(_attributes(field, read(field)))
    texts = [_text(read(field)) for field in attachment.texts]
    title = _text(read(attachment.title)) if attachment.title else ""
    metadata = {"attributes": attributes} if attributes else {}
    return Document(
        id=str(name if name is not None else ""),
        title=clean_text(title, characters_max=TITLE_CHARACTERS_MAX),
        text=clean_text(" ".join(filter(None, texts)), characters_max=TEXT_CHARACTERS_MAX),
        metadata=clean_metadata(metadata, characters_max=METADATA_CHARACTERS_MAX),
    )


def has_source(client: Elasticsearch, attachment: Attachment) -> bool:
    """Return whether the engine gives the source of a document; a mapping may keep none.

    Raises as `DocumentReader.read` does.
    """
    try:
        client.search(index=attachment.index, size=1, source=["_none"], allow_partial_search_results=False)
    except ApiError as error:
        if error.meta.status != 400:
            with _told(attachment.index):
                raise
        return False
    except TransportError:
        with _told(attachment.index):
            raise
    return True


def _parts(attachment: Attachment) -> dict[str, Any]:
    """Return what is asked of each hit: its source, or stored fields and doc values for a mapping without source."""
    names = attachment.fields()
    if attachment.source:
        return {"_source": names}
    columns = [name for name in names if attachment.types.get(name, "text") in _COLUMNS]
    return {"_source": False, "stored_fields": ["_id", *names], "docvalue_fields": columns}


_COLUMNS = frozenset({
    "keyword", "constant_keyword", "long", "integer", "short", "byte", "double", "float", "half_float", "scaled_float",
    "unsigned_long", "boolean", "date", "ip",
})  # fmt: skip


def _at(source: Any, name: str) -> Any:
    """Return the value at a dotted path, whether the source nests its objects or names them with dots."""
    if not isinstance(source, Mapping):
        return (
            [found for each in source if (found := _at(each, name)) is not None] if isinstance(source, list) else None
        )
    if name in source:
        return source[name]
    head, dot, rest = name.partition(".")
    while dot:
        if head in source:
            return _at(source[head], rest)
        more, dot, rest = rest.partition(".")
        head = f"{head}.{more}"
    return None


def _first(value: Any) -> Any:
    return (value[0] if value else None) if isinstance(value, list) else value


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(filter(None, map(_text, value)))
    return value if isinstance(value, str) else str(value) if isinstance(value, int | float) else ""


def _leaves(value: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values within an object by their dotted paths; an object of attributes may hold groups of them."""
    for key, each in value.items():
        if isinstance(each, Mapping):
            yield from _leaves(each, f"{above}{key}.")
        else:
            yield f"{above}{key}", each


def _attributes(field: str, value: Any) -> dict[str, Any]:
    """Return the attributes in one field: a value, values by key, or a list of pairs such as {name, value}."""
    if value is None:
        return {}
    if isinstance(value, Mapping):
        return dict(_leaves(value))
    if isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value):
        found: dict[str, Any] = {}
        for each in value:
            name = next((each[key] for key in _NAMES if isinstance(each.get(key), str)), None)
            said = next((each[key] for key in _VALUES if key in each), None)
            if name and said is not None:
                found.setdefault(name, said)
        return found
    return {field.rsplit(".", 1)[-1]: _first(value) if isinstance(value, list) and len(value) == 1 else value}


@contextlib.contextmanager
def _told(index: str) -> Iterator[None]:
    try:
        yield
    except ApiError as error:
        said = f"reading documents of '{index}' failed: {explain(error)}"
        raise (EngineUnavailable if error.meta.status in (401, 403, 404, 429, 502, 503, 504) else RetrievalError)(
            said
        ) from error
    except TransportError as error:
        raise EngineUnavailable(
            f"Elasticsearch did not answer: {explain(error)}. Look with: searchloop status"
        ) from error
