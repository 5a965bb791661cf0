"""Searching with help: the raw query, feedback terms, a neighbour look-up, or a policy version; the served path.

A policy is decoded greedily, as it would be served; what it writes in the wrong format is searched as the raw query.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Literal

import msgspec

from infra.context import App
from infra.home import SETTINGS_FILE
from infra.preparation import LESSONS_FILE, Bench, open_bench, open_neighbours
from infra.progress import Report
from infra.run_settings import RunSettings, read_run_settings
from learner.generation import generate_groups
from learner.versions import LoadedVersion, find_version
from search_env.corpora import Query, Ranking
from search_env.expansions import ParsedExpansions, parse_expansions
from search_env.feedback_terms import search_with_feedback
from search_env.neighbours import Neighbours
from search_env.retrieval import ExpandedQuery, Retriever
from search_env.teachers import read_lessons
from streams.errors import SettingsError
from streams.events import Position, Request
from streams.topics import version_name

METHODS = ("none", "rm3", "bo1", "knn")


class Expanded(msgspec.Struct, frozen=True, kw_only=True):
    """What a policy wrote for one query, and what is searched: no expansions is the raw query."""

    query_id: str
    query: str
    expansions: tuple[str, ...]
    valid: bool
    text: str
    policy: str


def expand_queries(
    app: App,
    queries: Sequence[Query],
    *,
    index: str,
    policy: str,
    run: str | None,
    report: Report,
    temperature: float = 0.0,
) -> list[Expanded]:
    """Return what a policy version writes for each query, in order.

    policy: "latest" or a version of the run; run: None takes the newest run on this index. temperature: 0 decodes
    greedily, as served; above 0 one candidate is sampled.
    """
    kept = find_run(app, index=index, run=run)
    with open_bench(app.with_settings(kept.settings), index, report) as bench:
        return _expand(bench, kept, queries, policy=policy, temperature=temperature, report=report)


def search_queries(
    app: App,
    queries: Sequence[Query],
    *,
    index: str,
    policy: str,
    run: str | None,
    top: int,
    report: Report,
    temperature: float = 0.0,
) -> dict[str, Ranking]:
    """Return each query's ranking of at most `top` documents: raw, or helped by a method or a policy version."""
    if policy in ("none", "rm3", "bo1"):
        with open_bench(app, index, report) as bench:
            texts = [query.text for query in queries]
            if policy == "none":
                rankings = bench.retriever.search_many(texts, size=top)
            else:
                method: Literal["bo1", "rm3"] = "rm3" if policy == "rm3" else "bo1"
                rankings = search_with_feedback(
                    bench.retriever, bench.builder.feedback, method, texts, app.settings.feedback, size=top
                )
    else:
        kept = find_run(app, index=index, run=run)
        with open_bench(app.with_settings(kept.settings), index, report) as bench:
            retrieval = bench.app.settings.retrieval
            if policy == "knn":
                look_up = bench.app.settings.neighbours
                words = _neighbours(bench, kept).words([q.text for q in queries], count=look_up.served_words)
                retrieval = msgspec.structs.replace(retrieval, weight=look_up.served_weight)
            else:
                expanded = _expand(bench, kept, queries, policy=policy, temperature=temperature, report=report)
                words = [item.expansions for item in expanded]
            asked = [ExpandedQuery(query.text, said) for query, said in zip(queries, words, strict=True)]
            with contextlib.closing(Retriever(bench.client, bench.version.name, retrieval)) as retriever:
                rankings = retriever.search_many(asked, size=top)
    return {query.id: ranking for query, ranking in zip(queries, rankings, strict=True)}


def find_run(app: App, *, index: str, run: str | None) -> RunSettings:
    """Return a run's settings: the named one, or the newest that learned on this index.

    Raises SettingsError if there is none.
    """
    if run is not None:
        return read_run_settings(app.home.run(run))
    found = sorted(app.home.runs.glob(f"*/{SETTINGS_FILE}"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in found:
        kept = read_run_settings(path.parent)
        if kept.index == index:
            return kept
    raise SettingsError(f"no run has learned on index {index!r} yet. Run: searchloop train --index {index}")


def _expand(
    bench: Bench, kept: RunSettings, queries: Sequence[Query], *, policy: str, temperature: float, report: Report
) -> list[Expanded]:
    settings = bench.app.settings
    folder, manifest = find_version(bench.app.home.run(kept.run) / "checkpoints", policy)
    version = LoadedVersion(folder, manifest.policy)
    texts = [query.text for query in queries]
    neighbours = open_neighbours(bench, read_lessons(bench.app.home.run(kept.run) / LESSONS_FILE))
    contexts = bench.contexts(texts, neighbours.words(texts) if neighbours else None)
    sampling = msgspec.structs.replace(settings.generation.greedy(), temperature=temperature)
    requests = [
        (
            Position(topic="expand", partition=0, offset=number),
            Request(
                request_id=query.id,
                run=kept.run,
                query_id=query.id,
                query=query.text,
                index=bench.version.name,
                split="live",
                context=context,
            ),
        )
        for number, (query, context) in enumerate(zip(queries, contexts, strict=True))
    ]
    found: list[Expanded] = []
    for start in range(0, len(requests), 128):
        groups = generate_groups(
            requests[start : start + 128],
            sampler=version.sampler,
            tokenizer=version.tokenizer,
            tokenizer_sha256=version.tokenizer_sha256,
            prompts=settings.prompts,
            sampling=sampling,
            seed=kept.seed,
            made_at_ms=0,
        )
        for group in groups:
            text = group.completions[0].text
            parsed = parse_expansions(text, settings.environment.expansions)
            valid = isinstance(parsed, ParsedExpansions)
            found.append(
                Expanded(
                    query_id=group.request.query_id,
                    query=group.request.query,
                    expansions=parsed.expansions if isinstance(parsed, ParsedExpansions) else (),
                    valid=valid,
                    text=text,
                    policy=version_name(group.policy),
                )
            )
        report("expanding", len(found), len(requests))
    return found


def _neighbours(bench: Bench, kept: RunSettings) -> Neighbours:
    lessons = read_lessons(bench.app.home.run(kept.run) / LESSONS_FILE)
    return Neighbours(lessons, bench.embedder(), bench.app.settings.neighbours)
