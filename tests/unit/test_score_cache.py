"""Scores that a relevance model keeps: the same as new ones, none computed twice, and bounded."""

from __future__ import annotations

from typing import Any

import numpy as np

from search_env.catalogue.generated import DemoSettings, demo_catalogue
from search_env.catalogue.term_matrices import Catalogue
from search_env.models.relevance import GbdtRelevance, GrownModel, RelevanceManifest, ScoreCache

MANIFEST = RelevanceManifest(
    model_sha256="0" * 64,
    features=(),
    features_version=0,
    scale=1.0,
    offset=0.0,
    cosine=False,
    corpus_sha256="",
    queries=0,
    pairs=0,
    report={},
)


class FakeBooster:
    """Adds up the features, and counts the documents that it is asked for."""

    def __init__(self) -> None:
        self.asked = 0

    def predict(self, features: Any, **_: object) -> Any:
        self.asked += len(features)
        return features.sum(axis=1) * 0.01


def test_kept_scores_equal_new_ones_and_no_pair_is_computed_again() -> None:
    catalogue = Catalogue(list(demo_catalogue(DemoSettings(products=300))))

    def model() -> tuple[GbdtRelevance, FakeBooster]:
        booster: Any = FakeBooster()
        return GbdtRelevance(catalogue, GrownModel(booster, MANIFEST)), booster

    kept, booster = model()
    draw, queries = np.random.default_rng(1), ["black shoes", "aldor jacket", "quiet fan"]
    for _ in range(20):
        pairs = [
            (queries[draw.integers(3)], [catalogue.ids[row] for row in draw.integers(300, size=40)]) for _ in range(4)
        ]
        new = [model()[0].score(query, ids) for query, ids in pairs]
        assert all(np.array_equal(one, other) for one, other in zip(kept.score_many(pairs), new, strict=True))
        before = booster.asked
        kept.score_many(pairs)
        assert booster.asked == before


def test_the_least_recently_used_query_is_dropped_first() -> None:
    cache = ScoreCache(bytes_max=12 * 50)
    rows, ones = np.arange(20), np.ones(20, dtype=np.float32)
    for name in ("first", "second"):
        cache.add(name, rows, ones)
    assert cache.of("first", np.array([3, 99]))[0] == 1
    cache.add("third", rows, ones)
    assert np.isnan(cache.of("second", rows)).all()
    assert not np.isnan(cache.of("first", rows)).any() and np.isnan(cache.of("first", np.array([99]))).all()
