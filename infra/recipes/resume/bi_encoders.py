"""Retriever versions of an index: their folder, the first version, adaptation, and search."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from infra.app.app import OpenEngine
from infra.app.home import IndexFolder
from learner.retriever import RetrieverSettings, StaticRetriever, adapt_retriever
from learner.retriever_versions import (
    RetrieverManifest,
    load_retriever,
    read_retriever_manifest,
    save_retriever,
    texts_sha256,
)
from search_env.catalogue.corpora import Query, Ranking
from search_env.engine.vectors import VectorSettings, build_vector_index, search_in_memory, search_vectors
from search_env.models.bi_encoder import RememberedVectors, StaticEncoder
from search_env.models.embeddings import model_directory
from search_env.resume.answered import answered_queries
from streams.errors import SettingsError
from streams.names import is_name


class VectorIndex(msgspec.Struct, frozen=True, kw_only=True):
    """The place of vectors in the engine, and how they are searched there.

    alias: each search points it to its own retriever version and texts. installation: the id of the home that owns the
    index. engine: it is not called with `vectors.search = "memory"`.
    """

    alias: str
    installation: str
    engine: OpenEngine
    settings: VectorSettings


def first_retriever(index: IndexFolder, settings: RetrieverSettings) -> RetrieverManifest:
    """Return the version that no texts have adapted. It is made if it is missing, and it is always the same."""
    base = model_directory()
    retriever = StaticRetriever(base, tokens_max=settings.tokens_max)
    manifest = RetrieverManifest(
        name="", parent="", turn=0, base_sha256=retriever.base_sha256, tokens_max=settings.tokens_max
    )
    return save_retriever(index.retrievers, retriever, manifest)


def open_encoder(index: IndexFolder, name: str, settings: RetrieverSettings) -> StaticEncoder:
    """Return the encoder of a retriever version; "" names the first one.

    Raises SettingsError if there is none of that name, CheckpointError if it is damaged.
    """
    folder = _folder_of(index, name or first_retriever(index, settings).name)
    manifest = read_retriever_manifest(folder)
    return StaticEncoder(folder, model_directory(), tokens_max=manifest.tokens_max)


def _folder_of(index: IndexFolder, name: str) -> Path:
    root = index.retrievers
    if not is_name(name) or not (root / name).is_dir():
        known = ", ".join(sorted(path.name for path in root.glob("r*-*"))) or "none"
        raise SettingsError(
            f"retriever: expected one of {known} of index {index.name!r}, got {name!r}. For another index: "
            "--retriever-of"
        )
    return root / name


def adapt_to_texts(
    index: IndexFolder,
    settings: RetrieverSettings,
    *,
    parent: str,
    texts: Mapping[str, str],
    held_out: Sequence[Query],
    turn: int,
    seed: int,
) -> RetrieverManifest:
    """Adapt a retriever version to the texts that stand for documents, and return the new version.

    It learns from training queries, without those that have a held-out text.
    """
    answered = answered_queries(index, held_out)
    relevant: dict[str, list[str]] = {}
    for document, queries in sorted(answered.by_document.items()):
        for query in queries:
            relevant.setdefault(query, []).append(document)
    retriever, before = load_retriever(_folder_of(index, parent), model_directory())
    losses = adapt_retriever(
        retriever, queries=answered.queries, relevant=relevant, texts=texts, settings=settings, seed=seed
    )
    manifest = RetrieverManifest(
        name="",
        parent=parent,
        turn=turn,
        base_sha256=before.base_sha256,
        tokens_max=before.tokens_max,
        texts_sha256=texts_sha256(texts),
        steps=len(losses),
        loss=sum(losses[-20:]) / len(losses[-20:]) if losses else None,
    )
    return save_retriever(index.retrievers, retriever, manifest)


def dense_search(
    index: IndexFolder,
    encoder: StaticEncoder,
    texts: Mapping[str, str],
    queries: Sequence[Query],
    *,
    top: int,
    indexed: VectorIndex | None,
) -> dict[str, Ranking]:
    """Return each query's nearest documents among the texts that stand for them, by query id.

    index: its folder remembers the documents' vectors. indexed: the texts are indexed anew there for this retriever
    version. For None, and with `vectors.search = "memory"`, this process compares all vectors and indexes nothing.
    """
    ids = sorted(texts)
    vectors = RememberedVectors(encoder, directory=index.vectors)
    documents = vectors.embed_documents([texts[key] for key in ids])
    vectors.save()
    asked = encoder.embed_queries([query.text for query in queries])
    if indexed is None or indexed.settings.search == "memory":
        rankings = search_in_memory(ids, documents, asked, size=top)
    else:
        settings = indexed.settings
        version = f"{encoder.name}-{texts_sha256(texts)[:8]}-{_kind(settings)}"
        with contextlib.closing(indexed.engine()) as client:
            name = build_vector_index(
                client, indexed.alias, version, ids, documents, settings, installation=indexed.installation
            )
            rankings = search_vectors(client, name, asked, size=top, settings=settings)
    return {query.id: ranking for query, ranking in zip(queries, rankings, strict=True)}


def _kind(settings: VectorSettings) -> str:
    shape = f"{settings.search} {settings.links} {settings.build_candidates}"
    return hashlib.sha256(shape.encode()).hexdigest()[:4]
