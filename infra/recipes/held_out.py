"""Judged queries for recipes that search a whole index: held-out intents, and a user's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from infra.app.home import IndexFolder
from infra.recipes.recipe import GIVEN, Judged, Ranked
from search_env.catalogue.corpora import Qrels, Query, Ranking
from search_env.queries.intents import load_intents
from streams.errors import SettingsError

DEV = "dev"
SPLITS = {"test_pair": "held-out value pairs", "test_value": "held-out values"}


class HeldOut(msgspec.Struct, frozen=True, kw_only=True):
    """Judged queries that train nothing."""

    name: str
    queries: Sequence[Query]
    qrels: Qrels


def held_out_intents(folder: IndexFolder, given: Judged | None) -> list[HeldOut]:
    """Return the sets to measure on: the index's held-out intents, if it has some, and the given judged queries.

    Raises SettingsError if there is neither.
    """
    loaded = [(name, *load_intents(folder.intents, split)) for split, name in SPLITS.items()]
    sets = [
        HeldOut(name=name, queries=[query for query in queries if query.id in qrels], qrels=qrels)
        for name, queries, qrels in [*loaded, *([(GIVEN, *given)] if given else [])]
        if queries and qrels
    ]
    if not sets:
        raise SettingsError(
            f"index {folder.name!r} has no judged held-out queries; give some: --queries FILE --qrels FILE"
        )
    return sets


def dev_intents(folder: IndexFolder, queries_max: int, given: Judged | None) -> list[HeldOut]:
    """Return the dev sets: the first of the index's dev intents by id, which is a hash, and the given judged queries.

    Raises SettingsError if there is none.
    """
    queries, qrels = load_intents(folder.intents, "dev")
    asked = sorted((query for query in queries if query.id in qrels), key=lambda query: query.id)[:queries_max]
    sets = [(DEV, asked, qrels)] if asked else []
    if given is not None:
        sets.append((GIVEN, [query for query in given[0] if query.id in given[1]], given[1]))
    if not any(queries for _, queries, _ in sets):
        raise SettingsError(
            f"index {folder.name!r} has no judged dev queries; give some: --dev-queries FILE --dev-qrels FILE, or set "
            "dev.every = 0"
        )
    return [
        HeldOut(name=name, queries=queries, qrels={query.id: qrels[query.id] for query in queries})
        for name, queries, qrels in sets
    ]


def ranked(asked: HeldOut, rankings: Mapping[str, Ranking]) -> Ranked:
    """Return a set together with the rankings of its queries."""
    found = {query: dict(zip(each.ids, each.scores, strict=True)) for query, each in rankings.items()}
    return Ranked(name=asked.name, run=found, qrels=asked.qrels)
