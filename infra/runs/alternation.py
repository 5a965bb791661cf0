"""Alternation of a summarizer and its partner, over the same workers, until dev queries gain no more.

One turn has four steps:
(1) GRPO trains the summarizer against the partner's version of the turn before. This is a run of its own, which begins
with the policy of the turn before.
(2) The policy writes summaries.
(3) The partner is adapted to them, which makes its next version.
(4) Dev queries are measured.
With a retriever this is ReSuMe's algorithm 1 (WWW '26, doi:10.1145/3774904.3792959). With a cross-encoder it is the
next step that ReLSum's authors name in their conclusion (arXiv:2508.08404).

A turn of the summarizer is an ordinary run with one version of the partner. Verify, replay and reports therefore hold
for it. `alternation.json` keeps the finished turns and is written whole after each one; the same command goes on there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from infra.app.app import App
from infra.app.layers import assignments_layer
from infra.app.progress import Report
from infra.app.run_settings import read_run_settings
from infra.app.settings import Settings
from infra.recipes.recipe import NewRun, Partner
from infra.runs.bases import carry_base
from infra.runs.training_runs import check_trainable, train_run
from learner.checkpoints import copy_checkpoint, load_current
from search_env.catalogue.corpora import Query, write_whole
from streams.errors import SettingsError
from streams.topics import version_name

STATE_FILE = "alternation.json"


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """One turn of the summarizer and its partner.

    scored_by: the partner's version that rewarded the summarizer. adapted: the version adapted to the summaries.
    before, after: the partner's measure on dev queries, with the former and the latter. told: the partner's other
    values for the turn, by name.
    """

    turn: int
    run: str
    policy: str
    scored_by: str
    adapted: str
    before: float
    after: float
    told: dict[str, float] = {}


class Alternation(msgspec.Struct, frozen=True, kw_only=True):
    """The state of an alternation.

    setting: the setting that names the partner's version, as TABLE.KEY. measure: of dev queries. first: the partner's
    first version. ended: the reason for the end, "" while it goes on.
    """

    name: str
    index: str
    seed: int
    setting: str
    measure: str
    first: str
    turns: tuple[Turn, ...] = ()
    ended: str = ""

    @property
    def best(self) -> Turn:
        """The turn with the highest measure on dev queries, the earliest of equal ones."""
        return max(self.turns, key=lambda turn: turn.after)


def alternate(
    app: App,
    partner: Partner,
    *,
    recipe: str,
    index: str,
    seed: int,
    name: str,
    held_out: Sequence[Query],
    report: Report,
) -> Alternation:
    """Take turns until dev queries gain less than `alternation.gain_min`, or `turns_max` is reached.

    Raises SettingsError if `name` was begun on another index or with another seed. It also raises as `check_trainable`
    does, before the partner's first version is made.
    """
    check_trainable(app.settings)
    path = app.home.run(name) / STATE_FILE
    if path.is_file():
        state = read_alternation(path)
        if (state.index, state.seed) != (index, seed):
            raise SettingsError(
                f"alternation {name!r} was begun on index {state.index!r} with seed {state.seed}; give the same, "
                "or another --run NAME"
            )
    else:
        first = partner.first(app, index, held_out=held_out, seed=seed, report=report)
        state = Alternation(
            name=name, index=index, seed=seed, setting=partner.setting, measure=partner.measure, first=first
        )
        _keep(path, state)
    while not state.ended:
        turn = _take_turn(app, partner, state, recipe=recipe, held_out=held_out, report=report)
        state = msgspec.structs.replace(state, turns=(*state.turns, turn))
        state = msgspec.structs.replace(state, ended=reason_to_end(state.turns, app.settings))
        _keep(path, state)
        report(f"turns: {state.measure} on dev {turn.after:.3f}", len(state.turns), app.settings.alternation.turns_max)
    return state


def reason_to_end(turns: Sequence[Turn], settings: Settings) -> str:
    """Return the reason for taking no further turn, or "" if there is none."""
    rules = settings.alternation
    if len(turns) >= rules.turns_max:
        return "turns_max was reached"
    best, failed = -1.0, 0
    for turn in turns:
        failed = 0 if turn.after >= best + rules.gain_min else failed + 1
        best = max(best, turn.after)
    return "dev queries gained no more" if failed >= rules.patience else ""


def read_alternation(path: Path) -> Alternation:
    """Return the state of an alternation. Raises SettingsError if the file is missing or damaged."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Alternation)
    except (OSError, msgspec.DecodeError) as error:
        raise SettingsError(f"{path}: {error}. Start a new one with --run NAME") from error


def _take_turn(
    app: App, partner: Partner, state: Alternation, *, recipe: str, held_out: Sequence[Query], report: Report
) -> Turn:
    number = len(state.turns) + 1
    run = f"{state.name}-t{number}"
    scored_by = state.turns[-1].adapted if state.turns else state.first

    def told(what: str, done: int, total: int) -> None:
        report(f"turn {number}, {what}", done, total)

    if (app.home.run(run) / "settings.json").is_file():
        turned = app.with_settings(read_run_settings(app.home.run(run)).settings)  # It has begun: its settings stay.
    else:
        turned = _begin_turn(app, partner, state, run=run, scored_by=scored_by, held_out=held_out, report=told)
    train_run(
        turned,
        NewRun(run=run, index=state.index, seed=state.seed, held_out=held_out),
        recipe=recipe,
        updates=number * app.settings.alternation.updates,
        report=told,
    )
    texts = partner.texts(turned, read_run_settings(app.home.run(run)), told)
    adapted = scored_by
    if app.settings.alternation.adapt:
        adapted = partner.adapt(
            turned,
            state.index,
            parent=partner.original(app, state.index) if app.settings.alternation.adapt_from == "first" else scored_by,
            texts=texts,
            held_out=held_out,
            turn=number,
            seed=state.seed + number,
            report=told,
        )
    before, after = (
        partner.measured(turned, state.index, version, texts, name=state.name, report=told)
        for version in (scored_by, adapted)
    )
    _, policy = load_current(app.home.run(run).checkpoints)
    return Turn(
        turn=number,
        run=run,
        policy=version_name(policy.policy),
        scored_by=scored_by,
        adapted=adapted,
        before=before,
        after=after,
        told=partner.told(turned.settings),
    )


def _begin_turn(
    app: App,
    partner: Partner,
    state: Alternation,
    *,
    run: str,
    scored_by: str,
    held_out: Sequence[Query],
    report: Report,
) -> App:
    """Give a turn's run its first policy, and return the app with the turn's version of the partner."""
    turned = app.with_changes("the turn", assignments_layer([f"{state.setting}={scored_by}"]))
    run_dir = app.home.run(run)
    if state.turns and not (run_dir.checkpoints).is_dir():
        run_dir.mkdir(parents=True, exist_ok=True)
        before = app.home.run(state.turns[-1].run)
        folder, manifest = load_current(before.checkpoints)
        carry_base(folder, before, run_dir)
        copy_checkpoint(folder, manifest, run_dir.checkpoints)
    return partner.settle(turned, NewRun(run=run, index=state.index, seed=state.seed, held_out=held_out), report)


def _keep(path: Path, state: Alternation) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, msgspec.json.format(msgspec.json.encode(state)))
