"""The preparation of a LESER run: queries, contexts, a relevance model, a warmed-up policy.

Every result is a file under the home directory, so it is made once and found again. A continued run finds its own files
in its folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from infra.app.app import App
from infra.app.home import IndexFolder, RunFolder
from infra.app.interrupts import interrupts
from infra.app.progress import Report
from infra.app.run_settings import read_run_settings
from infra.recipes.asked_requests import AskedRequests
from infra.recipes.first_policy import first_policy
from infra.recipes.leser.gate import judge_run
from infra.recipes.leser.index import LeserIndex, open_leser_index
from infra.recipes.leser.judging import JUDGED, PAIRS, TITLES, Judge
from infra.recipes.leser.later import LaterContexts, require_same
from infra.recipes.leser.relevance import pinned
from infra.recipes.leser.teaching import teach, warm_up_policy
from infra.recipes.recipe import NewRun, Prepared
from learner.checkpoints import CURRENT
from learner.learning import write_first_checkpoint
from learner.policy import Policy, with_lora
from search_env.catalogue.analysis import plain_words
from search_env.catalogue.attributes import raw_attributes
from search_env.catalogue.corpora import Qrels, Query, load_queries, write_whole
from search_env.leser.lessons import head_lessons
from search_env.leser.teachers import write_lessons
from search_env.queries.intents import load_intents
from streams.errors import SettingsError
from streams.events import Context, Request
from streams.stopping import Stop

LESSONS_FILE = "lessons.jsonl"
CONTEXTS_FILE = "contexts.jsonl"


def prepare(app: App, new: NewRun, report: Report) -> Prepared:
    """Make or find everything that a run needs, and return its queries with their contexts.

    The intents of the index have judgments; a user's own training queries have none. Queries with the text of a
    held-out query are left out, here and among the lessons. A kind of query that the relevance model ranks worse than
    the raw order keeps its lessons, but gets no requests (see `gate`). A run that has a checkpoint keeps the policy,
    lessons and contexts that it began with.
    Raises SettingsError if there are no training queries, or if the run began with other ones.
    """
    run_dir, folder = app.home.run(new.run), app.home.index(new.index)
    began = read_run_settings(run_dir).settings if run_dir.settings_file.is_file() else None
    app = app.with_settings(pinned(folder, app.settings, began=began))
    with open_leser_index(folder, app.settings, app.engine, report) as opened:
        # Trees that were not there yet are trained by now.
        app = app.with_settings(pinned(folder, app.settings, began=began))
        qrels: Qrels = {}
        if new.queries_file is not None:
            queries = load_queries(new.queries_file)
        else:
            queries, qrels = load_intents(opened.directory.intents, "train")
        left_out = {plain_words(query.text) for query in new.held_out}
        queries = [query for query in queries if plain_words(query.text) not in left_out]
        if not queries:
            raise SettingsError(
                f"index {new.index!r} has no training queries; give some: searchloop train --queries FILE"
            )
        head = head_lessons(
            opened.catalogue,
            count=app.settings.lessons.head,
            seed=app.settings.lessons.seed,
            without=[query.text for query in new.held_out],
        )
        queries, later = queries[: app.settings.lessons.queries_max], queries[app.settings.lessons.queries_max :]
        # GRPO sees these phrases, too. Otherwise it unlearns to leave a query alone that ranks well as it is.
        phrases = [Query(id=lesson.query_id, text=lesson.query) for lesson in head]
        asked = [*queries, *phrases]
        kind_of_queries = PAIRS if new.queries_file is None else JUDGED
        kinds = {kind_of_queries: queries, TITLES: phrases}
        verdict = judge_run(
            run_dir,
            opened.directory,
            Judge(opened.searcher, opened.relevance, opened.catalogue),
            app.settings,
            [(kind, len(of)) for kind, of in kinds.items()],
            report=report,
        )
        closed = {each.kind for each in verdict.closed}
        trained = [query for kind, of in kinds.items() if kind not in closed for query in of]
        require_same(run_dir, later)
        waiting = Waiting([] if kind_of_queries in closed else later, app, folder, run_dir, report)
        if (run_dir.checkpoints / CURRENT).is_file():
            contexts = read_contexts(run_dir / CONTEXTS_FILE)
            if set(contexts) != {query.id for query in asked}:
                raise SettingsError(
                    f"run {new.run!r} began with other training queries ({len(contexts)}, now {len(asked)}). "
                    "Give the same --queries, or another --run NAME"
                )
            return _prepared(new.run, opened, trained, contexts, waiting)
        lessons = teach(opened, queries, head, qrels, report)
        run_dir.mkdir(parents=True, exist_ok=True)
        write_lessons(run_dir / LESSONS_FILE, lessons.look_up)
        policy = _first_policy(app, opened, run_dir, new.seed)
        if app.settings.train.warm_up:
            stop = Stop()
            with interrupts(stop):
                policy = warm_up_policy(opened, policy, lessons, run_dir, new.seed, report, stop)
        policy = with_lora(policy, app.settings.policy.lora)
        write_contexts(run_dir / CONTEXTS_FILE, lessons.contexts)
        write_first_checkpoint(run_dir.checkpoints, policy)
        return _prepared(new.run, opened, trained, lessons.contexts, waiting)


class Waiting(NamedTuple):
    """Queries whose contexts are built when it is their turn, and what that needs."""

    queries: Sequence[Query]
    app: App
    folder: IndexFolder
    run_dir: RunFolder
    report: Report


def _prepared(
    run: str, opened: LeserIndex, queries: Sequence[Query], contexts: Mapping[str, Context], waiting: Waiting
) -> Prepared:
    index, app = opened.version.name, waiting.app

    def request(query: Query, context: Context) -> Request:
        return Request(request_id="", run=run, query_id=query.id, query=query.text, index=index, context=context)

    asked: Sequence[Request] = [request(query, contexts[query.id]) for query in queries]
    if waiting.queries:
        later = LaterContexts(app, waiting.folder, waiting.run_dir, file=LESSONS_FILE, report=waiting.report)
        asked = AskedRequests(asked, waiting.queries, lambda query: request(query, later.context(query.text)))
    return Prepared(run=run, index=index, asked=asked, settings=app.settings)


def write_contexts(path: Path, contexts: Mapping[str, Context]) -> None:
    """Write contexts by query id, one JSON list a line; the file is whole or absent."""
    write_whole(path, msgspec.json.Encoder().encode_lines(list(contexts.items())))


def read_contexts(path: Path) -> dict[str, Context]:
    """Return contexts by query id.

    Raises SettingsError if the file is damaged.
    """
    try:
        return dict(msgspec.json.Decoder(tuple[str, Context]).decode_lines(path.read_bytes()))
    except (OSError, msgspec.DecodeError) as error:
        raise SettingsError(f"{path}: {error}. Start a new run with --run NAME") from error


def _first_policy(app: App, opened: LeserIndex, run_dir: RunFolder, seed: int) -> Policy:
    prompts = app.settings.prompts
    texts = (
        " ".join([document.title, document.text, *map(str, raw_attributes(document).values())])
        for document in opened.catalogue.documents
    )
    policy = first_policy(
        app.settings.policy,
        texts,
        pointers=prompts.pointers,
        policies=app.home.policies,
        run_dir=run_dir,
        seed=seed,
    )
    if prompts.select and policy.selector is None:
        raise SettingsError(
            f"prompts.select: expected a policy whose vocabulary has pointers, such as 'tiny', got "
            f"{app.settings.policy.base!r}"
        )
    return policy
