"""Indexing: a corpus becomes documents behind an alias, with queries generated from them for learning."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from contextlib import closing

import msgspec

from infra.app.app import App
from infra.app.progress import Report
from search_env.catalogue.attributes import unread_attributes
from search_env.catalogue.corpora import CorpusError, Document
from search_env.catalogue.kept import keep_documents
from search_env.engine.index import IndexingError, IndexVersion, adopt_versions, build_index, claim_name
from search_env.engine.rights import INDEX_PRIVILEGES, require_rights
from search_env.queries.intents import IntentSet, IntentSettings, make_intents, pseudo_queries, write_intents
from streams.errors import explain_os_error
from streams.whole_file import folder_aside, whole_folder


class IndexSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The new index version and the number of queries per split; `kind` names the source of the queries.

    unread: one line about attributes that were skipped because of their form; "" if there are none. adopted: older
    versions without a mark that were taken over.
    """

    name: str
    alias: str
    documents: int
    sha256: str
    queries: dict[str, int]
    kind: str
    unread: str = ""
    adopted: tuple[str, ...] = ()


def index_corpus(
    app: App, *, name: str, documents: Iterable[Document], report: Report, adopt: bool = False
) -> IndexSummary:
    """Load documents into a new version of an index, and generate training and held-out queries from them.

    Queries come from attributes, which also give their judgments, or, without attributes, from the documents' words.
    They are generated first. If indexing is interrupted before all documents are in, the index and its queries stay
    unchanged.
    adopt: True takes over versions that an older searchloop made without a mark.
    Raises IndexingError, before it changes anything, if the index of this name on this cluster belongs to another home.
    """
    directory = app.home.index(name)
    with closing(app.engine()) as client:  # Before anything changes: the key may be read-only.
        require_rights(client, [name, f"{name}-*"], INDEX_PRIVILEGES)
    adopted: list[str] = []
    with folder_aside(directory.parent, f"{name}.corpus") as corpus:
        try:
            loaded = keep_documents(documents, corpus)
        except OSError as error:
            raise IndexingError(f"index '{name}': its documents in {directory}: {explain_os_error(error)}") from error
        with contextlib.closing(app.engine()) as client:
            if adopt:
                adopted = adopt_versions(client, name, installation=app.installation)
            claim_name(client, name, installation=app.installation)
        report("making queries", 0, 0)
        intents, kind = queries_of(loaded, app.settings.intents, report)
        with (
            contextlib.closing(app.engine()) as client,
            whole_folder(directory.intents, replace=True) as aside,
        ):
            write_intents(aside, intents)
            version: IndexVersion = build_index(
                client,
                name,
                loaded,
                report,
                installation=app.installation,
                directory=directory,
                total=len(loaded),
                layout=app.settings.index_layout,
            )
        unread = _unread(loaded)
    return IndexSummary(
        name=version.name,
        alias=version.alias,
        documents=version.documents,
        sha256=version.sha256,
        queries={split: len(queries) for split, queries in intents.queries.items()},
        kind=kind,
        unread=unread,
        adopted=tuple(adopted),
    )


def _unread(documents: Sequence[Document]) -> str:
    unread = unread_attributes(documents)
    if unread is None:
        return ""
    return (
        f"attributes of {unread.documents} documents were skipped or read only in part (the first, {unread.example!r}, "
        f"has {unread.found}): expected metadata.attributes to be an object whose values are texts, numbers, true or "
        "false, or lists of those"
    )


def queries_of(documents: Sequence[Document], settings: IntentSettings, report: Report) -> tuple[IntentSet, str]:
    """Return queries made from documents, and the name of their source: attributes, or the documents' words."""
    try:
        intents = make_intents(documents, settings)
    except CorpusError as error:  # An index is useful without them: users may have their own queries.
        report(str(error), 0, 0)
    else:
        if intents.queries["train"]:
            return intents, "attributes"
    return pseudo_queries(documents, settings), "documents"
