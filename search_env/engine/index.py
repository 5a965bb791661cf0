"""Indexes in Elasticsearch: one mapping for every server, versions behind an alias, and a local copy of the corpus.

An index version is written once and never changed. `NAME-<n>` is filled, refreshed, merged to one segment and made
read-only; only then does the alias `NAME` point to it. If a step before that fails, the old version stays in service.
Our indexes carry a mark, and no other index is ever changed (`search_env.engine.ownership`).
The home directory keeps the indexed documents, because features, contexts and intents read whole documents and a search
never fetches any.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from elastic_transport import TransportError
from elasticsearch import ApiError, Elasticsearch, helpers

from search_env.catalogue.corpora import Document, load_corpus, write_whole
from search_env.catalogue.kept import KeptCatalogue, keep_catalogue, read_manifest
from search_env.catalogue.kept_rows import KeptError
from search_env.catalogue.term_matrices import Catalogue
from search_env.engine.attachments import Attachment
from search_env.engine.errors import explain as explain
from search_env.engine.index_changes import create_marked, delete_superseded, discard, switch_alias
from search_env.engine.layout import ONE_SHARD, IndexLayout
from search_env.engine.ownership import IndexingError as IndexingError
from search_env.engine.ownership import Place, Seen, adopt, claim, meta
from streams.errors import explain_os_error
from streams.whole_file import put_file, whole_folder

Progress = Callable[[str, int, int], None]  # (activity, amount done, total amount; 0: unknown)

BULK_DOCUMENTS = 1_000
BULK_BYTES = 5 * 1024 * 1024
CATALOGUE = "catalogue"  # The folder of the catalogue's mapped files, beside the corpus from which they are made.
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,99}")
_VERSIONED = re.compile(r"(.*)-([0-9]+)")

MAPPING: dict[str, Any] = {
    "dynamic": "strict",
    "properties": {
        "id": {"type": "keyword", "doc_values": True},
        "title": {"type": "text", "analyzer": "english", "copy_to": "contents"},
        "text": {"type": "text", "analyzer": "english", "copy_to": "contents"},
        "contents": {"type": "text", "analyzer": "english"},
        "summary": {"type": "text", "analyzer": "english"},  # Not in contents: a reranker reads it, no search does.
        "summary_policy": {"type": "keyword"},
        "metadata": {"type": "object", "enabled": False},
    },
}
SIMILARITY: dict[str, Any] = {"default": {"type": "BM25", "k1": 1.2, "b": 0.75}}


class IndexVersion(msgspec.Struct, frozen=True, kw_only=True):
    """One index as it was built: `name` is NAME-<n>, `alias` is NAME; sha256 is that of the corpus as JSON lines.

    summaries: the policy version whose summaries are stored beside the titles; "" if there are none.
    attached: the index of somebody else that this one stands for; then documents and sha256 are those of the sample.
    """

    name: str
    alias: str
    documents: int
    sha256: str
    made_at_ms: int = 0
    summaries: str = ""
    attached: Attachment | None = None


class Summaries(NamedTuple):
    """Texts that are indexed beside the titles, by document id, and the policy version that wrote them."""

    policy: str
    by_document: Mapping[str, str]


def check_name(name: str) -> None:
    """Raise IndexingError for a name that none of our indexes can have."""
    if not _NAME.fullmatch(name) or _VERSIONED.fullmatch(name):
        raise IndexingError(
            f"expected an index name of lower-case letters, digits, '_', '.' and '-' that does not end in -<number> "
            f"(versions are named so), got '{name}'. Choose another with --name."
        )


def claim_name(client: Elasticsearch, name: str, *, installation: str) -> list[Seen]:
    """Return this installation's versions of an index, after checking that the name is free or ours.

    Raises IndexingError if somebody else has an index, an alias, a data stream or a template of that name, or if
    Elasticsearch refuses or does not answer. It never changes the cluster.
    """
    check_name(name)
    with _told(name):
        return claim(client, _place(name, installation), partial(_is_version, name))


def adopt_versions(client: Elasticsearch, name: str, *, installation: str) -> list[str]:
    """Mark as ours the versions of an index that a searchloop without marks made, and return their names.

    Raises IndexingError, with no change, if anything else has that name.
    """
    check_name(name)
    with _told(name):
        return adopt(client, _place(name, installation), partial(_is_version, name), MAPPING["properties"])


def build_index(
    client: Elasticsearch,
    name: str,
    documents: Iterable[Document],
    progress: Progress | None = None,
    *,
    installation: str,
    directory: Path | None = None,
    total: int = 0,
    layout: IndexLayout = ONE_SHARD,
    summaries: Summaries | None = None,
    keep: Collection[str] = (),
) -> IndexVersion:
    """Load documents into a new version of an index, and switch the alias to it after the last document.

    installation: the id of the home that owns the index; only versions with this id are replaced.
    directory: the folder that keeps `documents.jsonl.gz` and `manifest.json` (home/indexes/NAME); None keeps no files.
    total: the expected number of documents, for the progress bar; 0 if unknown. summaries: stored in separate fields.
    keep: older versions that stay after the alias has moved.
    Raises IndexingError if the name belongs to somebody else (before anything is created), if Elasticsearch refuses, or
    if the disk is full. CorpusError from `documents` passes through. In each case, the alias stays as it was and the
    half-filled index is deleted.
    """
    report = progress or (lambda what, done, of: None)
    place = _place(name, installation)
    number = 1 + max(
        [
            *(_number(each.name) for each in claim_name(client, name, installation=installation)),
            _saved_number(directory),
        ]
    )
    with _told(name, directory):
        new, through = _create(client, place, f"{name}-{number}", layout)
        saved = SavedDocuments(directory)
        try:
            _load(client, through, saved.keep(documents), summaries, report, total)
            report("merging the index", 0, 0)
            client.indices.refresh(index=through)
            if layout.segments:
                client.options(request_timeout=600).indices.forcemerge(index=through, max_num_segments=layout.segments)
            client.indices.refresh(index=through)
            client.indices.put_settings(index=through, settings={"index.blocks.write": True})
            counted = int(client.count(index=through)["count"])
            if counted != saved.count:
                raise IndexingError(
                    f"index '{new.name}': expected {saved.count} documents after loading, got {counted}"
                )
            version = IndexVersion(
                name=new.name,
                alias=name,
                documents=saved.count,
                sha256=saved.sha256.hexdigest(),
                made_at_ms=time.time_ns() // 1_000_000,
                summaries=summaries.policy if summaries else "",
            )
            older = [each for each in claim(client, place, partial(_is_version, name)) if each.name != new.name]
            switch_alias(client, place, new, through, older)
        except BaseException:  # Also Ctrl-C: a half-filled index must not stay, whatever stopped us.
            saved.discard()
            discard(client, new, place)
            raise
        saved.accept(version)
        for each in older:
            if each.name not in keep:
                delete_superseded(client, each, place)
    report("index ready", version.documents, version.documents)
    return version


def current_version(client: Elasticsearch, name: str) -> str:
    """Return the versioned name behind an alias (a versioned name gives itself).

    Raises IndexingError if there is no such index; the message lists the existing ones.
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
    """Return the manifest that `build_index` wrote for the corpus in this directory.

    Raises IndexingError if there is none or it cannot be read.
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


def load_documents(directory: Path, *, sample: bool = False) -> list[Document]:
    """Return the corpus in this directory, in the order in which it was loaded, checked against its manifest.

    sample: True takes the sample of an attached index, whose other documents are not here.
    Raises IndexingError if it is not the corpus from which the index was built, or only a sample of it.
    """
    manifest = load_manifest(directory)
    if not sample:
        _require_whole(directory, manifest)
    return list(_checked(directory, manifest))


def kept_catalogue(directory: Path, report: Progress | None = None) -> Catalogue:
    """Return the catalogue of our index in this directory, mapped from files; they are made if they are missing.

    The files lie in `catalogue/`. They hold the same numbers as `Catalogue(load_documents(directory))` does.
    Raises IndexingError as `load_documents` does, and if the files cannot be written.
    """
    manifest, folder = load_manifest(directory), directory / CATALOGUE
    _require_whole(directory, manifest)
    with _told(directory.name, directory):
        if (kept := read_manifest(folder)) is not None and kept.sha256 == manifest.sha256:
            with contextlib.suppress(KeptError):  # Damaged: it is made again.
                return KeptCatalogue(folder)
        if report is not None:
            report("preparing the catalogue", 0, manifest.documents)
        with whole_folder(folder, replace=True) as aside:
            keep_catalogue(_checked(directory, manifest), aside, sha256=manifest.sha256)
    return KeptCatalogue(folder)


def _require_whole(directory: Path, manifest: IndexVersion) -> None:
    if manifest.attached is not None:
        raise IndexingError(
            f"index {directory.name!r} is attached: expected the whole catalogue here, got a sample of "
            f"{manifest.documents:,} of {manifest.attached.documents:,} documents. Index the catalogue for this: "
            "searchloop index CORPUS --name NAME"
        )


def _checked(directory: Path, manifest: IndexVersion) -> Iterator[Document]:
    """Yield the documents in a directory; at the end, raise IndexingError if they are not those of the manifest."""
    digest = hashlib.sha256()
    for document in load_corpus(directory / "documents.jsonl.gz", kept=True):
        digest.update(_line(document))
        yield document
    if digest.hexdigest() != manifest.sha256:
        raise IndexingError(
            f"{directory / 'documents.jsonl.gz'}: expected the corpus {manifest.sha256[:12]} of its manifest, got "
            f"{digest.hexdigest()[:12]}. Run: searchloop index CORPUS --name {directory.name}"
        )


class SavedDocuments:
    """Writes documents to a temporary file while they are loaded, and puts them in place only with their manifest."""

    def __init__(self, directory: Path | None) -> None:
        self.directory = directory
        self.count = 0
        self.sha256 = hashlib.sha256()
        self.aside = directory / "documents.jsonl.gz.writing" if directory else None

    def keep(self, documents: Iterable[Document]) -> Iterator[Document]:
        """Pass documents on, while counting, hashing and writing each of them."""
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
            put_file(self.aside, self.directory / "documents.jsonl.gz")
            write_whole(self.directory / "manifest.json", msgspec.json.format(msgspec.json.encode(version)) + b"\n")

    def discard(self) -> None:
        """Remove the temporary file."""
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
        require_alias=True,  # If the index is gone, the first document must not create it again.
        chunk_size=BULK_DOCUMENTS,
        max_chunk_bytes=BULK_BYTES,
        max_retries=6,  # for documents that were answered with 429, after 0.5, 1, 2 … seconds
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


def _place(name: str, installation: str) -> Place:
    return Place(installation=installation, alias=name, kind="documents")


def _is_version(name: str, index: str) -> bool:
    match = _VERSIONED.fullmatch(index)
    return match is not None and match.group(1) == name


def _number(index: str) -> int:
    match = _VERSIONED.fullmatch(index)
    return int(match.group(2)) if match else 0


@contextlib.contextmanager
def _told(name: str, directory: Path | None = None) -> Iterator[None]:
    """Turn an error of Elasticsearch or of the disk into one line."""
    try:
        yield
    except (ApiError, helpers.BulkIndexError) as error:
        raise IndexingError(f"index '{name}': Elasticsearch refused: {explain(error)}") from error
    except TransportError as error:
        raise IndexingError(
            f"index '{name}': Elasticsearch did not answer: {explain(error)}. Look with: searchloop status"
        ) from error
    except OSError as error:
        raise IndexingError(f"index '{name}': its documents in {directory}: {explain_os_error(error)}") from error


def _create(client: Elasticsearch, place: Place, index: str, layout: IndexLayout) -> tuple[Seen, str]:
    """Create an empty index with our mark; return it and the alias for writing."""
    mappings = MAPPING | {"_meta": meta(place.mark(index))}
    return create_marked(
        client, place, index, mappings=mappings, settings=layout.settings() | {"similarity": SIMILARITY}
    )


def _saved_number(directory: Path | None) -> int:
    """Return the number of the last version with files here, so that a used name never gets another corpus."""
    if directory is None or not (directory / "manifest.json").exists():
        return 0
    return _number(load_manifest(directory).name)
