"""The arms of the summary task: what each says of a product within the same budget, and how lists are ranked with it.

Two arms have no budget and bound the others from above: `description` says everything, and `oracle` writes a summary
for the query, which no catalogue could store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from infra.recipes.relsum.ranked_index import SummaryWorld
from infra.recipes.relsum.ranker import Writes
from search_env.catalogue.attributes import query_keys
from search_env.catalogue.corpora import Qrels, Query
from search_env.models.crossencoder import Reading
from search_env.models.wordpieces import wordpiece_count
from search_env.summaries.reading import fit_text

DESCRIBED = "description"
Says = Callable[[SummaryWorld, Query, str], str]


def _by(method: str) -> Says:
    def says(world: SummaryWorld, query: Query, document: str) -> str:
        return world.summary(document, getattr(world.values, method)(document))

    return says


def _first_tokens(world: SummaryWorld, query: Query, document: str) -> str:
    return _cut(world, world.values.description(document))


def _expected_queries(world: SummaryWorld, query: Query, document: str) -> str:
    return _cut(world, world.values.expected_queries(document))


def _cut(world: SummaryWorld, text: str) -> str:
    return fit_text(text, world.settings.summary_environment.summary, wordpiece_count).text


ARMS: Mapping[str, Says] = {
    "title": lambda world, query, document: "",
    "first-tokens": _first_tokens,
    "random": _by("by_chance"),
    "idf": _by("by_rarity"),
    "log-counts": _by("by_log"),
    "log-counts-per-word": _by("by_log_per_word"),
    "log-rates": _by("by_rate"),
    "doc2query": _expected_queries,
    "oracle": lambda world, query, document: world.summary(document, world.values.asked(document, query_keys(query))),
    DESCRIBED: lambda world, query, document: world.values.description(document),
}


def written_by(world: SummaryWorld, arm: str) -> Writes:
    """Return what an arm writes."""
    return lambda pairs: [ARMS[arm](world, query, document) for query, document in pairs]


def rank_lists(
    world: SummaryWorld, writes: Writes, queries: Sequence[Query], qrels: Qrels, *, described: bool = False
) -> dict[str, dict[str, float]]:
    """Return each query's judged products with the cross-encoder's calibrated probability.

    writes: what stands behind titles. described: these are whole descriptions, which are cut later.
    """
    items = [(query, document) for query in queries for document in qrels[query.id]]
    readings = [
        Reading(query.text, world.values.documents[document].title, summary)
        for (query, document), summary in zip(items, writes(items), strict=True)
    ]
    scores = world.cross_encoder.relevance(readings, described=described, report=world.report)
    found: dict[str, dict[str, float]] = {query.id: {} for query in queries}
    for (query, document), score in zip(items, scores.tolist(), strict=True):
        found[query.id][document] = score
    return found
