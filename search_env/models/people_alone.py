"""A relevance model that learns from people alone: clicks, or judgments, and nothing of the catalogue's structure.

The trees are those of the forest of people (see `judged_forest`), cross-fitted by query as there, but as many and as
large as the base's. The base itself is one constant. Features describe query and document by their words, and no
feature names a document, so the model scores documents that nobody has seen.

A list shows only what the search found. Documents that it never shows have no clicks, and trees that never saw them may
score them anyhow. Some random documents of the catalogue therefore count as not relevant for each query.

The calibration and the report come from the out-of-fold scores of the training queries themselves. The report also
holds the median relevance of shown documents whose label is below the mean, which few people wanted: a value as low as
that says nothing. LESER's reward counts only documents of at least twice that (`leser.reward.relevance_min`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from search_env.models.calibration import area_under_curve, calibration_error, platt, sigmoid
from search_env.models.features import FEATURES, FEATURES_VERSION
from search_env.models.judged_forest import SCALE_MIN, FoldManifest, JudgedForest, fold_of, reread, tree_parameters
from search_env.models.relevance import GrownModel, RelevanceError, RelevanceManifest
from search_env.models.relevance_sources import Block, Floats, QueryBlock, SourceSettings
from search_env.models.training_pairs import PairMaker

Progress = Callable[[str, int, int], None]
QUERIES_MIN = 20
UNWANTED_MEDIAN = "unwanted_median_relevance"
CALIBRATED_MAX = 50_000
LEAF_SHARE = 100  # A leaf has at least this part of the pairs, if that is less than the setting.


def train_on_people(
    pairs: PairMaker,
    people: Sequence[QueryBlock],
    *,
    corpus_sha256: str,
    sources: SourceSettings,
    progress: Progress | None = None,
) -> GrownModel:
    """Train, calibrate and evaluate a model, and return it; the same input always gives the same model, byte for byte.

    people: judged and clicked pairs.
    Raises RelevanceError if there are fewer than 20 queries, or if all labels are equal.
    """
    report = progress or (lambda what, done, of: None)
    queries = len({each.query for each in people})
    if queries < QUERIES_MIN:
        raise RelevanceError(
            f"expected clicks or judgments of at least {QUERIES_MIN} queries, since no other source has a weight "
            f"([relevance.sources]), got {queries}. Give --traffic RUN or --queries and --qrels"
        )
    labels = np.concatenate([each.block.labels for each in people])
    if labels.max() == labels.min():
        raise RelevanceError(f"expected labels that differ, got {len(labels)} pairs that are all {labels[0]:g}")
    base, base_text = _constant(float(labels.mean()))
    lists = _with_negatives(pairs, people, sources.click_negatives)
    boosters, folds = [], []
    for fold in range(sources.folds):
        report("growing trees", fold, sources.folds)
        others = [each for each in lists if fold_of(each.query, sources.folds, sources.fold_seed) != fold]
        booster, manifest = _grow(others, pairs)
        boosters.append(booster)
        folds.append(manifest)
    report("growing trees", sources.folds, sources.folds)
    forest = JudgedForest(boosters, folds, seed=sources.fold_seed)
    constant = float(base.predict(np.zeros((1, len(FEATURES))), raw_score=True)[0])
    raw = [constant + forest.added(each.query, each.block.features) for each in people]
    everything = np.concatenate(raw)
    weights = np.concatenate([np.broadcast_to(each.block.weight, len(each.block.labels)) for each in people]).astype(
        np.float64
    )
    # As often as they weigh: a click at a deep rank says more than no click there.
    drawn = np.random.default_rng(pairs.settings.seed).choice(
        len(labels), size=min(len(labels), CALIBRATED_MAX), p=weights / weights.sum()
    )
    fitted, offset = platt(everything[drawn], labels[drawn].astype(np.float64))
    scale = max(fitted, SCALE_MIN)
    likely = labels >= np.average(labels, weights=weights)
    measures = {
        "held_out_queries": float(queries),
        "held_out_auc": area_under_curve(everything[drawn], likely[drawn]),
        "held_out_ece": calibration_error(sigmoid(scale * everything[drawn] + offset), labels[drawn]),
        "held_out_mean_relevance": float(labels[drawn].mean()),
        UNWANTED_MEDIAN: float(np.median(sigmoid(scale * everything[~likely] + offset))) if not likely.all() else 0.0,
    }
    manifest = RelevanceManifest(
        model_sha256=hashlib.sha256(base_text.encode()).hexdigest(),
        features=FEATURES,
        features_version=FEATURES_VERSION,
        scale=scale,
        offset=offset,
        cosine=pairs.settings.cosine,
        corpus_sha256=corpus_sha256,
        queries=queries,
        pairs=len(labels),
        report=measures,
        folds=tuple(folds),
        fold_seed=sources.fold_seed,
    )
    return GrownModel(base, manifest, forest)


def _constant(label: float):  # type: ignore[no-untyped-def]
    """Return a tree of one leaf, as its text gives it, and the text."""
    import lightgbm

    features, labels = np.zeros((100, len(FEATURES)), dtype=np.float32), np.full(100, label, dtype=np.float32)
    parameters = {**tree_parameters(leaves=2, learning_rate=1.0, leaf_pairs_min=1, seed=0), "feature_pre_filter": False}
    data = lightgbm.Dataset(features, labels, feature_name=list(FEATURES))
    return reread(lightgbm.train(parameters, data, num_boost_round=1))


def _grow(blocks: Sequence[QueryBlock], pairs: PairMaker):  # type: ignore[no-untyped-def]
    import lightgbm

    settings = pairs.settings
    features, labels, weights = _together(blocks)
    booster, text = reread(
        lightgbm.train(
            tree_parameters(
                leaves=settings.leaves,
                learning_rate=settings.learning_rate,
                leaf_pairs_min=min(settings.leaf_documents_min, max(len(labels) // LEAF_SHARE, 1)),
                seed=settings.seed,
            )
            | {"boost_from_average": False},
            lightgbm.Dataset(features, labels, weight=weights, feature_name=list(FEATURES), free_raw_data=True),
            num_boost_round=settings.trees,
        )
    )
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    count = len({each.query for each in blocks})
    return booster, FoldManifest(sha256=sha256, scale=1.0, shift=0.0, queries=count, pairs=len(labels))


def _together(blocks: Sequence[QueryBlock]) -> tuple[Floats, Floats, Floats]:
    return (
        np.concatenate([each.block.features for each in blocks]),
        np.concatenate([each.block.labels for each in blocks]),
        np.concatenate([np.broadcast_to(each.block.weight, len(each.block.labels)) for each in blocks]),
    )


def _with_negatives(pairs: PairMaker, people: Sequence[QueryBlock], count: int) -> list[QueryBlock]:
    """Return the blocks, each with random documents as irrelevant ones, which weigh as its mean pair does."""
    if not count:
        return list(people)
    generator = np.random.default_rng(pairs.settings.seed)
    asked = [
        (each.query, np.unique(generator.integers(len(pairs.catalogue), size=count)).astype(np.int64))
        for each in people
    ]
    found = []
    for each, features in zip(people, pairs.blocks(asked), strict=True):
        weight = float(np.mean(each.block.weight))
        block = Block(
            np.concatenate([each.block.features, features]),
            np.concatenate([each.block.labels, np.zeros(len(features), dtype=np.float32)]),
            np.concatenate(
                [
                    np.broadcast_to(each.block.weight, len(each.block.labels)),
                    np.full(len(features), weight, dtype=np.float32),
                ]
            ),
        )
        found.append(each._replace(block=block))
    return found
