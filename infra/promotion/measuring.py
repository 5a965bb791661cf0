"""Measure routes on judged queries that their rule never saw: raw results, a policy everywhere, feedback, the router.

    python -m infra.promotion.measuring --home HOME --index icecat --queries Q.jsonl --qrels QRELS.tsv \\
        --run RUN-0 --run RUN-1 --rankings FOLDER

Each judged query is served by a rule that was learned without its fold (ten folds), and on the run's dev queries. The
control learns on the same gains with the sides of each query swapped at random. Values of several runs (seeds of one
recipe) are averaged by query. Rankings are kept in FOLDER, and read from there if they exist. The table is Markdown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, get_args

import click

from infra.app.app import App
from infra.app.home import Home
from infra.app.progress import Report, progress
from infra.app.run_settings import read_run_settings
from infra.promotion.held_out import DEPTH, HeldOutRuns, Measured, gains_of, measured, without_trained
from infra.promotion.ranking import trained_queries
from infra.recipes.held_out import dev_intents
from search_env.catalogue.corpora import Qrels, Query, Ranking, load_qrels, load_queries, read_run, write_run
from search_env.serving.route_learning import DEV, JUDGED, PartedGains, cross_fitted, swapped
from search_env.serving.routing import By, RouteAction, RouteSettings, part_of
from storage.evaluation.comparison import Interval, compare_means
from storage.evaluation.measures import Run, Values

MEASURES = ("nDCG@10", "judged-nDCG@10", "R@100")
DRAWS = 20  # Of the control, for each run.
METHODS = ("bo1", "rm3", "minilm")
TOP = RouteSettings().top


class Row(NamedTuple):
    """A way to serve the queries: its name, the values that it has less raw ones, and the share that is not raw."""

    name: str
    gains: dict[str, Interval]
    served: float


class Seed(NamedTuple):
    """One run on the judged queries and on its dev queries. words: that training asked."""

    tables: dict[str, Measured]
    held: dict[str, HeldOutRuns]
    words: frozenset[str]

    def as_elsewhere(self) -> Seed:
        """Return the run with the policy's words below raw results only where it has them elsewhere."""
        held = {source: each._replace(added=None) for source, each in self.held.items()}
        return Seed({source: measured(each, MEASURES, top=TOP) for source, each in held.items()}, held, self.words)


@click.command()
@click.option("--home", type=click.Path(path_type=Path), required=True, help="Home with the index and the runs.")
@click.option("--index", required=True, help="Index that the runs have learned on.")
@click.option("--queries", type=click.Path(path_type=Path), required=True, help="Judged queries (JSONL).")
@click.option("--qrels", type=click.Path(path_type=Path), required=True, help="Their judgments.")
@click.option("--run", "runs", multiple=True, required=True, help="Run whose best version is routed; repeat by seed.")
@click.option("--rankings", type=click.Path(path_type=Path), required=True, help="Folder of the rankings.")
def main(home: Path, index: str, queries: Path, qrels: Path, runs: tuple[str, ...], rankings: Path) -> None:
    """Print the table; see the module."""
    rankings.mkdir(parents=True, exist_ok=True)
    with progress() as report, App(Home(home)).running_services(report) as app:
        judged = load_queries(queries), load_qrels(qrels)
        rows, count = _rows(_Searches(app, index, rankings, report), judged, runs)
    click.echo(f"{count} judged queries, {len(runs)} runs; difference to raw results, 95 %, 10,000 draws by query.\n")
    click.echo("| served | " + " | ".join(MEASURES) + " | not raw |")
    click.echo("|---|" + "---|" * (len(MEASURES) + 1))
    for row in rows:
        cells = [_cell(row.gains[name]) for name in MEASURES]
        click.echo(f"| {row.name} | " + " | ".join(cells) + f" | {row.served:.0%} |")


class _Searches:
    """Rankings of queries, kept in a folder."""

    def __init__(self, app: App, index: str, folder: Path, report: Report) -> None:
        self.app, self.index, self.folder, self.report = app, index, folder, report

    def of(self, source: str, queries: Sequence[Query], policy: str, run: str | None = None) -> Run:
        from infra.recipes.leser.searching import search_queries

        path = self._path(source, policy, run)
        if not path.exists():
            app = self.app
            if run is not None:
                app = app.with_settings(read_run_settings(app.home.run(run)).settings)
            found = search_queries(
                app, queries, index=self.index, policy=policy, run=run, top=DEPTH, report=self.report
            )
            write_run(path, found, tag=policy)
        return _as_run(read_run(path))

    def added(self, source: str, queries: Sequence[Query], policy: str, run: str, terms_min: int) -> Run:
        """Return the version's rankings for lists with its results below raw ones."""
        from infra.recipes.leser.searching import search_added

        self.of(source, queries, policy, run)
        helped = read_run(self._path(source, policy, run))
        path = self._path(f"{source}-terms-{terms_min}", policy, run)
        if not path.exists():
            found = search_added(
                self.app.with_settings(read_run_settings(self.app.home.run(run)).settings),
                queries,
                helped,
                index=self.index,
                policy=policy,
                run=run,
                top=DEPTH,
                report=self.report,
                terms_min=terms_min,
            )
            write_run(path, found, tag=policy)
        return _as_run(read_run(path))

    def _path(self, source: str, policy: str, run: str | None) -> Path:
        named = [source, *([run] if run is not None else []), *([policy] if policy != "best" else [])]
        return self.folder / f"{'-'.join(named)}.run"


def _rows(searches: _Searches, judged: tuple[list[Query], Qrels], runs: Sequence[str]) -> tuple[list[Row], int]:
    # A query without a relevant document has the same value for every ranking.
    relevant = {query: grades for query, grades in judged[1].items() if max(grades.values()) > 0}
    asked = [query for query in judged[0] if query.id in relevant]
    seeds = [_seed(searches, asked, {query.id: relevant[query.id] for query in asked}, run) for run in runs]
    raw = seeds[0].tables[JUDGED].raw
    rows = []
    for method in METHODS:
        found = _with(seeds[0].held[JUDGED], searches.of(JUDGED, asked, method))
        rows.append(_row(f"{method} everywhere", [found.helped], raw, 1.0))
        rows.append(_row(f"{method} below, everywhere", [found.below], raw, 1.0))
    for name, policy in (("look-up", "knn"), ("prompt's words", "shown")):
        found_by = [searches.added(JUDGED, asked, policy, run, RouteSettings().terms_min) for run in runs]
        tables = [_with(seed.held[JUDGED], found).below for seed, found in zip(seeds, found_by, strict=True)]
        rows.append(_row(f"{name} below, everywhere", tables, raw, 1.0))
    before = [seed.as_elsewhere() for seed in seeds]
    rows.append(_row("the policy everywhere", [seed.tables[JUDGED].helped for seed in seeds], raw, 1.0))
    rows.append(_row("the policy below, everywhere", [seed.tables[JUDGED].below for seed in seeds], raw, 1.0))
    rows.append(_row("the policy below, but for one word", [seed.tables[JUDGED].below for seed in before], raw, 1.0))
    for by in get_args(By):
        # Nobody has counted how often people ask these queries, and few of them share a category.
        if by not in ("traffic", "category"):
            rows.append(_routed(f"router by {by}", seeds, by, (JUDGED, DEV)))
    rows.append(_routed("router by words, but for one word", before, "words", (JUDGED, DEV)))
    rows.append(_routed("router by words, judged queries alone", seeds, "words", (JUDGED,)))
    rows.append(_routed("router by words, sides swapped at random", seeds, "words", (JUDGED, DEV), draws=DRAWS))
    return rows, len(raw[MEASURES[0]])


def _seed(searches: _Searches, asked: Sequence[Query], qrels: Qrels, run: str) -> Seed:
    kept = read_run_settings(searches.app.home.run(run))
    trained = trained_queries(searches.app, kept)
    (dev,) = dev_intents(searches.app.home.index(searches.index), kept.settings.dev.queries_max, None)
    held = {}
    for source, queries, judgments in ((JUDGED, asked, qrels), (DEV, dev.queries, dev.qrels)):
        texts = {query.id: query.text for query in queries}
        raw, helped = searches.of(source, queries, "none"), searches.of(source, queries, "best", run)
        added = searches.added(source, queries, "best", run, RouteSettings().terms_min)
        found = HeldOutRuns(texts, _only(raw, texts), _only(helped, texts), judgments, _only(added, texts))
        held[source] = without_trained(found, trained)
    words = frozenset(word for query in trained for word in query.split())
    return Seed({source: measured(each, MEASURES, top=TOP) for source, each in held.items()}, held, words)


def _with(held: HeldOutRuns, found: Run) -> Measured:
    """Return the measures of other results than the policy's on the same queries."""
    return measured(held._replace(helped=_only(found, held.texts), added=None), MEASURES, top=TOP)


def _routed(name: str, seeds: Sequence[Seed], by: By, sources: Sequence[str], *, draws: int = 0) -> Row:
    """Return the row of a router. draws: above 0 learns on gains with swapped sides, so many times."""
    settings = RouteSettings(by=by)
    tables, actions = list[dict[str, Values]](), list[RouteAction]()
    for number, seed in enumerate(seeds):
        parted = {
            source: PartedGains(
                gains_of(seed.tables[source], settings),
                {query: part_of(text, by, known=seed.words) for query, text in seed.held[source].texts.items()},
            )
            for source in sources
        }
        for learned in _taught(parted, draws):
            served = cross_fitted(learned, JUDGED, settings, seed=number)
            actions += served.values()
            tables.append({measure: seed.tables[JUDGED].served(served, measure) for measure in MEASURES})
    return _row(name, tables, seeds[0].tables[JUDGED].raw, sum(each != "raw" for each in actions) / len(actions))


def _taught(parted: dict[str, PartedGains], draws: int) -> Iterator[dict[str, PartedGains]]:
    if not draws:
        yield parted
    for draw in range(draws):
        yield {source: PartedGains(swapped(of.gains, draw), of.parts) for source, of in parted.items()}


def _row(name: str, tables: Sequence[Mapping[str, Values]], raw: Mapping[str, Values], served: float) -> Row:
    """Return a row from the values of several runs, which are averaged by query."""
    gains = {}
    for measure in MEASURES:
        means = {query: sum(table[measure][query] for table in tables) / len(tables) for query in raw[measure]}
        gains[measure] = compare_means(means, raw[measure])
    return Row(name, gains, served)


def _as_run(rankings: Mapping[str, Ranking]) -> Run:
    return {query: dict(zip(each.ids, each.scores, strict=True)) for query, each in rankings.items()}


def _only(run: Run, texts: Mapping[str, str]) -> Run:
    return {query: run.get(query, {}) for query in texts}


def _cell(found: Interval) -> str:
    value, low, high = (
        f"{each or 0:+.3f}".replace("-", "−").replace("0.", ".") for each in (found.value, found.low, found.high)
    )
    return f"{value} [{low}, {high}]"


if __name__ == "__main__":
    main()
