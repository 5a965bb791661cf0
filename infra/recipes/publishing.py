"""Publishing summaries: a policy version's summary of every product, as a field of a new version of the index."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from infra.app.home import SETTINGS_FILE, IndexFolder, read_settings_file
from infra.app.progress import Report
from infra.recipes.recipe import CatalogueTexts
from search_env.engine.index import IndexVersion, Summaries, build_index, kept_catalogue
from search_env.engine.layout import ONE_SHARD, IndexLayout

if TYPE_CHECKING:
    from elasticsearch import Elasticsearch


class BegunOn(msgspec.Struct, frozen=True, kw_only=True):
    """The index version that a run was begun on: the only part of its settings that is read here."""

    index_version: str


def publish_summaries(
    client: Elasticsearch,
    index: IndexFolder,
    texts: CatalogueTexts,
    *,
    installation: str,
    runs: Path,
    report: Report,
    layout: IndexLayout = ONE_SHARD,
) -> IndexVersion:
    """Index all documents again with these summaries, move the alias, and return the version.

    The documents are those of the current index. installation: the id of the home that owns the index. runs: the home's
    runs; a version that one of them was begun on stays, wherever the alias points.
    """
    documents = kept_catalogue(index, report).documents
    return build_index(
        client,
        index.name,
        documents,
        report,
        installation=installation,
        directory=index,
        total=len(documents),
        summaries=Summaries(policy=texts.policy, by_document=texts.by_document),
        keep=versions_in_use(runs),
        layout=layout,
    )


def versions_in_use(runs: Path) -> set[str]:
    """Return the index versions that these runs were begun on."""
    return {read_settings_file(path.parent, BegunOn).index_version for path in runs.glob(f"*/{SETTINGS_FILE}")}
