"""Training pairs from what people say about documents, in judgments and clicks, and from a cross-encoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from infra.app.home import IndexFolder
from infra.app.progress import Report
from infra.app.settings import Settings
from infra.recipes.leser.click_log import ClickedLog, of_some_clients
from infra.recipes.recipe import Judged
from search_env.catalogue.corpora import check_qrels
from search_env.catalogue.term_matrices import Catalogue
from search_env.models.click_labels import click_labels
from search_env.models.clicked_lists import ClientBounds
from search_env.models.embeddings import Embedder, embed_documents
from search_env.models.hit_relevance import KeptVectors
from search_env.models.relevance import ClickFit, RelevanceError
from search_env.models.relevance_sources import Block, QueryBlock, SourceSettings, is_alone
from search_env.models.training_pairs import PairMaker

Labels = Mapping[str, Mapping[str, tuple[float, float]]]
"""Labels of clicks: {query: {document: (label, confidence)}}."""

QUERIES_MIN = 20


class People(NamedTuple):
    """The sayings of people about documents: judged queries, and the log of what searches showed, with their clicks."""

    judged: Judged | None = None
    log: ClickedLog | None = None


class Said(NamedTuple):
    """The sayings of people, as pairs. told: numbers for the report of the training. clicks: None without clicks."""

    blocks: list[QueryBlock]
    told: dict[str, Any]
    clicks: ClickFit | None = None


def peoples_blocks(
    folder: IndexFolder, settings: Settings, catalogue: Catalogue, people: People, report: Report
) -> Said:
    """Return the pairs that people judged or clicked.

    Documents that a sample of an attached index lacks are read from the engine.
    Raises CorpusError if all judgments are unknown, RelevanceError if fewer than 20 judged queries have a relevant
    document, or if nothing but clicks shall train the model and fewer than 20 queries were clicked.
    """
    sources = settings.relevance.sources
    judged = _judged(people, weight=sources.judgments)
    fit, labels = _clicked(people.log, sources) if people.log is not None else (None, {})
    told = _numbers(fit)
    if fit is not None and not judged and len(labels) < QUERIES_MIN:
        if is_alone(sources):
            raise RelevanceError(
                f"expected clicks of at least {QUERIES_MIN} queries to train on clicks alone, got {len(labels)} of "
                f"{fit.lists} searches in run {fit.run!r}. Collect more, or give another source a weight "
                "([relevance.sources])"
            )
        report(f"leaving out the clicks: expected at least {QUERIES_MIN} clicked queries, got {len(labels)}", 0, 0)
        return Said([], told)
    if not judged and not labels:
        return Said([], told)
    documents = {name for _, grades in judged for name in grades} | {n for of in labels.values() for n in of}
    held = _holding(catalogue, sorted(documents))
    if people.judged is not None and judged:
        queries, qrels = people.judged
        unknown = check_qrels(
            qrels,
            query_ids=(query.id for query in queries),
            document_ids=held.ids,
            source=f"the judgments for index {folder.name!r}",
        )
        if unknown.judgments:
            report(f"leaving out {unknown.judgments} judgments of unknown ids: {', '.join(unknown.examples)}", 0, 0)
    embeddings, embedder = None, None
    if settings.gbdt.cosine:
        embedder = Embedder(settings.embedding)
        vectors = KeptVectors(
            catalogue, embed_documents(catalogue.documents, embedder, folder.embeddings, report), embedder
        )
        embeddings = vectors.of(held)
    pairs = PairMaker(held, settings.gbdt, embeddings=embeddings, embedder=embedder)
    grade_max = max((grade for _, grades in judged for grade in grades.values()), default=1)
    blocks = []
    for text, grades in judged:
        graded = {name: (max(grade, 0) / grade_max, sources.judgments) for name, grade in grades.items()}
        blocks += _block(pairs, text, graded)
    for text, of in labels.items():
        blocks += _block(pairs, text, {name: (label, sources.clicks * sure) for name, (label, sure) in of.items()})
    if judged:
        told |= {"judged_queries": len(judged), "judgments": sum(len(grades) for _, grades in judged)}
    return Said(blocks, told, fit)


def read_by(folder: IndexFolder, settings: Settings, catalogue: Catalogue) -> Callable[..., npt.NDArray[np.float64]]:
    """Return the function that labels documents by the index's cross-encoder, which reads their titles.

    Raises CrossEncoderError if the index has no cross-encoder.
    """
    from search_env.models.crossencoder import ReadTexts, load_cross_encoder  # Imports torch.

    encoder = load_cross_encoder(folder.cross_encoders, settings.cross_encoder)

    def labels(query: str, ids: Sequence[str]) -> npt.NDArray[np.float64]:
        titles = [catalogue.documents[catalogue.row_of[name]].title for name in ids]
        return encoder.relevance([ReadTexts(query, title, "") for title in titles])

    return labels


def _clicked(log: ClickedLog, sources: SourceSettings) -> tuple[ClickFit, Labels]:
    """Return the description of a log's clicks, and its labels; none if clicks have no weight."""
    lists = of_some_clients(log.lists, sources.click_clients) if sources.clicks else ()
    bounds = ClientBounds(sources.click_pair_max, sources.click_lists_max)
    found = click_labels(
        lists,
        exponent=sources.click_position_exponent,
        model=sources.click_model,
        bounds=bounds,
        alone=is_alone(sources),
    )
    told = found.told
    fit = ClickFit(
        run=log.run,
        window=log.window,
        model=sources.click_model,
        theta=tuple(round(float(each), 6) for each in found.theta),
        estimated=found.estimated,
        pairs_moved=found.pairs_moved,
        clients_share=sources.click_clients,
        clients=told.clients,
        nameless=told.nameless,
        lists=told.lists,
        bots=log.bots,
        clicks=told.clicks,
        queries=len(found.labels),
        pairs=sum(map(len, found.labels.values())),
        pair_max=bounds.pair_max,
        lists_max=bounds.lists_max,
        bounded=told.bounded,
        weight=round(told.weight, 3),
        largest_share=told.largest_share,
    )
    return fit, found.labels


def _numbers(fit: ClickFit | None) -> dict[str, Any]:
    if fit is None:
        return {}
    theta = "estimated" if fit.estimated else "by the table"
    return {
        "shown_lists": fit.lists,
        "clicked_queries": fit.queries,
        "clicked_pairs": fit.pairs,
        "positions": "as shown" if fit.model == "none" else f"{fit.model}, {theta}",
        "pairs_at_several_ranks": fit.pairs_moved,
        "clients": fit.clients,
        "bounded_lists": fit.bounded,
        "bots": fit.bots,
    }


def _judged(people: People, *, weight: float) -> list[tuple[str, Mapping[str, int]]]:
    if people.judged is None or not weight:
        return []
    queries, qrels = people.judged
    relevant = sum(any(grade > 0 for grade in qrels.get(query.id, {}).values()) for query in queries)
    if relevant < QUERIES_MIN:
        raise RelevanceError(
            f"expected at least {QUERIES_MIN} judged queries with a relevant document to train on, got {relevant}. "
            "Judge more queries, or leave --queries and --qrels out"
        )
    return [(query.text, qrels[query.id]) for query in queries if query.id in qrels]


def _holding(catalogue: Catalogue, ids: Sequence[str]) -> Catalogue:
    """Return a catalogue that holds those of the documents that exist."""
    held = catalogue.holding(ids)
    if held is catalogue:
        return catalogue
    known = [each.id for each in held.documents if each.title or each.text]  # A document that is gone has neither.
    return catalogue.holding(known)


def _block(pairs: PairMaker, query: str, labels: Mapping[str, tuple[float, float]]) -> list[QueryBlock]:
    """Return the block of a query's documents that the catalogue holds, if it holds any. labels: (label, weight)."""
    row_of = pairs.catalogue.row_of
    known = sorted((row_of[name], *of) for name, of in labels.items() if name in row_of)
    if not known:
        return []
    (features,) = pairs.blocks([(query, np.array([row for row, _, _ in known], dtype=np.int64))])
    return [
        QueryBlock(
            query,
            Block(
                features,
                np.array([label for _, label, _ in known], dtype=np.float32),
                np.array([weight for _, _, weight in known], dtype=np.float32),
            ),
        )
    ]
