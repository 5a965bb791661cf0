"""Dense vectors in Elasticsearch: one index per retriever version behind an alias, searched by kNN; or in memory.

`NAME` is an alias, `NAME-<retriever version>-<texts>` the index behind it: filled, refreshed and made read-only before
the alias points to it, as with documents (`search_env.index`). Vectors of unit length under `dot_product` score (1 +
cosine) / 2. The graph (HNSW) is approximate; `flat` compares a query with every vector instead, and so does `memory`,
in this process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from elastic_transport import TransportError
from elasticsearch import ApiError, Elasticsearch, helpers

from search_env.corpora import Ranking
from search_env.dense import Floats
from search_env.index import IndexingError, explain

BATCH_SEARCHES = 64


class VectorSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where and how dense vectors are searched.

    search: "hnsw", the engine's graph; "flat", the engine compares all; "memory", all are compared in this process.
    candidates: of each search in the engine; in the graph more find more of the true neighbours. links,
    build_candidates: HNSW's m and ef_construction.
    """

    search: Literal["hnsw", "flat", "memory"] = "hnsw"
    candidates: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 1000
    links: Annotated[int, msgspec.Meta(ge=2, le=512)] = 16
    build_candidates: Annotated[int, msgspec.Meta(ge=2, le=3200)] = 200


def build_vector_index(
    client: Elasticsearch,
    alias: str,
    version: str,
    ids: Sequence[str],
    vectors: Floats,
    settings: VectorSettings,
) -> str:
    """Load vectors [n, E] into the index `alias-version`, point the alias to it, and return its name.

    An index of that name that holds as many vectors is taken as it is: a version's vectors never change. Older versions
    behind the alias are deleted. Raises IndexingError if Elasticsearch refuses or does not answer; the alias still
    points where it did then, and the half-filled index is gone.
    """
    name = f"{alias}-{version}".lower()
    options: dict[str, Any] = {"type": "flat"}
    if settings.search != "flat":
        options = {"type": "hnsw", "m": settings.links, "ef_construction": settings.build_candidates}
    mapping: dict[str, Any] = {
        "dynamic": "strict",
        "properties": {
            "id": {"type": "keyword"},
            "vector": {
                "type": "dense_vector",
                "dims": int(vectors.shape[1]),
                "index": True,
                "similarity": "dot_product",
                "index_options": options,
            },
        },
    }
    try:
        if not (client.indices.exists(index=name) and int(client.count(index=name)["count"]) == len(ids)):
            client.options(ignore_status=404).indices.delete(index=name)
            client.indices.create(
                index=name,
                mappings=mapping,
                settings={"number_of_shards": 1, "number_of_replicas": 0, "refresh_interval": "-1"},
            )
            try:
                rows = (
                    {"_index": name, "_id": key, "id": key, "vector": vector.tolist()}
                    for key, vector in zip(ids, vectors, strict=True)
                )
                helpers.bulk(client.options(request_timeout=300), rows, chunk_size=500)
                client.indices.refresh(index=name)
                client.indices.put_settings(index=name, settings={"index.blocks.write": True})
            except BaseException:  # Ctrl-C too: a half-filled index must not stay.
                client.options(ignore_status=404).indices.delete(index=name)
                raise
        behind = client.options(ignore_status=404).indices.get_alias(name=alias)
        old = sorted(set(behind.body) - {name}) if behind.meta.status == 200 else []
        actions: list[dict[str, Any]] = [{"remove": {"index": each, "alias": alias}} for each in old]
        client.indices.update_aliases(actions=[*actions, {"add": {"index": name, "alias": alias}}])
        for each in old:
            client.options(ignore_status=404).indices.delete(index=each)
    except (ApiError, helpers.BulkIndexError) as error:
        raise IndexingError(f"vectors '{name}': Elasticsearch refused: {explain(error)}") from error
    except TransportError as error:
        raise IndexingError(
            f"vectors '{name}': Elasticsearch did not answer: {explain(error)}. Look with: searchloop status"
        ) from error
    return name


def search_vectors(
    client: Elasticsearch, index: str, queries: Floats, *, size: int, settings: VectorSettings
) -> list[Ranking]:
    """Return each query's nearest documents in the engine, best first; equal scores by id. queries: [n, E], unit.

    Raises IndexingError if Elasticsearch refuses, answers in part, or does not answer.
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
    """Return the same without an engine, exactly: scores (1 + cosine) / 2, equal scores by id."""
    order = np.argsort(np.asarray(ids))
    names = [ids[place] for place in order.tolist()]
    rankings = []
    for scores in (1 + queries @ vectors[order].T) / 2:
        best = np.argsort(-scores, kind="stable")[:size]
        rankings.append(Ranking([names[place] for place in best.tolist()], scores[best].tolist()))
    return rankings


def _body(query: Floats, *, size: int, settings: VectorSettings) -> dict[str, Any]:
    candidates = max(settings.candidates, size)
    knn = {"field": "vector", "query_vector": query.tolist(), "k": size, "num_candidates": candidates}
    return {"size": size, "_source": False, "knn": knn}
