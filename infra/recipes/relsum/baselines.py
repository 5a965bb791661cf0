"""ReLSum's baselines: the text of each about a product within the same budget, and the ranking of lists with it.

Two arms have no budget and bound the others from above. `description` takes the whole description. `oracle` writes a
summary for the query, which no catalogue could store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from infra.recipes.relsum.ranked_index import RankedIndex
from infra.recipes.relsum.ranker import Writes
from search_env.catalogue.attributes import query_keys
from search_env.catalogue.corpora import Qrels, Query
from search_env.models.crossencoder import ReadTexts
from search_env.models.wordpieces import wordpiece_count
from search_env.summaries.reading import fit_text

DESCRIBED = "description"
Says = Callable[[RankedIndex, Query, str], str]


def _by(method: str) -> Says:
    def says(relsum: RankedIndex, query: Query, document: str) -> str:
        return relsum.summary(document, getattr(relsum.values, method)(document))

    return says


def _lead(relsum: RankedIndex, query: Query, document: str) -> str:
    return _cut(relsum, relsum.values.description(document))


def _expected_queries(relsum: RankedIndex, query: Query, document: str) -> str:
    return _cut(relsum, relsum.values.expected_queries(document))


def _cut(relsum: RankedIndex, text: str) -> str:
    return fit_text(text, relsum.settings.relsum.summary, wordpiece_count).text


ARMS: Mapping[str, Says] = {
    "title": lambda relsum, query, document: "",
    "lead": _lead,
    "random": _by("by_chance"),
    "idf": _by("by_rarity"),
    "key-counts": _by("by_key_counts"),
    "key-counts-per-word": _by("by_key_counts_per_word"),
    "key-rates": _by("by_key_rates"),
    "doc2query": _expected_queries,
    "oracle": lambda relsum, query, document: relsum.summary(
        document, relsum.values.asked(document, query_keys(query))
    ),
    DESCRIBED: lambda relsum, query, document: relsum.values.description(document),
}


def written_by(relsum: RankedIndex, arm: str) -> Writes:
    """Return the texts of an arm as a function of (query, product) pairs."""
    return lambda pairs: [ARMS[arm](relsum, query, document) for query, document in pairs]


def rank_lists(
    relsum: RankedIndex, writes: Writes, queries: Sequence[Query], qrels: Qrels, *, described: bool = False
) -> dict[str, dict[str, float]]:
    """Return the cross-encoder's calibrated probability for each query's judged products.

    writes: gives the texts behind titles. described: the texts are whole descriptions, which are cut later.
    Returns {query id: {document id: probability}}.
    """
    items = [(query, document) for query in queries for document in qrels[query.id]]
    readings = [
        ReadTexts(query.text, relsum.values.documents[document].title, summary)
        for (query, document), summary in zip(items, writes(items), strict=True)
    ]
    scores = relsum.cross_encoder.relevance(readings, described=described, report=relsum.report)
    found: dict[str, dict[str, float]] = {query.id: {} for query in queries}
    for (query, document), score in zip(items, scores.tolist(), strict=True):
        found[query.id][document] = score
    return found
