"""The ways to make an arm's policy: by a run's updates, by DPO on another run's groups, or by turns.

Each way also gives its command for use by hand, and continues where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from infra.app.app import App
from infra.app.home import Home
from infra.app.layers import assignments_layer
from infra.app.progress import Report
from infra.experiments.plan import Arm, Plan
from infra.recipes.recipe import NewRun, partner_of
from infra.runs.alternation import Alternation, alternate
from infra.runs.preferring import prefer_run
from infra.runs.training_runs import train_run
from learner.checkpoints import CheckpointError, load_current
from learner.versions import find_version
from search_env.catalogue.corpora import Query
from services.private_variables import PREFIX

Points = tuple[tuple[float, float], ...]


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One policy to make: for an arm of an experiment, on an index, with a seed."""

    plan: Plan
    arm: Arm
    name: str
    index: str
    seed: int

    @property
    def run(self) -> str:
        """Return the name of the new run, or the common prefix of the names of its runs."""
        return run_name(self.name, self.arm, self.seed)

    @property
    def start(self) -> str | None:
        """Return the name of the run whose policy this one starts from."""
        start = self.arm.train.start if self.arm.train else None
        return run_name(self.name, self.plan.arm(start), self.seed) if start else None


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """The record of a policy. runs: the runs, in order, whose logs hold its training. answers: the run that ranks.

    change: settings that its rankings need. curves: values that no run's log holds, {what: (place, value) points}.
    """

    runs: tuple[str, ...]
    answers: str
    change: tuple[str, ...] = ()
    curves: dict[str, Points] = {}

    def run_with(self, home: Home, policy: str) -> str:
        """Return the first run that has this version; for other names, return the run that ranks."""
        for run in self.runs if policy != "latest" else ():
            try:
                find_version(home.run(run).checkpoints, policy)
            except CheckpointError:
                continue
            return run
        return self.answers


class Way(NamedTuple):
    """One way to make a policy: its function, its command for use by hand, and whether that takes --held-out."""

    make: Callable[[App, Job, Sequence[Query], Report], Made]
    by_hand: Callable[[Job], str]
    leaves_out: bool = True


def make(app: App, job: Job, *, held_out: Sequence[Query], report: Report) -> Made:
    """Make the missing parts of an arm's policy. app: has the recipe's settings."""
    training = job.arm.train
    assert training is not None
    changed = app.with_changes(f"arm {job.arm.name!r}", assignments_layer(training.change))
    return WAYS[training.by].make(
        changed,
        job,
        held_out,
        lambda what, done, total: report(f"{job.arm.name}, seed {job.seed}, {what}", done, total),
    )


def by_hand(job: Job, held_out: str) -> str:
    """Return the command that makes this policy. held_out: the option that keeps queries out of all training."""
    training = job.arm.train
    assert training is not None
    way = WAYS[training.by]
    words = [*map(variable, training.change), way.by_hand(job) + (held_out if way.leaves_out else "")]
    return " ".join(words)


def run_name(name: str, trainer: Arm, seed: int) -> str:
    """Return the name of the training run of an arm with a seed."""
    return f"{name}-{trainer.slug}-{seed}"


def variable(change: str) -> str:
    """Return the environment variable, with its value, of a change."""
    path, _, value = change.partition("=")
    return f"{PREFIX}{path.replace('.', '__').upper()}={value}"


def _update(app: App, job: Job, held_out: Sequence[Query], report: Report) -> Made:
    made = Made(runs=(job.run,), answers=job.run)
    updates = job.plan.updates or app.settings.train.updates
    try:
        if load_current(app.home.run(job.run).checkpoints)[1].policy.step >= updates:
            return made
    except CheckpointError:
        pass  # Not started, or not warmed up yet.
    train_run(
        app,
        NewRun(run=job.run, index=job.index, seed=job.seed, held_out=held_out),
        recipe=job.plan.recipe,
        updates=updates,
        report=report,
        from_run=job.start,
    )
    return made


def _update_by_hand(job: Job) -> str:
    updates = f" --updates {job.plan.updates}" if job.plan.updates else ""
    start = f" --from {job.start}" if job.start else ""
    return (
        f"searchloop train --recipe {job.plan.recipe} --index {job.index} --seed {job.seed}{updates}{start} "
        f"--run {job.run}"
    )


def _prefer(app: App, job: Job, held_out: Sequence[Query], report: Report) -> Made:
    assert job.start is not None  # The plan's check guarantees it.
    if not app.home.run(job.run).is_dir():
        prefer_run(app, run=job.start, into=job.run, report=report)
    return Made(runs=(job.run,), answers=job.run)


def _prefer_by_hand(job: Job) -> str:
    return f"searchloop train --prefer-from {job.start} --run {job.run}"


def _take_turns(app: App, job: Job, held_out: Sequence[Query], report: Report) -> Made:
    if job.plan.updates:
        app = app.with_changes("updates", {"alternation": {"updates": job.plan.updates}})
    state = alternate(
        app,
        partner_of(app.settings.train.recipe),
        recipe=job.plan.recipe,
        index=job.index,
        seed=job.seed,
        name=job.run,
        held_out=held_out,
        report=report,
    )
    return made_by_turns(state)


def made_by_turns(state: Alternation) -> Made:
    """Return the record of turns: the best turn ranks, with the partner's version at its end."""
    told = {name for turn in state.turns for name in turn.told}
    return Made(
        runs=tuple(turn.run for turn in state.turns),
        answers=state.best.run,
        change=(f"{state.setting}={state.best.adapted}",),
        curves={
            f"{state.measure} on dev queries after each turn": _points({turn.turn: turn.after for turn in state.turns}),
            **{
                f"{name} of each turn": _points({turn.turn: turn.told[name] for turn in state.turns})
                for name in sorted(told)
            },
        },
    )


def _points(values: Mapping[int, float]) -> Points:
    return tuple((float(place), value) for place, value in values.items())


def _take_turns_by_hand(job: Job) -> str:
    updates = f"{variable(f'alternation.updates={job.plan.updates}')} " if job.plan.updates else ""
    return (
        f"{updates}searchloop alternate --recipe {job.plan.recipe} --index {job.index} --seed {job.seed} "
        f"--run {job.run}"
    )


WAYS: Mapping[str, Way] = {
    "updates": Way(_update, _update_by_hand),
    "preferences": Way(_prefer, _prefer_by_hand, leaves_out=False),
    "turns": Way(_take_turns, _take_turns_by_hand),
}
