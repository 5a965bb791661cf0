"""Dense vectors in the real Elasticsearch: the nearest are those numpy finds, and the alias follows the version."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from elasticsearch import Elasticsearch

from search_env.engine import ElasticsearchSettings, connect
from search_env.index import IndexingError
from search_env.vectors import VectorSettings, build_vector_index, search_in_memory, search_vectors


@pytest.fixture(scope="module")
def client(local_services: object) -> Iterator[Elasticsearch]:
    made = connect(ElasticsearchSettings(url=local_services.elasticsearch))  # type: ignore[attr-defined]
    yield made
    made.close()


def unit(rows: int, seed: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(size=(rows, 16)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


@pytest.mark.parametrize("search", ["hnsw", "flat"])
def test_the_engine_finds_what_numpy_finds(client: Elasticsearch, unique_name: str, search: str) -> None:
    settings = VectorSettings(search=search)  # type: ignore[arg-type]
    ids, vectors, queries = [f"d{number:03d}" for number in range(300)], unit(300, 0), unit(20, 1)
    index = build_vector_index(client, unique_name, "r0-a", ids, vectors, settings)
    found = search_vectors(client, index, queries, size=10, settings=settings)
    expected = search_in_memory(ids, vectors, queries, size=10)
    assert [ranking.ids for ranking in found] == [ranking.ids for ranking in expected]
    assert found[0].scores == pytest.approx(expected[0].scores, abs=1e-5)


def test_a_new_version_takes_the_alias_and_the_old_one_goes(client: Elasticsearch, unique_name: str) -> None:
    settings = VectorSettings()
    first = build_vector_index(client, unique_name, "r0-a", ["x", "y"], unit(2, 0), settings)
    second = build_vector_index(client, unique_name, "r1-b", ["x", "y"], unit(2, 1), settings)
    assert list(client.indices.get_alias(name=unique_name).body) == [second]
    assert not client.indices.exists(index=first)
    assert build_vector_index(client, unique_name, "r1-b", ["x", "y"], unit(2, 1), settings) == second


def test_what_the_engine_refuses_leaves_the_alias_where_it_was(client: Elasticsearch, unique_name: str) -> None:
    settings = VectorSettings()
    first = build_vector_index(client, unique_name, "r0-a", ["x", "y"], unit(2, 0), settings)
    with pytest.raises(IndexingError, match="refused"):
        build_vector_index(client, unique_name, "r1-b", ["x"], np.zeros((1, 16), dtype=np.float32), settings)
    assert list(client.indices.get_alias(name=unique_name).body) == [first]
    assert not client.indices.exists(index=f"{unique_name}-r1-b")


def test_searching_an_index_that_is_not_there_says_so(client: Elasticsearch, unique_name: str) -> None:
    with pytest.raises(IndexingError, match="a search failed"):
        search_vectors(client, unique_name, unit(1, 0), size=3, settings=VectorSettings())
