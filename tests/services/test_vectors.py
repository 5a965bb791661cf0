"""Dense vectors in the real Elasticsearch: the nearest are those numpy finds, and the alias follows the version."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from elasticsearch import Elasticsearch

from search_env.engine.client import ElasticsearchSettings, connect
from search_env.engine.index import IndexingError
from search_env.engine.vectors import VectorSettings, build_vector_index, search_in_memory, search_vectors


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
    index = build_vector_index(client, unique_name, "r0-a", ids, vectors, settings, installation="test")
    found = search_vectors(client, index, queries, size=10, settings=settings)
    expected = search_in_memory(ids, vectors, queries, size=10)
    assert [ranking.ids for ranking in found] == [ranking.ids for ranking in expected]
    assert found[0].scores == pytest.approx(expected[0].scores, abs=1e-5)


def test_a_new_version_takes_the_alias_and_the_old_one_goes(client: Elasticsearch, unique_name: str) -> None:
    settings = VectorSettings()
    first = build_vector_index(client, unique_name, "r0-a", ["x", "y"], unit(2, 0), settings, installation="test")
    second = build_vector_index(client, unique_name, "r1-b", ["x", "y"], unit(2, 1), settings, installation="test")
    assert list(client.indices.get_alias(name=unique_name).body) == [second]
    assert not client.indices.exists(index=first)
    assert (
        build_vector_index(client, unique_name, "r1-b", ["x", "y"], unit(2, 1), settings, installation="test") == second
    )


def test_what_the_engine_refuses_leaves_the_alias_where_it_was(client: Elasticsearch, unique_name: str) -> None:
    settings = VectorSettings()
    first = build_vector_index(client, unique_name, "r0-a", ["x", "y"], unit(2, 0), settings, installation="test")
    with pytest.raises(IndexingError, match="refused"):
        build_vector_index(
            client, unique_name, "r1-b", ["x"], np.zeros((1, 16), dtype=np.float32), settings, installation="test"
        )
    assert list(client.indices.get_alias(name=unique_name).body) == [first]
    assert not client.indices.exists(index=f"{unique_name}-r1-b")


def test_searching_an_index_that_is_not_there_says_so(client: Elasticsearch, unique_name: str) -> None:
    with pytest.raises(IndexingError, match="a search failed"):
        search_vectors(client, unique_name, unit(1, 0), size=3, settings=VectorSettings())


def told(client: Elasticsearch, name: str) -> dict[str, object]:
    """What the cluster holds under a name: settings, mappings, aliases, and how many documents."""
    found = client.indices.get(index=f"{name}*", expand_wildcards="all").body
    return {index: (body, client.count(index=index)["count"]) for index, body in found.items()}


@pytest.mark.parametrize("what", ["alias", "index of the alias's name", "index of the version's name", "other home"])
def test_vectors_take_no_alias_and_no_name_of_somebody_else(client: Elasticsearch, unique_name: str, what: str) -> None:
    if what == "other home":
        build_vector_index(client, unique_name, "r0-a", ["x"], unit(1, 0), VectorSettings(), installation="other")
    else:
        index = {"alias": f"{unique_name}-2023", "index of the alias's name": unique_name}.get(
            what, f"{unique_name}-r1-b"
        )
        client.indices.create(index=index, aliases={unique_name: {}} if what == "alias" else {})
        client.index(index=index, id="mine", document={"id": "mine"}, refresh=True)
    before = told(client, unique_name)
    with pytest.raises(IndexingError, match=rf"the name '{unique_name}' is taken.*Nothing was changed"):
        build_vector_index(client, unique_name, "r1-b", ["x"], unit(1, 1), VectorSettings(), installation="test")
    assert told(client, unique_name) == before


def test_vectors_that_carry_no_mark_are_read_as_they_are_and_not_replaced(
    client: Elasticsearch, unique_name: str
) -> None:
    settings, queries = VectorSettings(), unit(1, 5)
    name = build_vector_index(client, unique_name, "r0-a", ["x", "y"], unit(2, 0), settings, installation="test")
    expected = search_vectors(client, name, queries, size=2, settings=settings)
    client.indices.put_mapping(index=name, meta={})  # As a searchloop without marks made it.
    before = told(client, unique_name)
    again = build_vector_index(client, unique_name, "r0-a", ["x", "y"], unit(2, 0), settings, installation="test")
    assert again == name
    assert search_vectors(client, name, queries, size=2, settings=settings) == expected
    with pytest.raises(IndexingError, match="delete it yourself: vectors are made anew"):
        build_vector_index(client, unique_name, "r1-b", ["x", "y"], unit(2, 1), settings, installation="test")
    assert told(client, unique_name) == before


def test_vectors_that_were_broken_off_are_made_anew(client: Elasticsearch, unique_name: str) -> None:
    settings = VectorSettings()
    name = build_vector_index(client, unique_name, "r0-a", ["x", "y"], unit(2, 0), settings, installation="test")
    client.indices.put_alias(index=name, name=f"{name}.0123456789ab")  # As a killed process leaves it.
    uuid = client.indices.get(index=name).body[name]["settings"]["index"]["uuid"]
    build_vector_index(client, unique_name, "r0-a", ["x", "y"], unit(2, 0), settings, installation="test")
    again = client.indices.get(index=name).body[name]
    assert again["settings"]["index"]["uuid"] != uuid
    assert again["aliases"] == {unique_name: {}}
