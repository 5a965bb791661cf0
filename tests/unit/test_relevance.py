"""Relevance: features against numbers worked by hand, models that learn what they should, and say what is wrong."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

import infra.recipes.leser.relevance
from infra.app.home import Home
from infra.app.settings import Settings
from infra.recipes.leser.relevance import score_rankings
from search_env.catalogue.corpora import CorpusError, Document, Query, Ranking
from search_env.catalogue.term_matrices import Catalogue
from search_env.models.embeddings import DIMENSIONS, Embedder, EmbeddingSettings, KeptEmbedder, embed_documents
from search_env.models.features import FEATURES, FeatureMaker
from search_env.models.relevance import (
    CosineRelevance,
    GbdtRelevance,
    NoisyRelevance,
    RelevanceError,
)
from search_env.models.relevance_files import load_gbdt, save_gbdt
from search_env.models.relevance_training import train_gbdt
from search_env.models.training_pairs import GbdtSettings, PairMaker

COLOURS = ["red", "green", "blue", "black", "white", "grey", "pink", "cyan"]
KINDS = ["mug", "lamp", "chair", "table", "shelf"]
MATERIALS = ["steel", "oak", "glass", "cotton"]


def products(count: int = 480) -> list[Document]:
    """Products whose colour stands in the title, and whose material stands in the attributes alone."""
    return [
        Document(
            id=f"d{n}",
            title=f"{COLOURS[n % 8]} {KINDS[n % 5]} model{n}",
            text="",
            metadata={"brand": f"brand{n % 3}", "attributes": {"material": MATERIALS[(n // 8) % 4]}},
        )
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return Catalogue(products())


@pytest.fixture(scope="module")
def judged(catalogue: Catalogue) -> tuple[list[Query], dict[str, dict[str, int]]]:
    queries, qrels = [], {}
    for kind in KINDS:
        for colour in COLOURS:
            for material in MATERIALS:
                query = Query(id=f"{kind}{colour}{material}", text=f"{colour} {material} {kind}")
                relevant = {
                    d.id: 1
                    for d in catalogue.documents
                    if d.title.startswith(f"{colour} {kind}") and d.metadata["attributes"]["material"] == material
                }
                if relevant:
                    queries.append(query)
                    qrels[query.id] = relevant
    return queries, qrels


SMALL = GbdtSettings(trees=40, leaves=7, queries_max=200, title_queries=50)


@pytest.fixture(scope="module")
def model(catalogue: Catalogue, judged: tuple) -> GbdtRelevance:  # type: ignore[type-arg]
    return GbdtRelevance(catalogue, train_gbdt(PairMaker(catalogue, SMALL), *judged, corpus_sha256="c"))


def feature(features: np.ndarray, name: str) -> list[float]:
    return [float(value) for value in features[:, FEATURES.index(name)]]


def test_features_equal_a_page_worked_by_hand() -> None:
    catalogue = Catalogue(
        [
            Document(id="a", title="Red mug", text="a mug", metadata={"attributes": {"material": "Steel"}}),
            Document(id="b", title="Blue lamp", text="", metadata={"attributes": {"material": "Steel blue"}}),
        ]
    )
    features = FeatureMaker(catalogue).features("steel mug unheard", [0, 1])
    assert feature(features, "title_share") == pytest.approx([1 / 3, 0])
    assert feature(features, "attributes_share") == pytest.approx([1 / 3, 1 / 3])
    assert feature(features, "any_share") == pytest.approx([2 / 3, 1 / 3])
    assert feature(features, "query_terms") == [3, 3]
    assert feature(features, "values") == [1, 0]  # "steel" is named whole, "steel blue" is not
    assert feature(features, "values_lacked") == pytest.approx([0, 1])
    # idf with N = 2: mug n = 1 → ln 2; steel n = 2 → ln 1.2; unheard n = 0 → ln 6.
    total = np.log(2) + np.log(1.2) + np.log(6)
    assert feature(features, "any_coverage") == pytest.approx([(np.log(2) + np.log(1.2)) / total, np.log(1.2) / total])
    assert feature(features, "contents_log_length") == pytest.approx([np.log(4), np.log(3)])


def test_features_of_one_document_do_not_depend_on_the_others(catalogue: Catalogue) -> None:
    maker = FeatureMaker(catalogue)
    together = maker.features("red steel mug brand1", range(100))
    alone = np.concatenate([maker.features("red steel mug brand1", [row]) for row in range(100)])
    assert np.array_equal(together, alone)


@pytest.mark.parametrize("query", ["", "the of and", "!!!", "unheardof"])
def test_queries_without_known_terms_give_finite_features(catalogue: Catalogue, query: str) -> None:
    assert np.isfinite(FeatureMaker(catalogue).features(query, [0, 1])).all()
    assert FeatureMaker(catalogue).features(query, []).shape == (0, len(FEATURES))


def test_trees_learn_what_only_the_attributes_say(model: GbdtRelevance) -> None:
    report = model.manifest.report
    assert report["held_out_ndcg_10"] > 0.95 > report["held_out_bm25_ndcg_10"]
    assert report["held_out_auc"] > 0.98
    assert report["held_out_ece"] < 0.1


def test_scores_are_probabilities_and_rank_the_right_material_first(model: GbdtRelevance) -> None:
    scores = model.score("red oak mug", [f"d{n}" for n in range(480)])
    assert ((scores >= 0) & (scores <= 1)).all()
    best = products()[int(scores.argmax())]
    assert best.title.startswith("red mug")
    assert best.metadata["attributes"]["material"] == "oak"


def test_the_same_training_gives_the_same_model_byte_for_byte(
    catalogue: Catalogue,
    judged: tuple,  # type: ignore[type-arg]
    model: GbdtRelevance,
) -> None:
    grown = train_gbdt(PairMaker(Catalogue(products()), SMALL), *judged, corpus_sha256="c")
    assert grown.manifest == model.manifest


def test_many_queries_at_once_score_as_one_at_a_time(catalogue: Catalogue, model: GbdtRelevance) -> None:
    fresh = GbdtRelevance(catalogue, model._grown)
    pairs = [("red oak mug", ["d1", "d2"]), ("blue lamp", []), ("red oak mug", ["d2", "d9"]), ("steel", ["d3"])]
    together = fresh.score_many(pairs)
    for scores, (query, ids) in zip(together, pairs, strict=True):
        assert scores.tolist() == model.score(query, ids).tolist()
        assert len(scores) == len(ids)


def test_a_saved_model_scores_the_same_and_a_changed_one_is_refused(
    tmp_path: Path, catalogue: Catalogue, model: GbdtRelevance
) -> None:
    save_gbdt(tmp_path, model._grown)
    loaded = load_gbdt(tmp_path, catalogue)
    ids = [f"d{n}" for n in range(50)]
    assert loaded.score("red oak mug", ids).tolist() == model.score("red oak mug", ids).tolist()
    assert loaded.name == model.name
    text = (tmp_path / "model.txt").read_text()
    (tmp_path / "model.txt").write_text(text.replace("learning_rate", "learning-rate"))
    with pytest.raises(RelevanceError, match="expected the trees"):
        load_gbdt(tmp_path, catalogue)
    (tmp_path / "model.txt").write_text(text)
    older = msgspec.structs.replace(model.manifest, features=FEATURES[:-1])
    (tmp_path / "manifest.json").write_bytes(msgspec.json.encode(older))
    with pytest.raises(RelevanceError, match="features of another version"):
        load_gbdt(tmp_path, catalogue)
    with pytest.raises(RelevanceError, match=r"no relevance model there\. Run: searchloop"):
        load_gbdt(tmp_path / "nowhere", catalogue)


def test_a_document_that_is_not_in_the_corpus_is_named(model: GbdtRelevance) -> None:
    with pytest.raises(RelevanceError, match="document 'ghost' was retrieved, but is not in the loaded corpus"):
        model.score("red", ["d1", "ghost"])


def test_too_few_judged_queries_are_refused(catalogue: Catalogue, judged: tuple) -> None:  # type: ignore[type-arg]
    queries, qrels = judged
    with pytest.raises(
        RelevanceError, match="expected at least 20 queries with a relevant document to train on, got 5"
    ):
        train_gbdt(PairMaker(catalogue, SMALL), queries[:5], qrels, corpus_sha256="c")


def test_noise_is_the_same_every_time_and_about_as_large_as_asked(model: GbdtRelevance) -> None:
    ids = [f"d{n}" for n in range(480)]
    clean = model.score("red oak mug", ids)

    class Half:
        name = "half"

        def score_many(self, pairs: list) -> list:  # type: ignore[type-arg]
            return [np.full(len(ids), 0.5, dtype=np.float32) for _, ids in pairs]

    noisy = NoisyRelevance(Half(), noise_std=0.1, seed=3)  # type: ignore[arg-type]
    first = noisy.score("red oak mug", ids)
    assert first.tolist() == NoisyRelevance(Half(), noise_std=0.1, seed=3).score("red oak mug", ids).tolist()  # type: ignore[arg-type]
    assert first[10:20].tolist() == noisy.score("red oak mug", ids[10:20]).tolist()
    assert first.tolist() != noisy.score("blue", ids).tolist()
    assert 0.09 < float(first.std()) < 0.11
    assert abs(float(first.mean()) - 0.5) < 0.02
    blurred = NoisyRelevance(model, noise_std=0.5).score("red oak mug", ids)
    assert ((blurred >= 0) & (blurred <= 1)).all()
    assert float(np.corrcoef(blurred, clean)[0, 1]) < 0.9


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder(EmbeddingSettings())


# First four numbers of each vector, from SentenceTransformer(…).encode(normalize_embeddings=True) of
# sentence-transformers 6.2.0 with max_seq_length 64; importing it here would cost ten seconds a run.
GOLDEN = {
    "red mug": [-0.0527, 0.04472, -0.06586, 0.07712],
    "a lamp for the table, with a very long description " * 20: [-0.00501, 0.02746, 0.01529, -0.03898],
    "": [-0.11884, 0.0483, -0.00255, -0.01101],
    "Ünïcode ½": [-0.04316, 0.00876, 0.02863, 0.01827],
}


def test_embeddings_equal_those_of_sentence_transformers(embedder: Embedder) -> None:
    vectors = embedder.embed(list(GOLDEN))
    assert np.abs(vectors[:, :4] - np.array(list(GOLDEN.values()))).max() < 2e-5
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1.0, abs=1e-5)


def test_cosine_relevance_prefers_what_means_the_same(tmp_path: Path, embedder: Embedder) -> None:
    documents = [
        Document(id="cup", title="ceramic coffee mug", text=""),
        Document(id="car", title="winter tyre for trucks", text=""),
    ]
    seen: list[int] = []
    vectors = embed_documents(documents, embedder, tmp_path, lambda what, done, of: seen.append(done))
    assert vectors.shape == (2, DIMENSIONS)
    assert seen[-1] == 2
    again = embed_documents(documents, Embedder(EmbeddingSettings()), tmp_path)  # From the file: no model is loaded.
    assert np.array_equal(vectors, again)
    relevance = CosineRelevance(Catalogue(documents), vectors, embedder)
    mug, tyre = relevance.score("a cup for coffee", ["cup", "car"]).tolist()
    assert 1 >= mug > 0.6
    assert tyre < 0.2
    next(tmp_path.glob("*.npy")).write_bytes(b"damaged")
    assert np.array_equal(embed_documents(documents, embedder, tmp_path), vectors)


def test_kept_vectors_are_the_same_bits_and_are_made_once(tmp_path: Path, embedder: Embedder) -> None:
    lessons = ["red mug", "steel lamp"]
    kept = KeptEmbedder(EmbeddingSettings(), kept=lessons, directory=tmp_path)
    assert np.array_equal(kept.embed(lessons), embedder.embed(lessons))
    assert len(kept.embed(["another"])) == 1
    (file,) = tmp_path.iterdir()
    stamp = file.stat().st_mtime_ns
    again = KeptEmbedder(EmbeddingSettings(), kept=lessons, directory=tmp_path)
    assert np.array_equal(again.embed(lessons), embedder.embed(lessons))
    assert np.array_equal(again.embed_queries(["steel lamp", "red mug"]), again.embed(lessons)[::-1])
    assert again._model is None
    assert file.stat().st_mtime_ns == stamp


def test_the_tops_of_several_rankings_are_scored_once_each_best_first(
    catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class ByNumber:
        def score_many(self, pairs: list[tuple[str, list[str]]]) -> list[np.ndarray]:
            assert [query for query, _ in pairs] == ["red mug"]
            return [np.array([int(document[1:]) / 480 for document in ids]) for _, ids in pairs]

    monkeypatch.setattr(infra.recipes.leser.relevance, "kept_catalogue", lambda *_: catalogue)
    monkeypatch.setattr(infra.recipes.leser.relevance, "open_relevance", lambda *_, **__: ByNumber())
    folder, asked = Home(tmp_path).index("shop"), [Query(id="q", text="red mug")]
    rankings = [{"q": Ranking(["d1", "d2", "d9"], [3, 2, 1])}, {"q": Ranking(["d2", "d4"], [2, 1])}]
    scores = score_rankings(folder, Settings(), rankings, queries=asked, top=2, report=lambda *_: None)
    assert scores == {"q": Ranking(["d4", "d2", "d1"], [4 / 480, 2 / 480, 1 / 480])}
    with pytest.raises(CorpusError, match="expected rankings of the 1 given queries, got one of 'other'"):
        score_rankings(folder, Settings(), [{"other": rankings[0]["q"]}], queries=asked, top=2, report=lambda *_: None)
