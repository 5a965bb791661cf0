"""The lists that a shop would show for each query: the raw ranking, and rankings that explore.

A log of raw rankings alone tells no position from relevance: the first document always stands first. A share of
searches therefore explores, as the server does with versions of a policy. Half of these show the search with words of
titles that the raw ranking found; the other half shows the raw ranking with two ranks swapped, and with some documents
replaced by deeper ones. No list depends on relevance.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from infra.app.progress import Report
from search_env.catalogue.analysis import STOP_WORDS, analyze, surface_tokens
from search_env.catalogue.corpora import Query, write_whole
from search_env.catalogue.term_matrices import Catalogue
from search_env.engine.searching import ExpandedQuery, Searcher

DEPTH = 50
VARIANTS = 2
WORDS_OF = 20  # Documents whose titles give the words.
WORDS = 3
REPLACED_SHARE = 0.2
AT_ONCE = 512


class QueryLists(NamedTuple):
    """The lists of one query. raw: at most `DEPTH` documents. helped: documents of other searches for it."""

    raw: tuple[str, ...]
    helped: tuple[tuple[str, ...], ...]


def kept_lists(
    folder: Path, searcher: Searcher, catalogue: Catalogue, queries: Sequence[Query], *, seed: int, report: Report
) -> dict[str, QueryLists]:
    """Return the possible lists of these queries from a file of this folder, which is made if it is missing."""
    made_from = [
        searcher.index,
        searcher.settings,
        seed,
        DEPTH,
        VARIANTS,
        [(query.id, query.text) for query in queries],
    ]
    digest = hashlib.sha256(msgspec.json.encode(made_from, order="deterministic")).hexdigest()[:16]
    path = folder / f"lists-{digest}.json"
    if not path.is_file():
        found = possible_lists(searcher, catalogue, queries, seed=seed, report=report)
        write_whole(path, msgspec.json.encode(found))
    return msgspec.json.decode(path.read_bytes(), type=dict[str, QueryLists])


def possible_lists(
    searcher: Searcher, catalogue: Catalogue, queries: Sequence[Query], *, seed: int, report: Report
) -> dict[str, QueryLists]:
    """Return the lists of each query, by its id; queries that find nothing are left out."""
    random = np.random.default_rng(seed)
    found: dict[str, QueryLists] = {}
    for start in range(0, len(queries), AT_ONCE):
        some = queries[start : start + AT_ONCE]
        raw = searcher.search_many([query.text for query in some], size=DEPTH)
        asked = [
            ExpandedQuery(query.text, _words(catalogue, query.text, ranking.ids, random))
            for query, ranking in zip(some, raw, strict=True)
            for _ in range(VARIANTS)
        ]
        helped = [tuple(ranking.ids) for ranking in searcher.search_many(asked, size=DEPTH)]
        for place, (query, ranking) in enumerate(zip(some, raw, strict=True)):
            if ranking.ids:
                found[query.id] = QueryLists(
                    tuple(ranking.ids), tuple(helped[place * VARIANTS : (place + 1) * VARIANTS])
                )
        report("searching the simulated queries", min(start + AT_ONCE, len(queries)), len(queries))
    return found


def explored(lists: QueryLists, size: int, random: np.random.Generator) -> tuple[str, ...]:
    """Return one list that explores, of at most `size` documents."""
    if random.random() < 0.5 and lists.helped:
        return lists.helped[int(random.integers(len(lists.helped)))][:size]
    shown, deeper = list(lists.raw[:size]), list(lists.raw[size:])
    if len(shown) > 1:
        first, second = random.choice(len(shown), size=2, replace=False).tolist()
        shown[first], shown[second] = shown[second], shown[first]
    for place in range(len(shown)):
        if deeper and random.random() < REPLACED_SHARE:
            shown[place] = deeper.pop(int(random.integers(len(deeper))))
    return tuple(shown)


def sellers(brand_of: Mapping[str, str], lists: Mapping[str, QueryLists], size: int) -> list[str]:
    """Return the brands, those first whose products stand in the lists of the most queries. brand_of: by document."""
    counts: dict[str, int] = {}
    for each in lists.values():
        for brand in {brand_of[name] for name in each.raw[:size]}:
            counts[brand] = counts.get(brand, 0) + 1
    return sorted((brand for brand in counts if brand), key=lambda brand: (-counts[brand], brand))


def _words(catalogue: Catalogue, query: str, ids: Sequence[str], random: np.random.Generator) -> tuple[str, ...]:
    """Return words of the titles that a search found, which the query lacks."""
    asked = set(analyze(query))
    words: dict[str, None] = {}
    for name in ids[:WORDS_OF]:
        if name in catalogue.row_of:
            words.update(dict.fromkeys(surface_tokens(catalogue.documents[catalogue.row_of[name]].title)))
    kept = [word for word in words if word not in STOP_WORDS and len(word) > 2 and not asked & set(analyze(word))]
    if not kept:
        return ()
    return tuple(kept[place] for place in random.choice(len(kept), size=min(WORDS, len(kept)), replace=False).tolist())
