"""What people say about documents, judgments and clicks, and what a cross-encoder says, as training pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from infra.app.home import Home, IndexFolder
from infra.app.progress import Report
from infra.app.settings import Settings
from infra.recipes.recipe import Judged
from search_env.catalogue.corpora import check_qrels
from search_env.catalogue.term_matrices import Catalogue
from search_env.models.click_labels import ShownList, click_labels
from search_env.models.embeddings import Embedder, embed_documents
from search_env.models.hit_relevance import KeptVectors
from search_env.models.relevance import RelevanceError
from search_env.models.relevance_sources import Block, QueryBlock
from search_env.models.training_pairs import PairMaker
from storage.ledger import LEDGER
from storage.log import open_log
from streams.errors import SettingsError

QUERIES_MIN = 20
CLICK_KINDS = ("click", "add_to_cart", "purchase")

_OUTCOMES = "SELECT query, shown, actions FROM trusted_outcomes"
_FEEDBACK = """
    SELECT query, shown, actions FROM first_feedback
    WHERE feedback_id NOT IN (SELECT impression_id FROM first_impressions)
"""


class People(NamedTuple):
    """The sayings of people about documents: judged queries, and lists that searches showed, with their clicks."""

    judged: Judged | None = None
    lists: Sequence[ShownList] = ()


def shown_lists(home: Home, traffic: str) -> list[ShownList]:
    """Return what the searches of a run of live traffic showed, with the clicks that are final.

    A click, a cart and a purchase count once for each search and document. Impressions of bots are left out.
    Raises SettingsError without any list.
    """
    folder = home.existing_run(traffic)
    if not (folder / LEDGER).exists():
        raise SettingsError(
            f"--traffic: run {traffic!r} has stored no traffic yet. Run: searchloop listen --run {traffic} --until-read"
        )
    with open_log(folder) as log:
        rows = [*log.rows(_OUTCOMES), *log.rows(_FEEDBACK)]  # Their actions have different columns.
    lists = [
        ShownList(
            query=row["query"],
            shown=[(each["document_id"], each["rank"]) for each in row["shown"] or ()],
            clicked=frozenset(each["document_id"] for each in row["actions"] or () if each["kind"] in CLICK_KINDS),
        )
        for row in rows
        if row["query"]
    ]
    if not lists:
        raise SettingsError(
            f"--traffic: expected final outcomes of searches in run {traffic!r}, got none. They are final "
            "join.window_seconds after the search"
        )
    return lists


def peoples_blocks(
    folder: IndexFolder, settings: Settings, catalogue: Catalogue, people: People, report: Report
) -> tuple[list[QueryBlock], dict[str, Any]]:
    """Return the pairs that people judged or clicked, and their numbers for the report of the training.

    Documents that a sample of an attached index lacks are read from the engine.
    Raises CorpusError if all judgments are unknown, RelevanceError if fewer than 20 judged queries have a relevant
    document.
    """
    sources = settings.relevance.sources
    judged = _judged(people, weight=sources.judgments)
    clicks = click_labels(people.lists if sources.clicks else (), exponent=sources.click_position_exponent)
    told: dict[str, Any] = {}
    if people.lists:
        told = {
            "shown_lists": len(people.lists),
            "clicked_queries": len(clicks.labels),
            "clicked_pairs": sum(map(len, clicks.labels.values())),
            "positions": "estimated" if clicks.estimated else f"rank^-{sources.click_position_exponent:g}",
            "pairs_at_several_ranks": clicks.pairs_moved,
        }
        if not judged and len(clicks.labels) < QUERIES_MIN:
            report(
                f"leaving out the clicks: expected at least {QUERIES_MIN} clicked queries, got {len(clicks.labels)}",
                0,
                0,
            )
            return [], told
    if not judged and not clicks.labels:
        return [], {}
    documents = {name for _, grades in judged for name in grades} | {n for of in clicks.labels.values() for n in of}
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
        labels = {name: (max(grade, 0) / grade_max, sources.judgments) for name, grade in grades.items()}
        blocks += _block(pairs, text, labels)
    for text, of in clicks.labels.items():
        blocks += _block(pairs, text, {name: (label, sources.clicks * sure) for name, (label, sure) in of.items()})
    if judged:
        told |= {"judged_queries": len(judged), "judgments": sum(len(grades) for _, grades in judged)}
    return blocks, told


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
