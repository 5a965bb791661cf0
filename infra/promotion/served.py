"""The results that a version's routes serve, offline: rankings as people get them once the version serves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from search_env.catalogue.corpora import Query, Ranking
from search_env.serving.routing import Router, Routes, below


def served_rankings(
    queries: Sequence[Query],
    raw: Mapping[str, Ranking],
    helped: Mapping[str, Ranking],
    added: Mapping[str, Ranking],
    routes: Routes,
) -> dict[str, Ranking]:
    """Return each query's ranking by its route. raw, helped: the two rankings by query id.

    added: the version's rankings for lists with its results below raw ones, searched with the routes' `terms_min`.

    Below the first raw results the scores are minus the rank, since the two searches' own cannot be compared.
    """
    router, found = Router(routes), {}
    for query in queries:
        action = router.route(query.text, "serving").action
        one, other = raw[query.id], (added if action == "below" else helped)[query.id]
        if action == "below":
            ids = below(one.ids, other.ids, top=routes.top, size=max(len(one.ids), len(other.ids)))
            found[query.id] = Ranking(ids, [-float(rank) for rank in range(1, len(ids) + 1)])
        else:
            found[query.id] = other if action == "helped" else one
    return found
