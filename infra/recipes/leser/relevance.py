"""The relevance model of an index: trained if there are judgments or intents to train on, opened where it is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from infra.app.home import IndexFolder
from infra.app.progress import Report
from infra.app.settings import Settings
from infra.recipes.leser.people import People, peoples_blocks, read_by
from search_env.catalogue.corpora import CorpusError, Query, Ranking, rank_by_score
from search_env.catalogue.term_matrices import Catalogue
from search_env.engine.index import kept_catalogue, load_manifest
from search_env.models.embeddings import Embedder, embed_documents
from search_env.models.hit_relevance import HitRelevance, KeptVectors
from search_env.models.judged_forest import shuffled
from search_env.models.people_alone import UNWANTED_MEDIAN
from search_env.models.relevance import CosineRelevance, GrownModel, NoisyRelevance, RelevanceModel
from search_env.models.relevance_files import load_gbdt
from search_env.models.relevance_sources import Block, is_alone
from search_env.models.relevance_training import train_gbdt
from search_env.models.relevance_versions import (
    keep_newest,
    keep_version,
    read_relevance_manifest,
    version_folder,
)
from search_env.models.training_pairs import PairMaker
from search_env.queries.intents import load_intents
from streams.errors import SettingsError

DOUBTS, RELEVANCE_MIN_MOST = 2.0, 0.5
"""With a model of people alone, a document counts from so many times the relevance of documents that few wanted."""


def train_relevance(
    folder: IndexFolder,
    settings: Settings,
    catalogue: Catalogue,
    *,
    people: People,
    report: Report,
    label: str = "",
) -> dict[str, Any]:
    """Train gradient-boosted trees on every source with a weight, keep them, and return the report of the training.

    label: keeps the version under this label beside the newest model, which stays. "": it becomes the newest.
    Raises CorpusError if no judgment is about a known query and a known document.
    """
    grown, told = grow_relevance(folder, settings, catalogue, people=people, report=report)
    name = keep_version(folder.relevance, grown, label=label)
    return {
        "version": name,
        "queries": grown.manifest.queries,
        "pairs": grown.manifest.pairs,
        **told,
        **grown.manifest.report,
    }


def grow_relevance(
    folder: IndexFolder,
    settings: Settings,
    catalogue: Catalogue,
    *,
    people: People,
    report: Report,
    shuffle_seed: int | None = None,
) -> tuple[GrownModel, dict[str, Any]]:
    """Return a trained model, and the size of what people said.

    shuffle_seed: puts all judgments in a random order, for a control.
    """
    sources = settings.relevance.sources
    embedder, embeddings = None, None
    if settings.gbdt.cosine:
        embedder = Embedder(settings.embedding)
        embeddings = embed_documents(catalogue.documents, embedder, folder.embeddings, report)
    pairs = PairMaker(catalogue, settings.gbdt, embeddings=embeddings, embedder=embedder)
    queries, qrels = load_intents(folder.intents, "train") if not is_alone(sources) else ([], {})
    labelled: list[Block] = []
    if sources.cross_encoder:
        asked = [query.text for query in sorted(queries, key=lambda each: each.id)[: sources.cross_encoder_queries]]
        labelled = pairs.labelled(asked, read_by(folder, settings, catalogue), sources.cross_encoder)
    said = peoples_blocks(folder, settings, catalogue, people, report)
    grown = train_gbdt(
        pairs,
        queries if qrels else [],
        qrels,
        corpus_sha256=load_manifest(folder).sha256,
        sources=sources,
        labelled=labelled,
        people=said.blocks if shuffle_seed is None else shuffled(said.blocks, seed=shuffle_seed),
        progress=report,
    )
    manifest = msgspec.structs.replace(grown.manifest, clicks=said.clicks)
    return grown._replace(manifest=manifest), said.told


def pinned(folder: IndexFolder, settings: Settings, *, began: Settings | None = None) -> Settings:
    """Return the settings with the version's name, and the least relevance that counts, as they mean them now.

    A later fit changes nothing then. With a model of people alone, documents count from `DOUBTS` times the median
    relevance of shown documents that few wanted. began: the settings with which a run began, which it keeps.
    Raises RelevanceError if the version does not exist, SettingsError if the settings name another one than the run
    began with.
    """
    wanted = settings.relevance.version
    kept = began.relevance.version if began is not None else ""
    if not wanted and not kept and not _has_trees(folder, settings):
        return settings
    if kept:
        name = kept
        if wanted and version_folder(folder.relevance, wanted) != version_folder(folder.relevance, kept):
            raise SettingsError(
                f"relevance.version: expected {kept}, with which the run began, got {wanted!r}. Leave it out to go on, "
                "or start a new run with --run NAME"
            )
    else:
        found = version_folder(folder.relevance, wanted)
        name = found.name if wanted and found != folder.relevance else keep_newest(folder.relevance)
    least = settings.leser.reward.relevance_min
    if began is not None:
        least = least or began.leser.reward.relevance_min
    elif not least:
        report = read_relevance_manifest(version_folder(folder.relevance, name)).report
        least = min(round(DOUBTS * report.get(UNWANTED_MEDIAN, 0.0), 4), RELEVANCE_MIN_MOST)
    reward = msgspec.structs.replace(settings.leser.reward, relevance_min=least)
    return msgspec.structs.replace(
        settings,
        relevance=msgspec.structs.replace(settings.relevance, version=name),
        leser=msgspec.structs.replace(settings.leser, reward=reward),
    )


def _has_trees(folder: IndexFolder, settings: Settings) -> bool:
    return settings.relevance.model != "cosine" and (folder.relevance / "manifest.json").is_file()


def open_relevance(folder: IndexFolder, settings: Settings, *, catalogue: Catalogue, report: Report) -> RelevanceModel:
    """Return the relevance model of an index; trees that the settings ask for are trained first if they are missing."""
    wanted = settings.relevance.model
    place = version_folder(folder.relevance, settings.relevance.version)
    trained = place / "manifest.json"
    has_intents = (folder.intents / "qrels.train.tsv").is_file()
    cosine = wanted == "cosine" or (wanted == "auto" and not trained.is_file() and not has_intents)
    if not cosine and not trained.is_file():
        train_relevance(folder, settings, catalogue, people=People(), report=report)
    embedder, vectors = None, None
    if cosine or settings.gbdt.cosine:
        embedder = Embedder(settings.embedding)
        embeddings = embed_documents(catalogue.documents, embedder, folder.embeddings, report)
        vectors = KeptVectors(catalogue, embeddings, embedder)

    model: RelevanceModel
    if cosine and vectors is not None and embedder is not None:
        cosines = CosineRelevance(catalogue, vectors.of(catalogue), embedder)
        model = HitRelevance(catalogue, cosines, lambda held: cosines.on(held, vectors.of(held)))
    else:
        trees = load_gbdt(place, catalogue, embeddings=vectors.of(catalogue) if vectors else None, embedder=embedder)
        model = HitRelevance(catalogue, trees, lambda held: trees.on(held, vectors.of(held) if vectors else None))
    noise_std = settings.relevance.noise_std
    return NoisyRelevance(model, noise_std=noise_std) if noise_std else model


def score_rankings(
    folder: IndexFolder,
    settings: Settings,
    rankings: Sequence[Mapping[str, Ranking]],
    *,
    queries: Sequence[Query],
    top: int,
    report: Report,
) -> dict[str, Ranking]:
    """Rank by the model's score: for each query, every document in the first `top` of any given ranking.

    rankings: each by query id. Raises CorpusError if a ranked query is not among the queries, or a document is not
    indexed.
    """
    texts = {query.id: query.text for query in queries}
    found: dict[str, dict[str, None]] = {}
    for ranking in rankings:
        for query, ranked in ranking.items():
            found.setdefault(query, {}).update(dict.fromkeys(ranked.ids[:top]))
    if strangers := sorted(set(found) - set(texts)):
        raise CorpusError(
            f"expected rankings of the {len(texts)} given queries, got one of {strangers[0]!r}"
            f"{f' and {len(strangers) - 1} others' if strangers[1:] else ''}. Give the queries that were searched"
        )
    catalogue = kept_catalogue(folder, report)
    model = open_relevance(folder, settings, catalogue=catalogue, report=report)
    report("scoring", 0, len(found))
    scores = model.score_many([(texts[query], list(ids)) for query, ids in found.items()])
    report("scoring", len(found), len(found))
    return {
        query: rank_by_score(list(ids), of.tolist()) for (query, ids), of in zip(found.items(), scores, strict=True)
    }
