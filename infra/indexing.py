"""From a corpus file to an index that can be learned on: documents behind an alias, and queries made from them."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from infra.context import App
from infra.progress import Report
from search_env.corpora import Document
from search_env.index import IndexVersion, build_index, load_documents
from search_env.intents import make_intents, pseudo_queries, write_intents


class IndexSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What was made: the index version, and how many queries of each split; kind says what those were made from."""

    name: str
    alias: str
    documents: int
    sha256: str
    queries: dict[str, int]
    kind: str


def index_corpus(app: App, *, name: str, documents: Iterable[Document], report: Report) -> IndexSummary:
    """Load documents into a new version of an index, and make training and held-out queries from them.

    Queries come from attributes (with judgments, by structure) or, without attributes, from the documents' own words.
    """
    directory = app.home.index(name)
    client = app.engine()
    try:
        version: IndexVersion = build_index(client, name, documents, report, directory=directory)
    finally:
        client.close()
    loaded = load_documents(directory)
    report("making queries", 0, 0)
    intents, kind = make_intents(loaded, app.settings.intents), "attributes"
    if not intents.queries["train"]:
        intents, kind = pseudo_queries(loaded, app.settings.intents), "documents"
    write_intents(directory / "intents", intents)
    return IndexSummary(
        name=version.name,
        alias=version.alias,
        documents=version.documents,
        sha256=version.sha256,
        queries={split: len(queries) for split, queries in intents.queries.items()},
        kind=kind,
    )
