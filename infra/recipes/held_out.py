"""Judged queries for recipes that search a whole index: held-out intents, and a user's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from infra.app.app import App
from infra.recipes.recipe import GIVEN, Judged, Ranked
from search_env.catalogue.corpora import Qrels, Query, Ranking
from search_env.queries.intents import load_intents
from streams.errors import SettingsError

SPLITS = {"test_pair": "held-out value pairs", "test_value": "held-out values"}


class HeldOut(msgspec.Struct, frozen=True, kw_only=True):
    """Judged queries that train nothing."""

    name: str
    queries: Sequence[Query]
    qrels: Qrels


def held_out_intents(app: App, index: str, given: Judged | None) -> list[HeldOut]:
    """Return the sets to measure on: the index's held-out intents, if it has some, and the given judged queries.

    Raises SettingsError if there is neither.
    """
    folder = app.home.index(index) / "intents"
    loaded = [(name, *load_intents(folder, split)) for split, name in SPLITS.items()]
    sets = [
        HeldOut(name=name, queries=[query for query in queries if query.id in qrels], qrels=qrels)
        for name, queries, qrels in [*loaded, *([(GIVEN, *given)] if given else [])]
        if queries and qrels
    ]
    if not sets:
        raise SettingsError(f"index {index!r} has no judged held-out queries; give some: --queries FILE --qrels FILE")
    return sets


def ranked(asked: HeldOut, rankings: Mapping[str, Ranking]) -> Ranked:
    """Return a set together with the rankings of its queries."""
    found = {query: dict(zip(each.ids, each.scores, strict=True)) for query, each in rankings.items()}
    return Ranked(name=asked.name, run=found, qrels=asked.qrels)
