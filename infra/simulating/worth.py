"""The worth of clicks, simulated: models fitted on clicks alone, judged by the hidden relevance of held-out queries.

    python -m infra.simulating.worth --home HOME --index icecat --queries judged.jsonl --qrels qrels.tsv

Simulated people ask the index's training queries and know their relevance; a model learns from their clicks alone. It
then reranks the raw top 100 of queries that nobody asked: held-out pairs and values of attributes, and judged queries.
One row is one way to fit. Each row has the same seeds; a query's value is its mean over the seeds, and intervals come
from a paired bootstrap over queries.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from infra.app.app import App
from infra.app.home import Home, IndexFolder
from infra.app.layers import assignments_layer
from infra.recipes.held_out import HeldOut, held_out_intents
from infra.recipes.leser.click_log import ClickedLog
from infra.recipes.leser.people import People
from infra.recipes.leser.relevance import grow_relevance
from infra.recipes.recipe import Judged
from infra.simulating.people import Population, simulated_searches
from infra.simulating.writing import asked_most_first, shop_of
from search_env.catalogue.corpora import Ranking, load_qrels, load_queries, rank_by_score
from search_env.catalogue.term_matrices import Catalogue
from search_env.clicks.published import EYE_TRACKED, PublishedModel, read_click_model
from search_env.engine.opening import open_catalogue, open_searcher
from search_env.models.clicked_lists import ShownList
from search_env.models.relevance import GbdtRelevance
from search_env.queries.intents import load_intents
from storage.evaluation.comparison import compare_means
from storage.evaluation.measures import measure_run

ALONE = ("relevance.sources.structured=0", "relevance.sources.titles=0", "relevance.sources.judgments=0")
UNBOUNDED = ("relevance.sources.click_pair_max=0", "relevance.sources.click_lists_max=0")
MEASURE, DEPTH, HELD_OUT_MAX = "nDCG@10", 100, 600


class WayToFit(NamedTuple):
    """One way to fit, a row of the table. change: settings. fraud: share of searches. users: "pbm" or "trust"."""

    name: str
    change: tuple[str, ...]
    fraud: float = 0.0
    users: str = "pbm"


ROWS = (
    WayToFit("clicks counted, no correction", ("relevance.sources.click_model=none",)),
    WayToFit("PBM, no bound", UNBOUNDED),
    WayToFit("PBM, bounded", ()),
    WayToFit("PBM, no bound, fraud of 5 %", UNBOUNDED, fraud=0.05),
    WayToFit("PBM, bounded, fraud of 5 %", (), fraud=0.05),
    WayToFit("UBM, bounded", ("relevance.sources.click_model=ubm",)),
    WayToFit("DBN, bounded", ("relevance.sources.click_model=dbn",)),
    WayToFit("people with trust bias: no correction", ("relevance.sources.click_model=none",), users="trust"),
    WayToFit("people with trust bias: PBM, bounded", (), users="trust"),
)


class Bench(NamedTuple):
    """The common ground of all rows. raw: rankings of the top 100 by query id."""

    app: App
    folder: IndexFolder
    catalogue: Catalogue
    sets: Sequence[HeldOut]
    raw: Mapping[str, Ranking]


def values_of(bench: Bench, people: People, change: Sequence[str]) -> tuple[dict[str, dict[str, float]], str]:
    """Return nDCG@10 by set and query, reranked by a model of these clicks alone, and the model's description."""
    app = bench.app.with_changes("worth", assignments_layer([*ALONE, *change]))
    grown, _ = grow_relevance(bench.folder, app.settings, bench.catalogue, people=people, report=quiet)
    model = GbdtRelevance(bench.catalogue, grown)
    found = {}
    for each in bench.sets:
        rankings = [bench.raw[query.id] for query in each.queries]
        scores = model.score_many([(q.text, r.ids) for q, r in zip(each.queries, rankings, strict=True)])
        run = {
            query.id: _scored(rank_by_score(ranking.ids, of.tolist()))
            for query, ranking, of in zip(each.queries, rankings, scores, strict=True)
        }
        found[each.name] = measure_run(run, each.qrels, (MEASURE,))[MEASURE]
    fit = grown.manifest.clicks
    told = f"{grown.manifest.name} θ={[round(each, 2) for each in fit.theta[:10]]} {fit.queries} queries" if fit else ""
    return found, told


def searched(judged: Judged, shop: tuple, published: PublishedModel, people: Population, run: str) -> ClickedLog:  # type: ignore[type-arg]
    """Return the lists that simulated people saw and clicked, as a log gives them."""
    lists, fraud = shop
    drawn = simulated_searches(asked_most_first(*judged), lists, judged[1], published, people, fraud)
    shown = [
        ShownList(
            query=impression.query,
            shown=[(each.document_id, each.rank) for each in impression.shown],
            clicked=frozenset(each.document_id for each in actions),
            client=impression.client,
        )
        for impression, actions in drawn
    ]
    return ClickedLog(run, shown, {}, 0)


def open_bench(app: App, index: str, given: Judged | None) -> Bench:
    """Return the index with held-out queries and their raw rankings."""
    folder = app.home.index(index)
    sets = [
        msgspec.structs.replace(each, queries=sorted(each.queries, key=lambda query: query.id)[:HELD_OUT_MAX])
        for each in held_out_intents(folder, given)
    ]
    sets = [
        msgspec.structs.replace(each, queries=kept, qrels={query.id: each.qrels[query.id] for query in kept})
        for each in sets
        if (kept := [query for query in each.queries if max(each.qrels[query.id].values(), default=0) > 0])
    ]
    with closing(app.engine()) as client, closing(open_searcher(client, folder, app.settings.retrieval)) as searcher:
        catalogue = open_catalogue(client, folder)
        queries = [query for each in sets for query in each.queries]
        rankings = searcher.search_many([query.text for query in queries], size=DEPTH)
    raw = {query.id: ranking for query, ranking in zip(queries, rankings, strict=True)}
    return Bench(app, folder, catalogue, sets, raw)


def quiet(what: str, done: int, total: int) -> None:
    """Report nothing."""


def _scored(ranking: Ranking) -> dict[str, float]:
    return dict(zip(ranking.ids, ranking.scores, strict=True))


def _mean(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {query: float(np.mean([each[query] for each in values])) for query in values[0]}


def _told(value: object) -> str:
    low, high = getattr(value, "low", 0.0), getattr(value, "high", 0.0)
    return f"{getattr(value, 'value', 0.0):+.4f} [{low:+.4f}, {high:+.4f}]"


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--index", required=True)
    parser.add_argument("--queries", type=Path)
    parser.add_argument("--qrels", type=Path)
    parser.add_argument("--trust", type=Path, help="Click model of people with trust bias.")
    parser.add_argument("--impressions", type=int, default=200_000)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--rows", default="", help="Numbers of rows, from 0.")
    given = parser.parse_args()
    app = App(Home(given.home)).with_changes("--set", assignments_layer(given.set))
    judged = (load_queries(given.queries), load_qrels(given.qrels)) if given.queries else None
    rows = [ROWS[int(each)] for each in given.rows.split(",")] if given.rows else list(ROWS)
    with app.running_services(quiet) as running:
        bench = open_bench(running, given.index, judged)
        asked = load_intents(bench.folder.intents, "train")
        size = Population(impressions=1).size
        shop = shop_of(running, given.index, asked_most_first(*asked), size=size, seed=0, report=quiet)
    raw = {
        each.name: measure_run({q.id: _scored(bench.raw[q.id]) for q in each.queries}, each.qrels, (MEASURE,))[MEASURE]
        for each in bench.sets
    }
    found: dict[str, list[dict[str, dict[str, float]]]] = {row.name: [] for row in rows}
    for seed in map(int, given.seeds.split(",")):
        for row in rows:
            published = read_click_model(given.trust) if row.users == "trust" else EYE_TRACKED
            people = Population(impressions=given.impressions, fraud=row.fraud, seed=seed)
            log = searched(asked, shop, published, people, f"simulated-{seed}")
            values, told = values_of(bench, People(log=log), row.change)
            found[row.name].append(values)
            means = {name: round(float(np.mean(list(of.values()))), 4) for name, of in values.items()}
            print(f"seed {seed}, {row.name}: {means} {told}", file=sys.stderr, flush=True)
    for each in bench.sets:
        print(f"\n{each.name}, {len(each.queries)} queries; raw {np.mean(list(raw[each.name].values())):.4f}\n")
        print(f"| fitted on simulated clicks alone | {MEASURE} | to raw | to no correction | to PBM, bounded |")
        print("|---|---|---|---|---|")
        mean = {row.name: _mean([of[each.name] for of in found[row.name]]) for row in rows}
        for row in rows:
            mine = mean[row.name]
            cells = [f"{np.mean(list(mine.values())):.4f}", _told(compare_means(mine, raw[each.name]))]
            for other in (ROWS[0].name, ROWS[2].name):
                cells.append(_told(compare_means(mine, mean[other])) if other in mean and other != row.name else "")
            print(f"| {row.name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
