"""The forest of judgments and clicks: cross-fitted by query, and silent where judgments say nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from search_env.catalogue.corpora import Document, Query
from search_env.catalogue.term_matrices import Catalogue
from search_env.models.features import FEATURES
from search_env.models.judged_forest import JudgedForest, fold_of, grow_forest, shuffled
from search_env.models.relevance import GbdtRelevance
from search_env.models.relevance_files import load_gbdt, save_gbdt
from search_env.models.relevance_sources import Block, QueryBlock, SourceSettings
from search_env.models.relevance_training import train_gbdt
from search_env.models.training_pairs import GbdtSettings, PairMaker

SETTINGS = SourceSettings(folds=4)
COSINE, BM25 = FEATURES.index("cosine"), FEATURES.index("title_bm25")


def raw_score(features: np.ndarray) -> np.ndarray:
    """A base model that knows title_bm25 alone."""
    return features[:, BM25].astype(np.float64)


def people(queries: int = 60, documents: int = 30, seed: int = 0) -> list[QueryBlock]:
    """People care for the feature `cosine`, which the base does not know."""
    random = np.random.default_rng(seed)
    blocks = []
    for number in range(queries):
        features = np.zeros((documents, len(FEATURES)), dtype=np.float32)
        features[:, COSINE], features[:, BM25] = random.random((2, documents))
        labels = (features[:, COSINE] > 0.5).astype(np.float32)
        blocks.append(QueryBlock(f"query number{number}", Block(features, labels)))
    return blocks


def grow(blocks: list[QueryBlock], settings: SourceSettings = SETTINGS) -> JudgedForest:
    forest = grow_forest(blocks, (), raw_score, settings, seed=7)
    assert forest is not None
    return forest


def test_a_fold_is_a_function_of_the_words_in_any_order_and_form() -> None:
    folds = [fold_of(f"query number{n}", 4, 0) for n in range(200)]
    assert set(folds) == {0, 1, 2, 3}
    assert fold_of("Red mugs", 4, 0) == fold_of("mug red", 4, 0)
    assert folds != [fold_of(f"query number{n}", 4, 1) for n in range(200)]


def test_a_querys_own_judgments_do_not_change_its_score() -> None:
    blocks = people()
    mine = blocks[0].query
    turned = [
        each._replace(block=each.block._replace(labels=1 - each.block.labels)) if each.query == mine else each
        for each in blocks
    ]
    before, after = grow(blocks), grow(turned)
    own = [each for each in blocks if fold_of(each.query, 4, 0) == fold_of(mine, 4, 0)]
    others = [each for each in blocks if each not in own]
    for each in own:
        assert np.array_equal(
            before.added(each.query, each.block.features), after.added(each.query, each.block.features)
        )
    assert any(
        not np.array_equal(before.added(each.query, each.block.features), after.added(each.query, each.block.features))
        for each in others
    )


def test_judgments_teach_what_the_base_does_not_know() -> None:
    blocks = people()
    forest = grow(blocks)
    features = blocks[0].block.features
    total = raw_score(features) + forest.added("a new query", features)
    assert (
        np.corrcoef(total, blocks[0].block.labels)[0, 1]
        > 0.8
        > np.corrcoef(raw_score(features), features[:, COSINE])[0, 1]
    )


def test_shuffled_judgments_keep_every_label_and_teach_nothing() -> None:
    blocks = people()
    control = shuffled(blocks, seed=3)
    assert [each.query for each in control] == [each.query for each in blocks]
    assert sum(float(each.block.labels.sum()) for each in control) == sum(float(e.block.labels.sum()) for e in blocks)
    features = np.concatenate([each.block.features for each in blocks])

    def spread(forest: JudgedForest) -> float:
        return float(np.mean([np.std(each.predict(features, raw_score=True)) for each in forest.boosters]))

    assert spread(grow(control)) < 0.25 * spread(grow(blocks))


def test_pairs_of_the_catalogue_keep_the_base_as_it_is_there() -> None:
    blocks, random = people(), np.random.default_rng(5)
    features = np.zeros((2_000, len(FEATURES)), dtype=np.float32)
    features[:, COSINE], features[:, BM25] = random.random((2, 2_000))
    features[:, FEATURES.index("query_terms")] = (
        9  # Queries of the catalogue are long, and `cosine` says nothing there.
    )
    labels = (raw_score(features) > 0.5).astype(np.float32)
    with_catalogue = grow_forest(blocks, [Block(features, labels)], raw_score, SETTINGS, seed=7)
    assert with_catalogue is not None

    def change(forest: JudgedForest) -> float:
        added = forest.added("a new query", features)
        return abs(float(np.corrcoef(added, features[:, COSINE])[0, 1]))

    assert change(with_catalogue) < change(grow(blocks))


def test_labels_that_are_all_equal_grow_no_forest() -> None:
    blocks = [each._replace(block=each.block._replace(labels=np.ones_like(each.block.labels))) for each in people()]
    assert grow_forest(blocks, (), raw_score, SETTINGS, seed=7) is None
    assert grow_forest([], (), raw_score, SETTINGS, seed=7) is None


@pytest.fixture(scope="module")
def shop() -> Catalogue:
    colours = ["red", "green", "blue", "black", "white", "grey", "pink", "cyan"]
    kinds = ["mug", "lamp", "chair", "table", "shelf"]
    return Catalogue(
        [
            Document(
                id=f"d{n}",
                title=f"{colours[n % 8]} {kinds[n % 5]} model{n}",
                text="",
                metadata={"attributes": {"material": ["steel", "oak", "glass"][(n // 8) % 3]}},
            )
            for n in range(480)
        ]
    )


def test_a_model_with_a_forest_is_saved_and_loaded_whole(tmp_path: Path, shop: Catalogue) -> None:
    pairs = PairMaker(shop, GbdtSettings(trees=10, leaves=7, title_queries=200))
    asked = [(f"{colour} {kind}", colour) for colour in ("red", "green", "blue", "black") for kind in ("mug", "lamp")]
    said = [
        QueryBlock(
            text,
            Block(
                pairs.maker.features(text, range(60)),
                np.array([colour in d.title for d in shop.documents[:60]], dtype=np.float32),
            ),
        )
        for text, colour in asked
    ]
    grown = train_gbdt(pairs, [], {}, corpus_sha256="c", people=said, sources=SourceSettings(folds=2))
    model = GbdtRelevance(shop, grown)
    save_gbdt(tmp_path, grown)
    loaded = load_gbdt(tmp_path, shop)
    assert loaded.name == model.name != GbdtRelevance(shop, grown._replace(manifest=_plain(grown))).name
    assert loaded.score("red mug", shop.ids).tolist() == model.score("red mug", shop.ids).tolist()
    without = GbdtRelevance(shop, grown._replace(forest=None))
    assert loaded.score("red mug", shop.ids).tolist() != without.score("red mug", shop.ids).tolist()


def _plain(grown):  # type: ignore[no-untyped-def]
    import msgspec

    return msgspec.structs.replace(grown.manifest, folds=())


def test_a_weight_of_0_leaves_a_source_out_and_weights_of_1_change_nothing(shop: Catalogue) -> None:
    queries = [
        Query(id=f"q{n}", text=f"{c} {m}")
        for n, (c, m) in enumerate(
            (c, m)
            for c in ("red", "green", "blue", "black")
            for m in ("steel", "oak", "glass", "steel mug", "oak lamp", "red")
        )
    ]
    qrels = {
        q.id: {d.id: 1 for d in shop.documents if q.text.split()[0] in d.title and int(d.id[1:]) % 3 == 0}
        for q in queries
    }

    def digest(sources: SourceSettings) -> str:
        pairs = PairMaker(shop, GbdtSettings(trees=10, leaves=7, title_queries=60))
        return train_gbdt(pairs, queries, qrels, corpus_sha256="c", sources=sources).manifest.model_sha256

    usual = digest(SourceSettings())
    assert usual == digest(SourceSettings(judgments=5.0, clicks=0.0))
    assert (
        len(
            {
                usual,
                digest(SourceSettings(titles=0)),
                digest(SourceSettings(structured=0)),
                digest(SourceSettings(titles=3)),
            }
        )
        == 4
    )
