"""Dense vectors: one Elasticsearch index per retriever version behind an alias, searched by kNN; or in memory.

`NAME` is an alias, and `NAME-<retriever version>-<texts>` is the index behind it. As with documents
(`search_env.engine.index`), it is filled, refreshed and made read-only before the alias points to it. Vectors of unit
length under `dot_product` score (1 + cosine) / 2. The graph (HNSW) is approximate. `flat` compares a query with every
vector instead; `memory` does the same in this process.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from elastic_transport import TransportError
from elasticsearch import ApiError, Elasticsearch, helpers

from search_env.catalogue.corpora import Ranking
from search_env.engine.index import IndexingError, explain
from search_env.engine.index_changes import create_marked, delete_superseded, discard, is_filled, switch_alias
from search_env.engine.ownership import WHOLE, Place, Seen, claim, is_unmarked, look, meta
from search_env.models.bi_encoder import Floats
from streams.descriptions import describe

BATCH_SEARCHES = 64


class VectorSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings for searching dense vectors."""

    search: Annotated[
        Literal["hnsw", "flat", "memory"],
        describe(
            'Way to search: "hnsw", the engine\'s graph; "flat", the engine compares all vectors; "memory", this '
            "process compares all."
        ),
    ] = "hnsw"
    candidates: Annotated[
        int,
        msgspec.Meta(ge=1, le=10_000),
        describe(
            "Candidates of each search in the engine. In the graph, more candidates find more of the true "
            "neighbors and take longer."
        ),
    ] = 1000
    links: Annotated[
        int,
        msgspec.Meta(ge=2, le=512),
        describe("Links of a vector in the graph (HNSW's m). More find more, and need more memory."),
    ] = 16
    build_candidates: Annotated[
        int,
        msgspec.Meta(ge=2, le=3200),
        describe(
            "Candidates when the graph is built (HNSW's ef_construction). More give a better graph and a slower build."
        ),
    ] = 200


def build_vector_index(
    client: Elasticsearch,
    alias: str,
    version: str,
    ids: Sequence[str],
    vectors: Floats,
    settings: VectorSettings,
    *,
    installation: str,
) -> str:
    """Load vectors [n, E] into the index `alias-version`, point the alias to it, and return its name.

    installation: the id of the home that owns the index. An index of that name and home with the same number of vectors
    is reused, because a version's vectors never change. Older versions of this home behind the alias are deleted. An
    index that a searchloop without marks made is read as it is, and neither it nor its alias is changed.
    Raises IndexingError if the alias or the name belongs to somebody else (before anything is created), or if
    Elasticsearch refuses or does not answer. The alias then stays as it was, and the half-filled index is deleted.
    """
    name = f"{alias}-{version}".lower()
    place = _place(alias, installation)
    properties = _properties(int(vectors.shape[1]), settings)
    with _told(name):
        there = look(client, name, mappings=WHOLE)
        if there is not None and is_unmarked(there, properties) and _count(client, name) == len(ids):
            return name
        ours = {each.name: each for each in claim(client, place, name.__eq__, new=name)}
        older = [each for each in ours.values() if each.name != name and alias in each.aliases]
        if (same := ours.get(name)) is not None and _is_whole(client, same, len(ids)):
            if older or alias not in same.aliases:
                switch_alias(client, place, same, "", older)
        else:
            if same is not None and not delete_superseded(client, same, place):
                raise IndexingError(f"vectors '{name}': the index is unfinished and in use. Delete it yourself")
            new, through = create_marked(
                client,
                place,
                name,
                mappings={"dynamic": "strict", "properties": properties, "_meta": meta(place.mark(name))},
                settings={"number_of_replicas": 0},
            )
            try:
                _load(client, through, ids, vectors)
                switch_alias(client, place, new, through, older)
            except BaseException:  # Also Ctrl-C: a half-filled index must not stay.
                discard(client, new, place)
                raise
        for each in older:
            delete_superseded(client, each, place)
    return name


def search_vectors(
    client: Elasticsearch, index: str, queries: Floats, *, size: int, settings: VectorSettings
) -> list[Ranking]:
    """Return each query's nearest documents in the engine, best first; equal scores by id. queries: [n, E], unit.

    Raises IndexingError if Elasticsearch refuses, answers only partly, or does not answer.
    """
    found: list[Ranking] = []
    try:
        for start in range(0, len(queries), BATCH_SEARCHES):
            lines: list[dict[str, Any]] = []
            for query in queries[start : start + BATCH_SEARCHES]:
                lines += [{"index": index}, _body(query, size=size, settings=settings)]
            for answer in client.options(request_timeout=120).msearch(searches=lines)["responses"]:
                if "error" in answer or answer["_shards"]["failed"]:
                    raise IndexingError(
                        f"vectors '{index}': a search failed: {answer.get('error') or answer['_shards']}"
                    )
                hits = sorted((-float(hit["_score"]), str(hit["_id"])) for hit in answer["hits"]["hits"])
                found.append(Ranking([key for _, key in hits], [-score for score, _ in hits]))
    except ApiError as error:
        raise IndexingError(f"vectors '{index}': Elasticsearch refused: {explain(error)}") from error
    except TransportError as error:
        raise IndexingError(f"vectors '{index}': Elasticsearch did not answer: {explain(error)}") from error
    return found


def search_in_memory(ids: Sequence[str], vectors: Floats, queries: Floats, *, size: int) -> list[Ranking]:
    """Return each query's nearest documents without an engine, exactly: scores (1 + cosine) / 2, equal scores by id."""
    order = np.argsort(np.asarray(ids))
    names = [ids[place] for place in order.tolist()]
    rankings = []
    for scores in (1 + queries @ vectors[order].T) / 2:
        best = np.argsort(-scores, kind="stable")[:size]
        rankings.append(Ranking([names[place] for place in best.tolist()], scores[best].tolist()))
    return rankings


def _place(alias: str, installation: str) -> Place:
    return Place(installation=installation, alias=alias, kind="vectors")


def _properties(dims: int, settings: VectorSettings) -> dict[str, Any]:
    options: dict[str, Any] = {"type": "flat"}
    if settings.search != "flat":
        options = {"type": "hnsw", "m": settings.links, "ef_construction": settings.build_candidates}
    return {
        "id": {"type": "keyword"},
        "vector": {
            "type": "dense_vector",
            "dims": dims,
            "index": True,
            "similarity": "dot_product",
            "index_options": options,
        },
    }


def _count(client: Elasticsearch, index: str) -> int:
    return int(client.count(index=index)["count"])


def _is_whole(client: Elasticsearch, index: Seen, count: int) -> bool:
    """Return whether an index of ours is finished: nobody writes to it any more, and it holds all vectors."""
    return not is_filled(index) and _count(client, index.name) == count


def _load(client: Elasticsearch, through: str, ids: Sequence[str], vectors: Floats) -> None:
    rows = (
        {"_index": through, "_id": key, "id": key, "vector": vector.tolist()}
        for key, vector in zip(ids, vectors, strict=True)
    )
    helpers.bulk(client.options(request_timeout=300), rows, chunk_size=500, require_alias=True)
    client.indices.refresh(index=through)
    client.indices.put_settings(index=through, settings={"index.blocks.write": True})


@contextlib.contextmanager
def _told(name: str) -> Iterator[None]:
    """Turn an error of Elasticsearch into one line."""
    try:
        yield
    except (ApiError, helpers.BulkIndexError) as error:
        raise IndexingError(f"vectors '{name}': Elasticsearch refused: {explain(error)}") from error
    except TransportError as error:
        raise IndexingError(
            f"vectors '{name}': Elasticsearch did not answer: {explain(error)}. Look with: searchloop status"
        ) from error


def _body(query: Floats, *, size: int, settings: VectorSettings) -> dict[str, Any]:
    candidates = max(settings.candidates, size)
    knn = {"field": "vector", "query_vector": query.tolist(), "k": size, "num_candidates": candidates}
    return {"size": size, "_source": False, "knn": knn}
