"""Training of the gradient-boosted relevance model, on judgments or on the catalogue's own structure.

Labels are grades scaled to [0, 1]; an attribute intent has grade 1 for each structural match. A document without a
judgment counts as 0 only if the labels are complete (intents are, by construction; pooled human judgments are not).
Negatives are hard ones: the top of BM25, documents that contain one of the requested values, and a few at random. The
output is calibrated afterwards (Platt, 1999) on held-out queries over whole BM25 lists, because sampling shifts the
base rate.

Intents alone teach that words in the title mean nothing, because BM25's top documents are negatives there. Some
training queries are therefore words of titles, graded by the field in which a document has them all (`TITLE_GRADES`).
This is a prior that fields matter, and it uses no judgment. On icecat's human judgments (judged documents only), it
raises nDCG@10 from .65 to .80; BM25 has .83.

Only queries of the split `train` may be used here. The caller selects them, and `train_gbdt` holds out some by hash for
calibration and for the report.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from search_env.catalogue.analysis import analyze, stem, surface_tokens
from search_env.catalogue.corpora import Qrels, Query
from search_env.catalogue.lexical import top_documents
from search_env.catalogue.term_matrices import Catalogue
from search_env.models.calibration import area_under_curve, calibration_error, platt, sigmoid
from search_env.models.embeddings import Embedder
from search_env.models.features import FEATURES, FEATURES_VERSION, FeatureMaker
from search_env.models.relevance import RelevanceError, RelevanceManifest, model_text
from search_env.queries.title_queries import consecutive, is_typed
from streams.descriptions import describe

if TYPE_CHECKING:
    import lightgbm

Floats = npt.NDArray[np.float32]
Progress = Callable[[str, int, int], None]
HELD_OUT_SHARE = 0.15
SCALE_MIN = 0.05  # Never flat or inverted: the order of the model must stay.
MONOTONE = {name: 1 for name in FEATURES if name.endswith(("bm25", "share", "coverage", "values", "cosine"))}
MONOTONE["values_lacked"] = -1
TITLE_GRADES = (1.0, 0.6, 0.4)  # for a document with every word in its title; in title or text; anywhere


class GbdtSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the trees and their training data."""

    # 150 trees at a learning rate of 0.1 are no better (nDCG@10 .966 and .963, AUC .995), and scoring takes twice as
    # long.
    trees: Annotated[
        int, msgspec.Meta(ge=1, le=5_000), describe("Number of trees. More trees take longer to score.")
    ] = 80
    leaves: Annotated[
        int,
        msgspec.Meta(ge=2, le=1_024),
        describe("Largest number of leaves of a tree. More leaves fit the training data more closely."),
    ] = 31
    learning_rate: Annotated[
        float,
        msgspec.Meta(gt=0, le=1),
        describe("Share of each tree's correction that is added. A smaller rate needs more trees."),
    ] = 0.15
    leaf_documents_min: Annotated[
        int,
        msgspec.Meta(ge=1),
        describe("Least number of training documents in a leaf. With little training data, it is at most 1 % of them."),
    ] = 50
    queries_max: Annotated[
        int, msgspec.Meta(ge=20), describe("Largest number of training queries, chosen by hash.")
    ] = 2_500
    positives_max: Annotated[
        int, msgspec.Meta(ge=1), describe("Largest number of relevant documents of one query.")
    ] = 30
    title_queries: Annotated[
        int,
        msgspec.Meta(ge=0),
        describe("Number of additional queries made of title words. They are added only if the labels are complete."),
    ] = 700
    lexical_negatives: Annotated[
        int, msgspec.Meta(ge=0), describe("Irrelevant documents of each query from the best of BM25.")
    ] = 40
    partial_negatives: Annotated[
        int, msgspec.Meta(ge=0), describe("Irrelevant documents of each query that have only one of its values.")
    ] = 20
    random_negatives: Annotated[
        int, msgspec.Meta(ge=0), describe("Irrelevant documents of each query from the whole catalogue.")
    ] = 10
    cosine: Annotated[
        bool,
        describe(
            "True adds the cosine of MiniLM embeddings to the features. Scoring then costs an embedding per text."
        ),
    ] = False
    seed: Annotated[int, msgspec.Meta(ge=0), describe("Seed of the trees and of the sampled documents.")] = 7


class _Block(NamedTuple):
    """The pairs of one query: [n, F] features, [n] labels."""

    features: Floats
    labels: Floats


def train_gbdt(
    catalogue: Catalogue,
    queries: Sequence[Query],
    qrels: Qrels,
    settings: GbdtSettings,
    *,
    corpus_sha256: str,
    complete: bool,
    embeddings: Floats | None = None,
    embedder: Embedder | None = None,
    progress: Progress | None = None,
) -> tuple[lightgbm.Booster, RelevanceManifest]:
    """Train, calibrate and evaluate a model, and return it; the same input always gives the same model, byte for byte.

    complete: True if a document without a grade is known to be irrelevant (as for intents).
    Raises RelevanceError with fewer than 20 judged queries.
    """
    import lightgbm  # Here, because this module is imported for its settings, and lightgbm imports scikit-learn.

    report = progress or (lambda what, done, of: None)
    judged = [query for query in queries if any(grade > 0 for grade in qrels.get(query.id, {}).values())]
    judged = sorted(judged, key=lambda query: _hash(query.id))[: settings.queries_max]
    if len(judged) < 20:
        raise RelevanceError(f"expected at least 20 queries with a relevant document to train on, got {len(judged)}")
    held_out = max(int(HELD_OUT_SHARE * len(judged)), 4)
    maker = FeatureMaker(catalogue)
    grade_max = max(grade for grades in qrels.values() for grade in grades.values())
    vectors = None
    if settings.cosine:
        if embeddings is None or embedder is None:
            raise RelevanceError("relevance.gbdt.cosine is on, but no embeddings were given")
        report("embedding queries", 0, len(judged))
        vectors = embedder.embed([query.text for query in judged])
    generator = np.random.default_rng(settings.seed)
    training: list[_Block] = []
    lists: list[_Block] = []
    for position, query in enumerate(judged):
        grades = {catalogue.row_of[d]: max(g, 0) for d, g in qrels[query.id].items() if d in catalogue.row_of}
        if position < held_out:
            rows = _ranked(catalogue, maker, query, grades, complete=complete)
        else:
            rows = _sampled(catalogue, maker, query, grades, settings, generator, complete=complete)
        cosine = None if vectors is None or embeddings is None else embeddings[rows] @ vectors[position]
        labels = np.array([grades.get(row, 0) / grade_max for row in rows.tolist()], dtype=np.float32)
        block = _Block(maker.features(query.text, rows, cosine), labels)
        (lists if position < held_out else training).append(block)
        if position % 100 == 0:
            report("computing features", position, len(judged))
    if complete:
        training += _title_blocks(catalogue, maker, settings, generator, embeddings, embedder)
    features = np.concatenate([block.features for block in training])
    labels = np.concatenate([block.labels for block in training])
    report("growing trees", 0, settings.trees)
    booster = lightgbm.train(
        {
            "objective": "cross_entropy",  # log loss for any label in [0, 1], so that grades need no threshold
            "num_leaves": settings.leaves,
            "learning_rate": settings.learning_rate,
            "min_data_in_leaf": min(settings.leaf_documents_min, max(len(labels) // 100, 1)),
            "feature_fraction": 0.8,
            "num_threads": 1,
            "deterministic": True,
            "force_row_wise": True,
            # A larger overlap never lowers relevance: trees grown on hard negatives would count it against a document.
            "monotone_constraints": [MONOTONE.get(name, 0) for name in FEATURES],
            "seed": settings.seed,
            "verbosity": -1,
        },
        lightgbm.Dataset(features, labels, feature_name=list(FEATURES), free_raw_data=True),
        num_boost_round=settings.trees,
        callbacks=[lambda state: report("growing trees", state.iteration + 1, settings.trees)],
    )
    # A booster in memory has float64 thresholds, and its text rounds them: evaluate the model that will be loaded.
    booster = lightgbm.Booster(model_str=model_text(booster))
    raw = [np.asarray(booster.predict(block.features, raw_score=True, num_threads=1)) for block in lists]
    truth = np.concatenate([block.labels for block in lists])
    fitted, offset = platt(np.concatenate(raw), truth)
    scale = max(fitted, SCALE_MIN)
    calibrated = sigmoid(scale * np.concatenate(raw) + offset)
    measures = {
        "held_out_queries": float(len(lists)),
        "held_out_ndcg_10": float(np.mean([_ndcg(s, block.labels) for s, block in zip(raw, lists, strict=True)])),
        "held_out_bm25_ndcg_10": float(np.mean([_ndcg(block.features[:, 4], block.labels) for block in lists])),
        "held_out_auc": area_under_curve(np.concatenate(raw), truth > 0),
        "held_out_ece": calibration_error(calibrated, truth),
        "held_out_mean_relevance": float(truth.mean()),
    }
    manifest = RelevanceManifest(
        model_sha256=hashlib.sha256(model_text(booster).encode()).hexdigest(),
        features=FEATURES,
        features_version=FEATURES_VERSION,
        scale=scale,
        offset=offset,
        cosine=settings.cosine,
        corpus_sha256=corpus_sha256,
        queries=len(training),
        pairs=len(labels),
        report=measures,
    )
    return booster, manifest


def _ranked(
    catalogue: Catalogue, maker: FeatureMaker, query: Query, grades: dict[int, int], *, complete: bool
) -> npt.NDArray[np.int64]:
    """Return the documents that a search may find: BM25's top 100 and all relevant ones; if incomplete, the judged."""
    if not complete:
        return np.array(sorted(grades), dtype=np.int64)
    return np.array(sorted({*_lexical(catalogue, query, 100), *(row for row, grade in grades.items() if grade > 0)}))


def _sampled(
    catalogue: Catalogue,
    maker: FeatureMaker,
    query: Query,
    grades: dict[int, int],
    settings: GbdtSettings,
    generator: np.random.Generator,
    *,
    complete: bool,
) -> npt.NDArray[np.int64]:
    if not complete:
        return np.array(sorted(grades), dtype=np.int64)
    positives = sorted(row for row, grade in grades.items() if grade > 0)
    if len(positives) > settings.positives_max:
        positives = generator.choice(positives, settings.positives_max, replace=False).tolist()
    rows = set(_lexical(catalogue, query, settings.lexical_negatives))
    terms = np.array(catalogue.vocabulary.known(analyze(query.text)), dtype=np.int64)
    holders = catalogue.value_documents
    partial: set[int] = set()
    for value in maker.named_values(terms):
        partial.update(holders.indices[holders.indptr[value] : holders.indptr[value + 1]].tolist())
    partial -= {row for row, grade in grades.items() if grade > 0}
    if partial and settings.partial_negatives:
        count = min(settings.partial_negatives, len(partial))
        rows.update(generator.choice(sorted(partial), count, replace=False).tolist())
    rows.update(generator.integers(len(catalogue), size=settings.random_negatives).tolist())
    kept = {row for row in rows if grades.get(row, 0) == 0}
    return np.array(sorted(kept | set(positives)), dtype=np.int64)


def _title_blocks(
    catalogue: Catalogue,
    maker: FeatureMaker,
    settings: GbdtSettings,
    generator: np.random.Generator,
    embeddings: Floats | None,
    embedder: Embedder | None,
) -> list[_Block]:
    """Return blocks of queries of one to three consecutive title words, graded by the field with all the words."""
    frequencies = catalogue.contents.frequencies
    rows_of: list[tuple[str, npt.NDArray[np.int64]]] = []
    for position in generator.integers(len(catalogue), size=settings.title_queries).tolist():
        words = []
        for word in surface_tokens(catalogue.documents[position].title):
            number = catalogue.vocabulary.number_of.get(stem(word), len(frequencies))
            if number < len(frequencies) and is_typed(word, int(frequencies[number]), len(catalogue)):
                words.append(word)
        if not words:
            continue
        text = " ".join(consecutive(words, generator))
        terms = catalogue.vocabulary.known(analyze(text))
        best = top_documents(catalogue.contents.bm25_scores(terms), catalogue.ids, count=200)
        rows = set(generator.choice(best, min(40, len(best)), replace=False).tolist()) if best else set()
        rows.update(top_documents(catalogue.attributes.bm25_scores(terms), catalogue.ids, count=100)[::5])
        rows.update(generator.integers(len(catalogue), size=settings.random_negatives).tolist())
        rows_of.append((text, np.array(sorted(rows), dtype=np.int64)))
    vectors = embedder.embed([text for text, _ in rows_of]) if settings.cosine and embedder is not None else None
    blocks = []
    title, contents, anywhere = (FEATURES.index(name) for name in ("title_share", "contents_share", "any_share"))
    for number, (text, at) in enumerate(rows_of):
        cosine = None if vectors is None or embeddings is None else embeddings[at] @ vectors[number]
        features = maker.features(text, at, cosine)
        whole = [features[:, column] >= 1 for column in (title, contents, anywhere)]
        blocks.append(_Block(features, np.select(whole, TITLE_GRADES, 0.0).astype(np.float32)))
    return blocks


def _lexical(catalogue: Catalogue, query: Query, count: int) -> list[int]:
    terms = catalogue.vocabulary.known(analyze(query.text))
    return top_documents(catalogue.contents.bm25_scores(terms), catalogue.ids, count=count)


def _ndcg(scores: npt.ArrayLike, labels: Floats, depth: int = 10) -> float:
    order = np.argsort(-np.asarray(scores), kind="stable")[:depth]
    best = np.sort(labels)[::-1][:depth]
    discount = 1.0 / np.log2(np.arange(2, depth + 2))
    ideal = float(best @ discount[: len(best)])
    return float(labels[order] @ discount[: len(order)]) / ideal if ideal else 0.0


def _hash(text: str) -> str:
    return hashlib.sha256(f"relevance\t{text}".encode()).hexdigest()
