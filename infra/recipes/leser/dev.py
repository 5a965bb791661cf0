"""LESER's dev queries: asked once, then decoded and searched with each version that a run makes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from infra.app.progress import Report
from infra.recipes.held_out import HeldOut, ranked
from infra.recipes.leser.behind import Rankers, sets_behind
from infra.recipes.leser.expanding import LeserRun, decode_expansions, expansion_requests
from infra.recipes.recipe import TOP, RankDev, Ranked
from learner.versions import LoadedVersion, find_version
from search_env.catalogue.corpora import Ranking
from search_env.engine.opening import open_searcher
from search_env.engine.searching import ExpandedQuery
from search_env.models.relevance import RelevanceModel


@contextlib.contextmanager
def open_dev(run: LeserRun, sets: Sequence[HeldOut], report: Report) -> Iterator[RankDev]:
    """Give the function that ranks the dev sets with a version's expansions.

    Contexts depend on the index alone, so they are made once. The model is loaded once, and takes each version's
    weights. With `ranker.depth`, every set follows once more, behind the ranker.
    """
    requests = expansion_requests(run, [query for each in sets for query in each.queries], report)
    loaded: list[LoadedVersion] = []

    def rank(policy: str) -> list[Ranked]:
        folder, manifest = find_version(run.folder.checkpoints, policy)
        if loaded:
            loaded[0].refresh(folder, manifest.policy)
        else:
            loaded.append(LoadedVersion(folder, manifest.policy))
        place = 0
        found: list[tuple[HeldOut, dict[str, Ranking]]] = []
        for each in sets:
            asked = requests[place : place + len(each.queries)]
            place += len(asked)
            written = decode_expansions(asked, loaded[0], run.kept, report)
            searched = [ExpandedQuery(item.query, item.expansions) for item in written]
            rankings = searcher.search_many(searched, size=TOP)
            found.append((each, dict(zip([query.id for query in each.queries], rankings, strict=True))))
        if model is None:
            return [ranked(*each) for each in found]
        return sets_behind(found, model, depth=run.kept.settings.ranker.depth)

    with (
        contextlib.closing(run.engine()) as client,
        _ranker(run, report) as model,
        contextlib.closing(
            open_searcher(client, run.index, run.kept.settings.retrieval, version=run.kept.index_version)
        ) as searcher,
    ):
        yield rank


def _ranker(run: LeserRun, report: Report) -> contextlib.AbstractContextManager[RelevanceModel | None]:
    """Give the ranker of a run's index, or None if no ranker stands behind its search."""
    if not run.kept.settings.ranker.depth:
        return contextlib.nullcontext()
    return Rankers().open(run.index, run.kept.settings, run.engine, report)
