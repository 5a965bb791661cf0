"""Rankings for the held-out gate: raw results and a version's, for a user's judged queries and dev queries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import partial

import msgspec

from infra.app.app import App
from infra.app.progress import Report
from infra.app.run_settings import RunSettings, read_run_settings
from infra.promotion.held_out import DEPTH, GateVerdict, HeldOutRuns, judge_version, without_trained
from infra.recipes.held_out import dev_intents
from infra.recipes.recipe import Judged
from infra.runs.dev import given_dev
from search_env.catalogue.analysis import plain_words
from search_env.catalogue.corpora import Qrels, Query, Ranking
from search_env.engine.index import load_documents
from search_env.serving.categories import DOCUMENTS_MIN, FIELDS, learn_categories
from search_env.serving.route_learning import DEV, JUDGED
from search_env.serving.routing import HEAD_SEARCHES
from storage.errors import EvaluationError
from storage.evaluation.measures import Run
from storage.log import open_log
from streams.clock import now_ms
from streams.errors import SettingsError


def judge_held_out(
    app: App, *, live: str, learned: str | None, version: str, given: Judged | None, report: Report
) -> GateVerdict:
    """Rank the held-out queries raw and with a version, and return the gate's verdict.

    live: run of the traffic, whose frequent queries are the head. learned: run that made the version; None looks for
    it. given: the user's judged queries; with them, the run's dev queries count only where they show no loss.
    Raises SettingsError if no run has the version, or no query is left that training did not ask.
    """
    run = learned or _run_of(app, version)
    kept = read_run_settings(app.home.run(run))
    app = app.with_settings(msgspec.structs.replace(kept.settings, route=app.settings.route, ramp=app.settings.ramp))
    trained = trained_queries(app, kept)
    asked = _asked(app, kept, given)
    sources = {}
    for source, (queries, qrels) in asked.items():
        report(f"searching {len(queries):,} {source} queries", 0, 0)
        held = without_trained(_ranked(app, kept, version, queries, qrels, report), trained)
        if held.texts:
            sources[source] = held
    if not sources:
        raise SettingsError(
            f"expected judged queries that run {run!r} did not train on, got none. Give some: --queries FILE "
            "--qrels FILE"
        )
    words = {word for query in trained for word in query.split()}
    return judge_version(
        version,
        sources,
        known=words,
        head=_head(app, live),
        settings=app.settings.route,
        ramp=app.settings.ramp,
        now_ms=now_ms(),
        categories=_categories(app, kept.index),
    )


def _ranked(
    app: App, kept: RunSettings, version: str, queries: list[Query], qrels: Qrels, report: Report
) -> HeldOutRuns:
    from infra.recipes.leser.searching import search_added, search_queries

    search = partial(search_queries, app, queries, index=kept.index, run=kept.run, top=DEPTH, report=report)
    raw, helped = search(policy="none"), search(policy=version)
    added = search_added(
        app,
        queries,
        helped,
        index=kept.index,
        policy=version,
        run=kept.run,
        top=DEPTH,
        report=report,
        terms_min=app.settings.route.terms_min,
    )
    return HeldOutRuns(
        texts={query.id: query.text for query in queries},
        raw=_run(raw),
        helped=_run(helped),
        qrels={query.id: qrels[query.id] for query in queries},
        added=_run(added),
    )


def _run(rankings: Mapping[str, Ranking]) -> Run:
    return {query: dict(zip(each.ids, each.scores, strict=True)) for query, each in rankings.items()}


def _asked(app: App, kept: RunSettings, given: Judged | None) -> dict[str, tuple[list[Query], Qrels]]:
    """Return the judged queries by source: the user's, of now or of the run, and the index's dev queries."""
    found: dict[str, tuple[list[Query], Qrels]] = {}
    user = given or given_dev(app.home.run(kept.run))
    if user is not None:
        found[JUDGED] = [query for query in user[0] if query.id in user[1]], user[1]
    folder = app.home.index(kept.index)
    if (folder.intents / "queries.dev.jsonl").exists():
        for each in dev_intents(folder, kept.settings.dev.queries_max, None):
            found[DEV] = list(each.queries), each.qrels
    return {source: of for source, of in found.items() if of[0]}


def _run_of(app: App, version: str) -> str:
    found = [path.parent.parent.name for path in app.home.runs.glob(f"[!.]*/checkpoints/{version}") if path.is_dir()]
    if len(found) != 1:
        named = ", ".join(sorted(found)) or "none"
        raise SettingsError(
            f"version {version}: expected one run with its checkpoint in this home, found {named}. Name the run that "
            "made it: --learned RUN"
        )
    return found[0]


def trained_queries(app: App, kept: RunSettings) -> frozenset[str]:
    """Return the plain words of every query that the run has trained on."""
    with open_log(app.home.existing_run(kept.run)) as log:
        return frozenset(plain_words(row["query"]) for row in log.rows("SELECT DISTINCT query FROM rewards", []))


def _categories(app: App, index: str) -> dict[str, str]:
    """Return the category of each word, where queries are parted by it.

    Raises SettingsError if no document of the index has a category.
    """
    settings = app.settings.route
    if settings.by != "category":
        return {}
    documents = load_documents(app.home.index(index), sample=True)
    found = learn_categories(documents, field=settings.category_field, count=settings.categories_max)
    if not found:
        wanted = settings.category_field or ", ".join(FIELDS)
        raise SettingsError(
            f"route.by = category: expected documents with an attribute {wanted} in index {index!r}, and words that at "
            f"least {DOCUMENTS_MIN} of them use, got none. Name the attribute (route.category_field), or part the "
            "queries otherwise (route.by)"
        )
    return found


def _head(app: App, live: str) -> frozenset[str]:
    """Return the queries that people ask often, by plain words; none without a ledger."""
    try:
        with open_log(app.home.existing_run(live)) as log:
            rows = log.rows("SELECT query FROM first_impressions WHERE run = ?", [live])
    except (SettingsError, EvaluationError):
        return frozenset()
    counts = Counter(plain_words(row["query"]) for row in rows)
    return frozenset(query for query, count in counts.items() if count >= HEAD_SEARCHES)
