"""The retriever's contrastive turn against torch's own loss, its versions as files, and its reading side."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from learner.checkpoints import CheckpointError
from learner.retriever import RetrieverError, RetrieverSettings, StaticRetriever, adapt_retriever, contrastive_loss
from learner.retriever_versions import (
    TENSORS,
    RetrieverManifest,
    load_retriever,
    read_retriever_manifest,
    save_retriever,
    texts_sha256,
)
from search_env.engine.vectors import search_in_memory
from search_env.models.bi_encoder import DenseError, RememberedVectors, StaticEncoder
from search_env.models.embeddings import model_directory

SETTINGS = RetrieverSettings(steps=30, batch_pairs=4, learning_rate=1e-2, weight_learning_rate=5e-2, tokens_max=32)
TEXTS = {
    "a": "Patch cable. yellow, shielded, 2 m",
    "b": "Patch cable. black, flat, 5 m",
    "c": "Mouse. wireless, optical",
    "d": "Mouse. wired, laser",
}
QUERIES = {"q1": "yellow cord", "q2": "flat cord", "q3": "cordless pointer", "q4": "laser pointer"}
RELEVANT = {"q1": ["a"], "q2": ["b"], "q3": ["c"], "q4": ["d"]}


@pytest.fixture
def retriever() -> StaticRetriever:
    return StaticRetriever(model_directory(), tokens_max=32)


def manifest(retriever: StaticRetriever, turn: int = 0) -> RetrieverManifest:
    return RetrieverManifest(name="", parent="", turn=turn, base_sha256=retriever.base_sha256, tokens_max=32)


def test_with_one_relevant_text_a_query_the_loss_is_torchs_cross_entropy() -> None:
    torch.manual_seed(0)
    queries = torch.nn.functional.normalize(torch.randn(5, 8), dim=1).requires_grad_()
    texts = torch.nn.functional.normalize(torch.randn(7, 8), dim=1)
    places = torch.tensor([3, 0, 6, 2, 2])
    expected = torch.nn.functional.cross_entropy(queries @ texts.T / 0.07, places)
    loss = contrastive_loss(queries, texts, torch.nn.functional.one_hot(places, 7).bool(), temperature=0.07)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    (found,), (oracle,) = torch.autograd.grad(loss, queries), torch.autograd.grad(expected, queries)
    assert torch.allclose(found, oracle, atol=1e-5)


def test_another_relevant_text_is_no_negative_worked_by_hand() -> None:
    """cos (1, .5, 0) and τ = 1: relevant are the first two, so −log(e/(e + 1)) and −log(√e/(√e + 1)), averaged."""
    queries = torch.tensor([[1.0, 0.0]])
    texts = torch.tensor([[1.0, 0.0], [0.5, 0.75**0.5], [0.0, 1.0]])
    loss = contrastive_loss(queries, texts, torch.tensor([[True, True, False]]), temperature=1.0)
    assert loss.item() == pytest.approx((np.log1p(np.exp(-1)) + np.log1p(np.exp(-0.5))) / 2, rel=1e-6)


def test_a_query_without_a_relevant_text_is_refused() -> None:
    with pytest.raises(ValueError, match="a relevant text for every query"):
        contrastive_loss(torch.eye(2), torch.eye(2), torch.tensor([[True, False], [False, False]]), temperature=1.0)


def test_a_turn_brings_queries_to_their_texts_and_gives_the_same_bits_again(retriever: StaticRetriever) -> None:
    first = adapt_retriever(retriever, queries=QUERIES, relevant=RELEVANT, texts=TEXTS, settings=SETTINGS, seed=3)
    assert first[-1] < first[0] / 2
    again = StaticRetriever(model_directory(), tokens_max=32)
    assert adapt_retriever(again, queries=QUERIES, relevant=RELEVANT, texts=TEXTS, settings=SETTINGS, seed=3) == first
    assert all(torch.equal(tensor, again.tensors()[name]) for name, tensor in retriever.tensors().items())


def test_a_turn_without_a_judged_query_is_refused(retriever: StaticRetriever) -> None:
    with pytest.raises(RetrieverError, match="queries with a relevant document"):
        adapt_retriever(retriever, queries=QUERIES, relevant={"q1": ["gone"]}, texts=TEXTS, settings=SETTINGS, seed=0)


def test_the_reading_side_gives_the_learners_vectors(retriever: StaticRetriever, tmp_path: Path) -> None:
    adapt_retriever(retriever, queries=QUERIES, relevant=RELEVANT, texts=TEXTS, settings=SETTINGS, seed=0)
    saved = save_retriever(tmp_path, retriever, manifest(retriever, turn=2))
    encoder = StaticEncoder(tmp_path / saved.name, model_directory(), tokens_max=32)
    said = ["", "yellow cable", "x" * 2000, *TEXTS.values()]
    with torch.inference_mode():
        for queries, encode in ((True, encoder.embed_queries), (False, encoder.embed_documents)):
            assert np.allclose(encode(said), retriever.encode(said, queries=queries).numpy(), atol=1e-5)
    ranked = search_in_memory(
        list(TEXTS), encoder.embed_documents(list(TEXTS.values())), encoder.embed_queries(["flat cord"]), size=2
    )
    assert ranked[0].ids[0] == "b"


def test_a_version_is_named_by_its_content_and_loads_to_the_same_bits(
    retriever: StaticRetriever, tmp_path: Path
) -> None:
    saved = save_retriever(tmp_path, retriever, manifest(retriever))
    assert save_retriever(tmp_path, retriever, manifest(retriever)) == saved
    assert saved.name == f"r0-{saved.files[TENSORS][:12]}"
    assert [path.name for path in tmp_path.iterdir()] == [saved.name]
    loaded, found = load_retriever(tmp_path / saved.name, model_directory())
    assert found == saved
    assert all(torch.equal(tensor, loaded.tensors()[name]) for name, tensor in retriever.tensors().items())


def test_a_damaged_or_foreign_version_is_noticed(retriever: StaticRetriever, tmp_path: Path) -> None:
    saved = save_retriever(tmp_path, retriever, manifest(retriever))
    folder = tmp_path / saved.name
    content = bytearray((folder / TENSORS).read_bytes())
    content[-1] ^= 1
    (folder / TENSORS).write_bytes(content)
    with pytest.raises(CheckpointError, match="should have sha256"):
        read_retriever_manifest(folder)
    (folder / TENSORS).unlink()
    with pytest.raises(CheckpointError, match="expected a whole version"):
        read_retriever_manifest(folder)
    with pytest.raises(DenseError, match="cannot be read"):
        StaticEncoder(folder, model_directory(), tokens_max=32)
    other = save_retriever(tmp_path, retriever, manifest(retriever))
    path = tmp_path / other.name / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_sha256": "0" * 64}))
    with pytest.raises(RetrieverError, match="expected the base with sha256 0000"):
        load_retriever(tmp_path / other.name, model_directory())


class FakeEncoder:
    """Counts what it encodes."""

    name = "r0-fake"

    def __init__(self) -> None:
        self.encoded: list[str] = []

    def embed_queries(self, texts: list[str]) -> np.ndarray:
        return self.embed_documents(texts)

    def embed_documents(self, texts: list[str]) -> np.ndarray:
        self.encoded += texts
        return np.array([[len(text), 1.0] for text in texts], dtype=np.float32).reshape(len(texts), 2)

    def token_count(self, text: str) -> int:
        return len(text.split())


def test_a_text_is_encoded_once_also_by_the_next_process(tmp_path: Path) -> None:
    encoder = FakeEncoder()
    vectors = RememberedVectors(encoder, directory=tmp_path)  # type: ignore[arg-type]
    assert vectors.embed_documents(["one", "three", "one"]).tolist() == [[3, 1], [5, 1], [3, 1]]
    vectors.save()
    again = RememberedVectors(encoder, directory=tmp_path)  # type: ignore[arg-type]
    assert again.embed_documents(["three", "eleven"]).tolist() == [[5, 1], [6, 1]]
    assert encoder.encoded == ["one", "three", "eleven"]
    (tmp_path / "vectors-r0-fake.npz").write_bytes(b"PK\x03\x04 damaged")
    assert RememberedVectors(encoder, directory=tmp_path).embed_documents(["one"]).tolist() == [[3, 1]]  # type: ignore[arg-type]


def test_equal_scores_are_ranked_by_id() -> None:
    vectors = np.array([[1, 0], [1, 0], [0, 1]], dtype=np.float32)
    (ranking,) = search_in_memory(["z", "b", "a"], vectors, np.array([[1, 0]], dtype=np.float32), size=3)
    assert ranking.ids == ["b", "z", "a"]
    assert ranking.scores == [1.0, 1.0, 0.5]


def test_the_texts_hash_does_not_depend_on_their_order() -> None:
    assert (
        texts_sha256({"a": "x", "b": "y"}) == texts_sha256({"b": "y", "a": "x"}) != texts_sha256({"a": "y", "b": "x"})
    )
