"""Training of the gradient-boosted relevance model, on the catalogue's own structure and on what people say.

The base trees learn from the catalogue (see `training_pairs`); a small forest on top learns from judgments and clicks
(see `judged_forest`). Labels are grades scaled to [0, 1]; an attribute intent has grade 1 for each structural match,
and every other document counts as 0. A document without a human judgment trains nothing.

The output is calibrated afterwards (Platt, 1999) on held-out queries over whole BM25 lists, because sampling shifts the
base rate.

Only queries of the split `train` may be used here. The caller selects them, and `train_gbdt` holds out some by hash for
calibration and for the report.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from search_env.catalogue.corpora import Qrels, Query
from search_env.models.calibration import area_under_curve, calibration_error, platt, sigmoid
from search_env.models.features import FEATURES, FEATURES_VERSION
from search_env.models.judged_forest import SCALE_MIN, grow_forest, reread, tree_parameters
from search_env.models.people_alone import train_on_people
from search_env.models.relevance import GrownModel, RelevanceError, RelevanceManifest
from search_env.models.relevance_sources import Block, Floats, QueryBlock, SourceSettings, is_alone, weights_of
from search_env.models.training_pairs import PairMaker

Progress = Callable[[str, int, int], None]
HELD_OUT_SHARE = 0.15
QUERIES_MIN = 20


class _Pairs(NamedTuple):
    """Blocks to train on, and blocks of whole lists, held out. texts: the query of each list."""

    training: list[Block]
    lists: list[Block]
    texts: list[str]


def train_gbdt(
    pairs: PairMaker,
    queries: Sequence[Query],
    qrels: Qrels,
    *,
    corpus_sha256: str,
    sources: SourceSettings | None = None,
    labelled: Sequence[Block] = (),
    people: Sequence[QueryBlock] = (),
    progress: Progress | None = None,
) -> GrownModel:
    """Train, calibrate and evaluate a model, and return it; the same input always gives the same model, byte for byte.

    queries, qrels: structured matches; a document without a grade is known to be irrelevant. Without any, title queries
    alone train the base. labelled: more pairs for the base. people: judged and clicked pairs.
    If the catalogue's sources all have a weight of 0, people alone train the model (see `people_alone`).
    Raises RelevanceError if there are fewer than 20 queries to train the base on.
    """
    import lightgbm  # Here, because this module is imported for its settings, and lightgbm imports scikit-learn.

    report = progress or (lambda what, done, of: None)
    settings, sources = pairs.settings, sources or SourceSettings()
    if is_alone(sources):
        return train_on_people(pairs, people, corpus_sha256=corpus_sha256, sources=sources, progress=progress)
    made = _pairs(pairs, queries, qrels, sources, report)
    blocks = [*made.training, *labelled]
    features = np.concatenate([block.features for block in blocks])
    labels = np.concatenate([block.labels for block in blocks])
    report("growing trees", 0, settings.trees)
    booster, text = reread(
        lightgbm.train(
            tree_parameters(
                leaves=settings.leaves,
                learning_rate=settings.learning_rate,
                leaf_pairs_min=min(settings.leaf_documents_min, max(len(labels) // 100, 1)),
                seed=settings.seed,
            ),
            lightgbm.Dataset(
                features, labels, weight=weights_of(blocks), feature_name=list(FEATURES), free_raw_data=True
            ),
            num_boost_round=settings.trees,
            callbacks=[lambda state: report("growing trees", state.iteration + 1, settings.trees)],
        )
    )

    def raw_score(of: Floats) -> npt.NDArray[np.float64]:
        return np.asarray(booster.predict(of, raw_score=True, num_threads=1), dtype=np.float64)

    forest = grow_forest(people, made.training, raw_score, sources, seed=settings.seed) if people else None
    raw = [raw_score(block.features) for block in made.lists]
    if forest is not None:
        raw = [
            of + forest.added(query, block.features)
            for of, query, block in zip(raw, made.texts, made.lists, strict=True)
        ]
    truth = np.concatenate([block.labels for block in made.lists])
    fitted, offset = platt(np.concatenate(raw), truth)
    scale = max(fitted, SCALE_MIN)
    calibrated = sigmoid(scale * np.concatenate(raw) + offset)
    bm25 = [block.features[:, 4] for block in made.lists]
    measures = {
        "held_out_queries": float(len(made.lists)),
        "held_out_ndcg_10": _mean_ndcg(raw, made.lists),
        "held_out_bm25_ndcg_10": _mean_ndcg(bm25, made.lists),
        "held_out_auc": area_under_curve(np.concatenate(raw), truth > 0),
        "held_out_ece": calibration_error(calibrated, truth),
        "held_out_mean_relevance": float(truth.mean()),
    }
    manifest = RelevanceManifest(
        model_sha256=hashlib.sha256(text.encode()).hexdigest(),
        features=FEATURES,
        features_version=FEATURES_VERSION,
        scale=scale,
        offset=offset,
        cosine=settings.cosine,
        corpus_sha256=corpus_sha256,
        queries=len(blocks),
        pairs=len(labels),
        report=measures,
        folds=forest.folds if forest is not None else (),
        fold_seed=sources.fold_seed,
    )
    return GrownModel(booster, manifest, forest)


def _pairs(
    pairs: PairMaker, queries: Sequence[Query], qrels: Qrels, sources: SourceSettings, report: Progress
) -> _Pairs:
    settings, row_of = pairs.settings, pairs.catalogue.row_of
    matched = [query for query in queries if any(grade > 0 for grade in qrels.get(query.id, {}).values())]
    matched = sorted(matched, key=lambda query: _hash(query.id))[: settings.queries_max]
    if 0 < len(matched) < QUERIES_MIN:
        raise RelevanceError(
            f"expected at least {QUERIES_MIN} queries with a relevant document to train on, got {len(matched)}"
        )
    grade_max = max((grade for grades in qrels.values() for grade in grades.values()), default=1)
    held_out = max(int(HELD_OUT_SHARE * len(matched)), 4)
    asked, labels = [], []
    for position, query in enumerate(matched):
        grades = {row_of[d]: max(g, 0) for d, g in qrels[query.id].items() if d in row_of}
        rows = pairs.ranked(query, grades) if position < held_out else pairs.sampled(query, grades)
        asked.append((query.text, rows))
        labels.append(np.array([grades.get(row, 0) / grade_max for row in rows.tolist()], dtype=np.float32))
    report("computing features", 0, len(asked))
    blocks = [Block(features, of, sources.structured) for features, of in zip(pairs.blocks(asked), labels, strict=True)]
    report("computing features", len(asked), len(asked))
    lists, training = blocks[:held_out], blocks[held_out:] if sources.structured else []
    texts = [text for text, _ in asked[:held_out]]
    titles = pairs.title_blocks(sources.titles) if sources.titles or not matched else []
    if not matched:
        if len(titles) < QUERIES_MIN:
            raise RelevanceError(
                f"expected at least {QUERIES_MIN} queries of title words to train on, got {len(titles)}: the catalogue "
                'has neither attributes nor titles to learn from. Set relevance.model = "cosine"'
            )
        held_out = max(int(HELD_OUT_SHARE * len(titles)), 4)
        lists, texts = [each.block for each in titles[:held_out]], [each.query for each in titles[:held_out]]
        titles = [each._replace(block=each.block._replace(weight=1.0)) for each in titles[held_out:]]
    return _Pairs([*training, *(each.block for each in titles)], lists, texts)


def _mean_ndcg(scores: Sequence[npt.ArrayLike], lists: Sequence[Block]) -> float:
    return float(np.mean([_ndcg(of, block.labels) for of, block in zip(scores, lists, strict=True)]))


def _ndcg(scores: npt.ArrayLike, labels: Floats, depth: int = 10) -> float:
    order = np.argsort(-np.asarray(scores), kind="stable")[:depth]
    best = np.sort(labels)[::-1][:depth]
    discount = 1.0 / np.log2(np.arange(2, depth + 2))
    ideal = float(best @ discount[: len(best)])
    return float(labels[order] @ discount[: len(order)]) / ideal if ideal else 0.0


def _hash(text: str) -> str:
    return hashlib.sha256(f"relevance\t{text}".encode()).hexdigest()
