"""Indexes in Elasticsearch: one mapping for every server, versions behind an alias, and the loaded corpus beside it.

An index version is written once and never changed: `NAME-<n>` is filled, refreshed, merged to one segment and made
read-only, and only then does the alias `NAME` point to it. Whatever fails before that leaves the old version serving.
The documents that went in are kept in the home directory, because features, contexts and intents read whole documents,
and a search never fetches any.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from elastic_transport import ConnectionError as EngineConnectionError
from elastic_transport import ConnectionTimeout, TransportError
from elasticsearch import ApiError, Elasticsearch, helpers

from search_env.corpora import Document, load_corpus, write_whole
from streams.errors import SearchloopError, explain_os_error

Progress = Callable[[str, int, int], None]  # what is being done, how much is done, how much there is (0: unknown)

BULK_DOCUMENTS = 1_000
BULK_BYTES = 5 * 1024 * 1024
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,99}")
_ADDRESS = re.compile(r"HTTPS?Connection(?:Pool)?\(host='([^']*)', port=(\d+)\): ")
_VERSIONED = re.compile(r"(.*)-([0-9]+)")

MAPPING: dict[str, Any] = {
    "dynamic": "strict",
    "properties": {
        "id": {"type": "keyword", "doc_values": True},
        "title": {"type": "text", "analyzer": "english", "copy_to": "contents"},
        "text": {"type": "text", "analyzer": "english", "copy_to": "contents"},
        "contents": {"type": "text", "analyzer": "english"},
        "summary": {"type": "text", "analyzer": "english"},  # Not in contents: it is read by a reranker, not matched.
        "summary_policy": {"type": "keyword"},
        "metadata": {"type": "object", "enabled": False},
    },
}
SIMILARITY: dict[str, Any] = {"default": {"type": "BM25", "k1": 1.2, "b": 0.75}}


class IndexingError(SearchloopError, RuntimeError):
    """An index could not be built, found or read."""


class IndexVersion(msgspec.Struct, frozen=True, kw_only=True):
    """One index as it was built: `name` is NAME-<n>, `alias` is NAME; sha256 is that of the corpus as JSON lines.

    summaries: the policy version whose summaries stand beside the titles, "" where none do.
    """

    name: str
    alias: str
    documents: int
    sha256: str
    made_at_ms: int = 0
    summaries: str = ""


class Summaries(NamedTuple):
    """Texts that are indexed beside the titles, by document id, and the policy version that wrote them."""

    policy: str
    by_document: Mapping[str, str]


def build_index(
    client: Elasticsearch,
    name: str,
    documents: Iterable[Document],
    progress: Progress | None = None,
    *,
    directory: Path | None = None,
    total: int = 0,
    replicas: int = 0,
    summaries: Summaries | None = None,
    keep: Collection[str] = (),
) -> IndexVersion:
    """Load documents into a new version of an index, and switch the alias to it when all of them are in.

    directory: where `documents.jsonl.gz` and `manifest.json` are kept (home/indexes/NAME); None keeps no files.
    total: how many documents to expect, for the progress bar; 0 if unknown. summaries: stored in fields of their own.
    keep: older versions that are not deleted when the alias has moved.
    Raises IndexingError if Elasticsearch refuses or the disk is full, and lets CorpusError of `documents` through;
    either way the alias still points where it did, and the half-filled index is gone.
    """
    report = progress or (lambda what, done, of: None)
    _check_name(name)
    try:
        number = 1 + max([*_versions(client, name).values(), _saved_number(directory)])
        version = f"{name}-{number}"
        _refuse_plain_index(client, name)
        client.indices.create(
            index=version,
            mappings=MAPPING,
            settings={
                "number_of_shards": 1,
                "number_of_replicas": replicas,
                "refresh_interval": "-1",
                "similarity": SIMILARITY,
            },
        )
        saved = _SavedDocuments(directory)
        try:
            _load(client, version, saved.keep(documents), summaries, report, total)
            report("merging the index", 0, 0)
            client.indices.refresh(index=version)
            client.options(request_timeout=600).indices.forcemerge(index=version, max_num_segments=1)
            client.indices.refresh(index=version)
            client.indices.put_settings(index=version, settings={"index.blocks.write": True})
            counted = int(client.count(index=version)["count"])
            if counted != saved.count:
                raise IndexingError(f"index '{version}': expected {saved.count} documents after loading, got {counted}")
            made = IndexVersion(
                name=version,
                alias=name,
                documents=saved.count,
                sha256=saved.sha256.hexdigest(),
                made_at_ms=time.time_ns() // 1_000_000,
                summaries=summaries.policy if summaries else "",
            )
            _switch_alias(client, name, version)
        except BaseException:  # Ctrl-C too: a half-filled index must not stay, whatever stopped us.
            saved.discard()
            client.options(ignore_status=404).indices.delete(index=version)
            raise
        saved.accept(made)
        for old in _versions(client, name):
            if old != version and old not in keep:
                client.options(ignore_status=404).indices.delete(index=old)
    except (ApiError, helpers.BulkIndexError) as error:
        raise IndexingError(f"index '{name}': Elasticsearch refused: {explain(error)}") from error
    except TransportError as error:
        raise IndexingError(
            f"index '{name}': Elasticsearch did not answer: {explain(error)}. Look with: searchloop status"
        ) from error
    except OSError as error:
        raise IndexingError(f"index '{name}': its documents in {directory}: {explain_os_error(error)}") from error
    report("index ready", made.documents, made.documents)
    return made


def current_version(client: Elasticsearch, name: str) -> str:
    """Return the versioned name behind an alias (a versioned name gives itself).

    Raises IndexingError if there is no such index, naming those there are.
    """
    try:
        behind = client.options(ignore_status=404).indices.get_alias(index=name)
        if behind.meta.status == 200 and len(behind.body) == 1:
            return str(next(iter(behind.body)))
        known = sorted({alias for found in client.indices.get_alias().body.values() for alias in found["aliases"]})
    except (ApiError, TransportError) as error:
        raise IndexingError(f"index '{name}': Elasticsearch refused: {explain(error)}") from error
    raise IndexingError(
        f"no index '{name}' (there are: {', '.join(known) or 'none'}). Run: searchloop index CORPUS --name {name}"
    )


def load_manifest(directory: Path) -> IndexVersion:
    """Return what `build_index` wrote about the corpus kept in this directory.

    Raises IndexingError if there is none, or it cannot be read.
    """
    path = directory / "manifest.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=IndexVersion)
    except FileNotFoundError:
        raise IndexingError(
            f"{path}: no such index here. Run: searchloop index CORPUS --name {directory.name}"
        ) from None
    except msgspec.DecodeError as error:
        raise IndexingError(
            f"{path}: damaged ({error}). Run: searchloop index CORPUS --name {directory.name}"
        ) from error


def load_documents(directory: Path) -> list[Document]:
    """Return the corpus kept in this directory, in the order it was loaded, checked against its manifest.

    Raises IndexingError if it is not the corpus that the index was built from.
    """
    manifest = load_manifest(directory)
    documents = list(load_corpus(directory / "documents.jsonl.gz", kept=True))
    digest = hashlib.sha256()
    for document in documents:
        digest.update(_line(document))
    if digest.hexdigest() != manifest.sha256:
        raise IndexingError(
            f"{directory / 'documents.jsonl.gz'}: expected the corpus {manifest.sha256[:12]} of its manifest, got "
            f"{digest.hexdigest()[:12]}. Run: searchloop index CORPUS --name {directory.name}"
        )
    return documents


def explain(error: Exception) -> str:
    """Return an Elasticsearch error in one line: what kind, why, and how many more there were."""
    if isinstance(error, helpers.BulkIndexError):
        first: dict[str, Any] = next(iter(error.errors[0].values())) if error.errors else {}
        reason = first.get("error", {})
        text = reason.get("reason", reason) if isinstance(reason, dict) else reason
        return f"document '{first.get('_id', '?')}': {text} ({len(error.errors)} documents failed in one batch)"
    if isinstance(error, ApiError):
        body = error.body if isinstance(error.body, dict) else {}
        reason = body.get("error", {})
        text = reason.get("reason", "") if isinstance(reason, dict) else str(reason)
        return f"status {error.meta.status}, {error.message}{': ' + text if text else ''}"[:500]
    # The transport's own text is "Connection error" or wraps itself, once for each retry; its cause says what happened.
    happened = error.__cause__ if isinstance(error, (EngineConnectionError, ConnectionTimeout)) else error
    text = _ADDRESS.sub(r"\1:\2: ", str(happened or error))
    return f"{type(error).__name__}: {text}"[:500]


class _SavedDocuments:
    """Writes documents aside while they are loaded, and puts them in place only with their manifest."""

    def __init__(self, directory: Path | None) -> None:
        self.directory = directory
        self.count = 0
        self.sha256 = hashlib.sha256()
        self.aside = directory / "documents.jsonl.gz.writing" if directory else None

    def keep(self, documents: Iterable[Document]) -> Iterator[Document]:
        """Pass documents on, counting, hashing and writing each."""
        if self.aside is not None:
            self.aside.parent.mkdir(parents=True, exist_ok=True)
        stream = gzip.GzipFile(self.aside, "wb", compresslevel=3, mtime=0) if self.aside else None
        try:
            for document in documents:
                line = _line(document)
                self.sha256.update(line)
                self.count += 1
                if stream is not None:
                    stream.write(line)
                yield document
        finally:
            if stream is not None:
                stream.close()

    def accept(self, version: IndexVersion) -> None:
        """Put documents and manifest in place."""
        if self.directory is not None and self.aside is not None:
            self.aside.replace(self.directory / "documents.jsonl.gz")
            write_whole(self.directory / "manifest.json", msgspec.json.format(msgspec.json.encode(version)) + b"\n")

    def discard(self) -> None:
        """Remove what was written aside."""
        if self.aside is not None:
            self.aside.unlink(missing_ok=True)


def _line(document: Document) -> bytes:
    record = {"_id": document.id, "title": document.title, "text": document.text, "metadata": document.metadata}
    return msgspec.json.encode(record) + b"\n"


def _load(
    client: Elasticsearch,
    index: str,
    documents: Iterator[Document],
    summaries: Summaries | None,
    report: Progress,
    total: int,
) -> None:
    actions = (
        {
            "_op_type": "create",
            "_index": index,
            "_id": document.id,
            "id": document.id,
            "title": document.title,
            "text": document.text,
            "metadata": document.metadata,
            **_summary_fields(document.id, summaries),
        }
        for document in documents
    )
    done = 0
    for _ in helpers.streaming_bulk(
        client,
        actions,
        chunk_size=BULK_DOCUMENTS,
        max_chunk_bytes=BULK_BYTES,
        max_retries=6,  # of documents that were answered with 429, after 0.5, 1, 2 … seconds
        initial_backoff=0.5,
        max_backoff=20,
    ):
        done += 1
        if done % BULK_DOCUMENTS == 0:
            report("indexing", done, total)
    report("indexing", done, total)


def _summary_fields(document_id: str, summaries: Summaries | None) -> dict[str, str]:
    if summaries is None:
        return {}
    return {"summary": summaries.by_document.get(document_id, ""), "summary_policy": summaries.policy}


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name) or _VERSIONED.fullmatch(name):
        raise IndexingError(
            f"expected an index name of lower-case letters, digits, '_', '.' and '-' that does not end in -<number> "
            f"(versions are named so), got '{name}'. Choose another with --name."
        )


def _versions(client: Elasticsearch, name: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for index in client.indices.get(index=f"{name}-*", features="aliases").body:
        match = _VERSIONED.fullmatch(index)
        if match and match.group(1) == name:
            found[index] = int(match.group(2))
    return found


def _saved_number(directory: Path | None) -> int:
    """The number of the last version that left files here: a name that was used once never means another corpus."""
    if directory is None or not (directory / "manifest.json").exists():
        return 0
    match = _VERSIONED.fullmatch(load_manifest(directory).name)
    return int(match.group(2)) if match else 0


def _refuse_plain_index(client: Elasticsearch, name: str) -> None:
    if client.indices.exists(index=name) and not client.indices.exists_alias(name=name):
        raise IndexingError(
            f"'{name}' is an index of this cluster, and no alias of ours. Choose another name with --name; "
            f"searchloop never touches an index that it did not make."
        )


def _switch_alias(client: Elasticsearch, alias: str, version: str) -> None:
    actions: list[dict[str, Any]] = [{"add": {"index": version, "alias": alias}}]
    if client.indices.exists_alias(name=alias):
        actions.insert(0, {"remove": {"index": "*", "alias": alias}})
    client.indices.update_aliases(actions=actions)
