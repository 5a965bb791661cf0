"""Expansions of queries: by a policy version of a run, or from the words of its lessons' neighbors.

A policy is decoded greedily, as it is served. If its text has the wrong format, the raw query is searched.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial

import msgspec

from infra.app.app import App, OpenEngine
from infra.app.home import SETTINGS_FILE, Home, IndexFolder, RunFolder
from infra.app.progress import Report
from infra.app.run_settings import RunSettings, read_run_settings
from infra.recipes.decoding import decode_requests, served
from infra.recipes.leser.index import LeserIndex, neighbours_of, open_leser_index, open_neighbours
from infra.recipes.leser.preparation import LESSONS_FILE
from learner.prompts import tokenize_request
from learner.versions import LoadedVersion, find_version
from search_env.catalogue.corpora import Query
from search_env.engine.index import load_manifest
from search_env.leser.expansion_cache import Expanded, ExpansionCache
from search_env.leser.expansions import ParsedExpansions, choices_of, parse_expansions
from search_env.leser.teachers import Lesson, read_lessons
from streams.errors import SettingsError
from streams.events import Context, Generation, Request
from streams.topics import version_name


class LeserRun(msgspec.Struct, frozen=True, kw_only=True):
    """A run whose policy writes expansions: its folder, its settings, and the index that it searches."""

    index: IndexFolder
    folder: RunFolder
    kept: RunSettings
    engine: OpenEngine

    def open_index(self, report: Report) -> AbstractContextManager[LeserIndex]:
        """Give the index as the run's prompts show it, and close it after."""
        return open_leser_index(self.index, self.kept.settings, self.engine, report)

    def lessons(self) -> list[Lesson]:
        """Return the lessons that the run looks similar queries up in."""
        return read_lessons(self.folder / LESSONS_FILE)


def open_run(app: App, *, index: str, run: str | None) -> LeserRun:
    """Return a run on an index: the named one, or the newest that learned on it.

    Raises SettingsError if there is none.
    """
    kept = find_run(app.home, index=index, run=run)
    return LeserRun(index=app.home.index(index), folder=app.home.run(kept.run), kept=kept, engine=app.engine)


def expand_queries(
    app: App,
    queries: Sequence[Query],
    *,
    index: str,
    policy: str,
    run: str | None,
    report: Report,
    temperature: float = 0.0,
    keep: bool = False,
) -> list[Expanded]:
    """Return a policy version's expansions of each query, in order. Only queries that the cache lacks are decoded.

    policy: "latest" or a version of the run. run: None takes the newest run on this index. temperature: 0 decodes
    greedily, as served; above 0 one candidate is sampled, without the cache. keep: put the decoded expansions into the
    cache.
    Raises SettingsError if there is no such run.
    """
    opened = open_run(app, index=index, run=run)
    folder, manifest = find_version(opened.folder.checkpoints, policy)
    index_version = load_manifest(opened.index).name
    cache = ExpansionCache(opened.folder, policy=version_name(manifest.policy), index_version=index_version)
    found = cache.known(queries) if temperature == 0 else {}
    missing = [query for query in queries if query.id not in found]
    if missing:
        requests = expansion_requests(opened, missing, report)
        decoded = decode_expansions(
            requests, LoadedVersion(folder, manifest.policy), opened.kept, report, temperature=temperature
        )
        if keep:
            cache.keep(decoded)
        found |= {each.query_id: each for each in decoded}
    return [found[query.id] for query in queries]


def expansion_requests(run: LeserRun, queries: Sequence[Query], report: Report) -> list[Request]:
    """Return what a run's policy is asked for each query: the query with its context, which no version changes."""
    report("reading the documents", 0, 0)
    with run.open_index(report) as opened:
        contexts = _contexts(opened, run, [query.text for query in queries])
        return [
            Request(
                request_id=query.id,
                run=run.kept.run,
                query_id=query.id,
                query=query.text,
                index=opened.version.name,
                split="live",
                context=context,
            )
            for query, context in zip(queries, contexts, strict=True)
        ]


def decode_expansions(
    requests: Sequence[Request],
    version: LoadedVersion,
    kept: RunSettings,
    report: Report,
    *,
    temperature: float = 0.0,
) -> list[Expanded]:
    """Return what a version writes for each request, in order; `temperature` as in `expand_queries`."""
    groups = decode_requests(
        requests,
        version,
        encode=partial(tokenize_request, settings=kept.settings.prompts),
        sampling=served(kept, temperature=temperature),
        seed=kept.seed,
        name="expanding",
        report=report,
    )
    return [_read(group, kept) for group in groups]


def _read(group: Generation, kept: RunSettings) -> Expanded:
    text = group.completions[0].text
    parsed = parse_expansions(text, kept.settings.leser.expansions, choices_of(group.request.context))
    valid = isinstance(parsed, ParsedExpansions)
    return Expanded(
        query_id=group.request.query_id,
        query=group.request.query,
        expansions=parsed.expansions if isinstance(parsed, ParsedExpansions) else (),
        valid=valid,
        text=text,
        policy=version_name(group.policy),
    )


def neighbour_words(run: LeserRun, texts: Sequence[str], *, count: int) -> list[tuple[str, ...]]:
    """Return the best words of the run's lessons on similar queries, at most `count` for each query."""
    look_up = neighbours_of(run.index, run.kept.settings, run.lessons())
    return look_up.words(texts, count=count)


def shown_words(run: LeserRun, texts: Sequence[str], report: Report) -> list[tuple[str, ...]]:
    """Return the words that each query's prompt shows first, as they stand: the baseline that a policy has to beat.

    These are the neighbors' words; those that feedback also names come first. Without neighbors they are the feedback
    terms.
    """
    report("reading the documents", 0, 0)
    with run.open_index(report) as opened:
        contexts = _contexts(opened, run, texts)
    count = run.kept.settings.teacher.choice_words_shown
    return [(context.neighbours or context.terms)[:count] for context in contexts]


def find_run(home: Home, *, index: str, run: str | None) -> RunSettings:
    """Return a run's settings: of the named run, or of the newest one that learned on this index.

    Raises SettingsError if there is none.
    """
    if run is not None:
        return read_run_settings(home.run(run))
    found = sorted(home.runs.glob(f"[!.]*/{SETTINGS_FILE}"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in found:
        kept = read_run_settings(path.parent)
        if kept.index == index:
            return kept
    raise SettingsError(f"no run has learned on index {index!r} yet. Run: searchloop train --index {index}")


def _contexts(opened: LeserIndex, run: LeserRun, texts: Sequence[str]) -> list[Context]:
    neighbours = open_neighbours(opened, run.lessons())
    return opened.contexts(texts, neighbours.words(texts) if neighbours else None)
