"""Opening an index, ours or an attached one, for searches and for its documents."""

from __future__ import annotations

from pathlib import Path

from elasticsearch import Elasticsearch

from search_env.catalogue.term_matrices import Catalogue
from search_env.engine.attached_catalogue import AttachedCatalogue
from search_env.engine.attachments import AttachedForm
from search_env.engine.documents import DocumentReader
from search_env.engine.index import IndexingError, kept_catalogue, load_documents, load_manifest
from search_env.engine.searching import RetrievalSettings, Searcher


def open_searcher(
    client: Elasticsearch, directory: Path, settings: RetrievalSettings, *, version: str = ""
) -> Searcher:
    """Return a searcher of the index in this directory. Close it after use; the client stays open.

    version: the versioned name that must be searched; "" takes the newest.
    Raises IndexingError if an attached index was attached otherwise at that version: its searches are gone.
    """
    manifest = load_manifest(directory)
    if manifest.attached is None:
        return Searcher(client, version or manifest.name, settings)
    if version not in ("", manifest.name):
        raise IndexingError(
            f"index {directory.name!r}: expected the attachment {version!r}, got {manifest.name!r}: it was attached "
            "again, with another search. Begin a new run, or attach it as it was"
        )
    return Searcher(client, manifest.name, settings, AttachedForm(manifest.attached))


def open_catalogue(client: Elasticsearch, directory: Path) -> Catalogue:
    """Return the documents of the index in this directory, mapped from files.

    Of an attached index, it holds the sample; further documents are read when they are needed.

    Raises IndexingError as `load_documents` does.
    """
    if (attached := load_manifest(directory).attached) is None:
        return kept_catalogue(directory)
    return AttachedCatalogue(load_documents(directory, sample=True), DocumentReader(client, attached))
