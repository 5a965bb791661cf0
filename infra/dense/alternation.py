"""ReSuMe's alternation: summariser and retriever in turn, over the same workers, until dev queries gain no more.

One turn is (1) GRPO of the summariser against the retriever of the turn before, as a run of its own that begins with
the policy where the turn before left it; (2) summaries of the whole corpus; (3) contrast: the retriever is
adapted to them; (4) vectors and RR@10 on dev queries. ReSuMe (WWW '26, doi:10.1145/3774904.3792959), algorithm 1.

Because a turn of the summariser is an ordinary run with one retriever version, verify, replay and reports hold for each
of them. What is done stands in `alternation.json`, written whole after each step: the same command goes on there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from infra.context import App
from infra.decoding import decode_requests
from infra.dense.answered import QUERIES_FILE, answered_queries, write_answered
from infra.dense.retrievers import adapt_to_texts, dense_search, first_retriever, open_encoder
from infra.dense.texts import texts_without_policy
from infra.progress import Report
from infra.run_settings import read_run_settings
from infra.running.runs import train_run
from infra.settings import Settings
from infra.tasks.resume import Resume, open_resume_environment, policy_texts
from infra.tasks.task import NewRun
from learner.checkpoints import copy_checkpoint, load_current
from learner.versions import LoadedVersion
from search_env.corpora import Qrels, Query, Ranking, write_whole
from search_env.intents import load_intents
from search_env.resume_environment import measured_deltas
from search_env.rewards.resume import spread_scale
from streams.codec import content_sha256, encode
from streams.errors import SettingsError
from streams.topics import version_name

STATE_FILE = "alternation.json"
CUTOFF = 10


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """One pair of turns as it was done. rr: mean RR@10 on dev queries, before and after the retriever's turn."""

    turn: int
    run: str
    scored_by: str
    edge_scale: float
    policy: str
    retriever: str
    rr_before: float
    rr: float


class Alternation(msgspec.Struct, frozen=True, kw_only=True):
    """What an alternation has done so far; ended says why it went no further, "" while it goes on."""

    name: str
    index: str
    seed: int
    first_retriever: str
    turns: tuple[Turn, ...] = ()
    ended: str = ""

    @property
    def best(self) -> Turn:
        """Return the turn with the highest RR@10 on dev queries, the earliest of equal ones."""
        return max(self.turns, key=lambda turn: turn.rr)


def alternate(
    app: App, *, recipe: str, index: str, seed: int, name: str, held_out: Sequence[Query], report: Report
) -> Alternation:
    """Take turns until dev queries gain less than `alternation.gain_min`, or `turns_max` is reached.

    Raises SettingsError if `name` was begun on another index or with another seed.
    """
    path = app.home.run(name) / STATE_FILE
    if path.is_file():
        state = read_alternation(path)
        if (state.index, state.seed) != (index, seed):
            raise SettingsError(
                f"alternation {name!r} was begun on index {state.index!r} with seed {state.seed}; give the same, "
                "or another --run NAME"
            )
    else:
        first = _first_version(app, index, held_out=held_out, seed=seed)
        state = Alternation(name=name, index=index, seed=seed, first_retriever=first)
        _keep(path, state)
    while not state.ended:
        turn = _take_turn(app, state, recipe=recipe, held_out=held_out, report=report)
        state = msgspec.structs.replace(state, turns=(*state.turns, turn))
        state = msgspec.structs.replace(state, ended=reason_to_end(state.turns, app.settings))
        _keep(path, state)
        report(f"turns: RR@10 on dev {turn.rr:.3f}", len(state.turns), app.settings.alternation.turns_max)
    return state


def reason_to_end(turns: Sequence[Turn], settings: Settings) -> str:
    """Return why no further turn is taken, or ""."""
    rules = settings.alternation
    if len(turns) >= rules.turns_max:
        return "turns_max was reached"
    best, failed = -1.0, 0
    for turn in turns:
        failed = 0 if turn.rr >= best + rules.gain_min else failed + 1
        best = max(best, turn.rr)
    return "dev queries gained no more" if failed >= rules.patience else ""


def read_alternation(path: Path) -> Alternation:
    """Return what an alternation has done. Raises SettingsError if there is none, or it is damaged."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Alternation)
    except (OSError, msgspec.DecodeError) as error:
        raise SettingsError(f"{path}: {error}. Start a new one with --run NAME") from error


def reciprocal_rank(rankings: Mapping[str, Ranking], qrels: Qrels) -> float:
    """Return mean RR@10 over the queries that have a relevant document."""
    found = []
    for query, grades in qrels.items():
        relevant = {document for document, grade in grades.items() if grade > 0}
        if relevant and query in rankings:
            ids = rankings[query].ids[:CUTOFF]
            found.append(next((1 / rank for rank, key in enumerate(ids, start=1) if key in relevant), 0.0))
    return sum(found) / len(found) if found else 0.0


def dev_reciprocal_rank(app: App, index: str, retriever: str, texts: Mapping[str, str], *, alias: str) -> float:
    """Return mean RR@10 of an index's dev queries among texts that stand for its documents; alias: of their vectors."""
    queries, qrels = load_intents(app.home.index(index) / "intents", "dev")
    rankings = dense_search(
        app,
        open_encoder(app, index, retriever),
        texts,
        queries,
        index=index,
        alias=alias,
        top=CUTOFF,
        settings=app.settings.vectors,
    )
    return reciprocal_rank(rankings, qrels)


def _first_version(app: App, index: str, *, held_out: Sequence[Query], seed: int) -> str:
    """Return the retriever version that scores the first turn, made as `alternation.begin` says."""
    first = first_retriever(app, index).name
    begin = app.settings.alternation.begin
    if begin == "nothing":
        return first
    texts = texts_without_policy(app, index, begin, seed=seed, held_out=held_out)
    return adapt_to_texts(app, index, parent=first, texts=texts, held_out=held_out, turn=0, seed=seed).name


def _take_turn(app: App, state: Alternation, *, recipe: str, held_out: Sequence[Query], report: Report) -> Turn:
    number = len(state.turns) + 1
    run = f"{state.name}-t{number}"
    scored_by = state.turns[-1].retriever if state.turns else state.first_retriever
    before = state.turns[-1].run if state.turns else None
    updates = number * app.settings.alternation.updates
    if (app.home.run(run) / "settings.json").is_file():
        turned = app.with_settings(read_run_settings(app.home.run(run)).settings)  # It was begun: with the same scale.
    else:
        turned = _begin_turn(app, state, run=run, before=before, scored_by=scored_by, held_out=held_out, report=report)
    train_run(
        turned,
        recipe=recipe,
        index=state.index,
        queries_file=None,
        held_out=held_out,
        updates=updates,
        seed=state.seed,
        run=run,
        report=lambda what, done, total: report(f"turn {number}, {what}", done, total),
    )
    kept = read_run_settings(app.home.run(run))
    texts = policy_texts(turned, kept, policy="latest", report=report)
    retriever = scored_by
    if app.settings.alternation.adapt:
        first = app.settings.alternation.adapt_from == "first"
        parent = first_retriever(app, state.index).name if first else scored_by
        retriever = adapt_to_texts(
            turned, state.index, parent=parent, texts=texts, held_out=held_out, turn=number, seed=state.seed + number
        ).name
    _, policy = load_current(app.home.run(run) / "checkpoints")
    return Turn(
        turn=number,
        run=run,
        scored_by=scored_by,
        edge_scale=turned.settings.resume.reward.edge_scale,
        policy=version_name(policy.policy),
        retriever=retriever,
        rr_before=dev_reciprocal_rank(turned, state.index, scored_by, texts, alias=f"{state.name}-vectors"),
        rr=dev_reciprocal_rank(turned, state.index, retriever, texts, alias=f"{state.name}-vectors"),
    )


def _begin_turn(
    app: App,
    state: Alternation,
    *,
    run: str,
    before: str | None,
    scored_by: str,
    held_out: Sequence[Query],
    report: Report,
) -> App:
    """Give the run of a turn its first policy, and return the app with the turn's retriever and edge scale."""
    changes: dict[str, object] = {"retriever": scored_by}
    turned = app.with_changes("the turn", {"resume": changes})
    run_dir = app.home.run(run)
    run_dir.mkdir(parents=True, exist_ok=True)
    if not (run_dir / QUERIES_FILE).is_file():
        write_answered(run_dir, answered_queries(app.home.index(state.index), held_out))
    if before is not None and not (run_dir / "checkpoints").is_dir():
        copy_checkpoint(*load_current(app.home.run(before) / "checkpoints"), run_dir / "checkpoints")
    if app.settings.alternation.measure_scale:
        scale = _measured_scale(turned, state, run=run, held_out=held_out, report=report)
        turned = app.with_changes("the turn", {"resume": {**changes, "reward": {"edge_scale": scale}}})
    return turned


def _measured_scale(app: App, state: Alternation, *, run: str, held_out: Sequence[Query], report: Report) -> float:
    """Return the edge scale that fits what the turn's first policy writes for some products."""
    settings = app.settings
    new = NewRun(run=run, index=state.index, seed=state.seed, held_out=held_out)
    prepared = Resume().prepare(app, new, report)
    run_dir = app.home.run(run)
    folder, manifest = load_current(run_dir / "checkpoints")
    some = prepared.asked[:: max(len(prepared.asked) // settings.alternation.measured_products, 1)]
    groups = decode_requests(
        some,
        LoadedVersion(folder, manifest.policy),
        encode=Resume().encoder(settings),
        sampling=settings.generation.sampling(),
        seed=state.seed,
        name="measuring the spread",
        report=report,
    )
    environment = open_resume_environment(app, state.index, run_dir, index_version=prepared.index)
    inputs = [(group, group.source, content_sha256(encode(group))) for group in groups]
    return round(spread_scale(measured_deltas(environment, inputs)), 6)


def _keep(path: Path, state: Alternation) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, msgspec.json.format(msgspec.json.encode(state)))
