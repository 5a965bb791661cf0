"""Doing an experiment: train what is not trained, search what is not searched, and go on where it was stopped.

Everything that is done is a file under `experiments/NAME`: the plan, and one TREC run per arm, seed and query set. A
file is written whole or not at all, so what is there is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from infra.context import App
from infra.experiments.plan import Arm, Plan
from infra.layers import PREFIX, assignments_layer
from infra.progress import Report
from infra.runs import train_run
from infra.searching import search_queries
from learner.checkpoints import CheckpointError, load_current
from search_env.corpora import Qrels, Query, read_run, write_run, write_whole
from search_env.intents import load_intents
from streams.errors import SettingsError

PLAN_FILE = "plan.json"
INTENT_SPLITS = {"test_pair": "held-out value pairs", "test_value": "held-out values"}


class QuerySet(msgspec.Struct, frozen=True, kw_only=True):
    """Judged queries that train nothing."""

    name: str
    queries: Sequence[Query]
    qrels: Qrels


class Begun(msgspec.Struct, frozen=True, kw_only=True):
    """What an experiment was begun with; the same folder never holds two."""

    plan: Plan
    index: str
    sets: tuple[str, ...]


def query_sets(app: App, index: str, given: QuerySet | None) -> list[QuerySet]:
    """Return the sets to measure on: the index's held-out intents, and the user's judged queries.

    Raises SettingsError if there is none.
    """
    folder = app.home.index(index) / "intents"
    sets = [given] if given else []
    for split, name in INTENT_SPLITS.items():
        if (folder / f"queries.{split}.jsonl").is_file():
            queries, qrels = load_intents(folder, split)
            if queries and qrels:
                sets.insert(len(sets) - bool(given), QuerySet(name=name, queries=queries, qrels=qrels))
    if not sets:
        raise SettingsError(f"index {index!r} has no judged held-out queries; give some: --queries FILE --qrels FILE")
    return sets


def begin(folder: Path, plan: Plan, *, index: str, sets: Sequence[QuerySet]) -> None:
    """Keep what the experiment was begun with, or see that it is the same that is asked for now.

    More seeds or arms may be asked for later; what is kept of an arm may not change. Raises SettingsError if it does.
    """
    path = folder / PLAN_FILE
    asked = Begun(plan=plan, index=index, sets=tuple(each.name for each in sets))
    if path.is_file():
        before = msgspec.json.decode(path.read_bytes(), type=Begun)
        arms = {arm.name: arm for arm in before.plan.arms}
        changed = [arm.name for arm in plan.arms if arms.get(arm.name, arm) != arm]
        same = (before.index, before.plan.recipe, before.plan.updates, before.plan.top)
        if changed or same != (index, plan.recipe, plan.updates, plan.top):
            what = f"arm {changed[0]!r} was another one" if changed else "index, recipe, updates or top were others"
            raise SettingsError(f"{folder} holds an experiment of that name, in which {what}; choose another --into")
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(path, msgspec.json.format(msgspec.json.encode(asked)))


def run_arms(
    app: App,
    plan: Plan,
    *,
    name: str,
    index: str,
    sets: Sequence[QuerySet],
    held_out: Sequence[Query],
    report: Report,
) -> None:
    """Train and search every arm with every seed, as far as it is not done.

    held_out: queries that must not train anything.
    """
    for arm in plan.arms:
        for seed in plan.seeds_of(arm):
            if arm.train:
                _train(app, plan, arm, name=name, index=index, seed=seed, held_out=held_out, report=report)
    jobs = [(arm, seed, each) for arm in plan.arms for seed in plan.seeds_of(arm) for each in sets]
    for number, (arm, seed, each) in enumerate(jobs):
        report("searches", number, len(jobs))
        path = run_file(app.home.experiment(name), arm, seed, each.name)
        if path.is_file():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        trainer = plan.trainer(arm)
        rankings = search_queries(
            app,
            each.queries,
            index=index,
            policy=arm.search,
            run=run_name(name, trainer, seed) if trainer else None,
            top=plan.top,
            report=report,
            temperature=arm.temperature,
        )
        write_run(path, rankings, tag=arm.slug)
    report("searches", len(jobs), len(jobs))


def run_name(name: str, trainer: Arm, seed: int) -> str:
    """Return the name of the training run of an arm with a seed."""
    return f"{name}-{trainer.slug}-{seed}"


def run_file(folder: Path, arm: Arm, seed: int, set_name: str) -> Path:
    """Return where the ranking of an arm with a seed on a set lies."""
    return folder / "rankings" / set_name.replace(" ", "-") / f"{arm.slug}.{seed}.run"


def read_scores(path: Path) -> dict[str, dict[str, float]]:
    """Return a run file as {query: {document: score}}."""
    return {query: dict(zip(ranking.ids, ranking.scores, strict=True)) for query, ranking in read_run(path).items()}


def commands(plan: Plan, *, name: str, index: str) -> list[str]:
    """Return the commands that do by hand what the experiment does, in order."""
    lines = []
    for arm in plan.arms:
        if arm.train is None:
            continue
        changes = " ".join(_variables(arm))
        for seed in plan.seeds_of(arm):
            start = f" --from {run_name(name, plan.arm(arm.train.start), seed)}" if arm.train.start else ""
            updates = f" --updates {plan.updates}" if plan.updates else ""
            lines.append(
                f"{changes} searchloop train --recipe {plan.recipe} --index {index} --seed {seed}{updates}{start} "
                f"--run {run_name(name, arm, seed)}".strip()
            )
    for arm in plan.arms:
        trainer = plan.trainer(arm)
        for seed in plan.seeds_of(arm):
            run = f" --run {run_name(name, trainer, seed)}" if trainer else ""
            temperature = f" --temperature {arm.temperature:g}" if arm.temperature else ""
            lines.append(
                f"searchloop search --index {index} --queries SET.jsonl --policy {arm.search}{run}{temperature} "
                f"--top {plan.top} --run-file {arm.slug}.{seed}.run"
            )
    lines.append(f"searchloop evaluate *.run --qrels SET.tsv --baseline {plan.arm(plan.baseline).slug}.SEED.run")
    return lines


def _variables(arm: Arm) -> list[str]:
    """Return the changes of an arm as the environment variables that make them."""
    found = []
    for change in arm.train.change if arm.train else ():
        path, _, value = change.partition("=")
        found.append(f"{PREFIX}{path.replace('.', '__').upper()}={value}")
    return found


def _train(
    app: App,
    plan: Plan,
    arm: Arm,
    *,
    name: str,
    index: str,
    seed: int,
    held_out: Sequence[Query],
    report: Report,
) -> None:
    assert arm.train is not None
    run = run_name(name, arm, seed)
    changed = app.with_changes(f"arm {arm.name!r}", assignments_layer(arm.train.change))
    updates = plan.updates or changed.settings.train.updates
    try:
        if load_current(app.home.run(run) / "checkpoints")[1].policy.step >= updates:
            return
    except CheckpointError:
        pass  # Not begun, or not even warmed up.
    start = run_name(name, plan.arm(arm.train.start), seed) if arm.train.start else None
    train_run(
        changed,
        recipe=plan.recipe,
        index=index,
        queries_file=None,
        held_out=held_out,
        updates=updates,
        seed=seed,
        run=run,
        report=lambda what, done, total: report(f"{arm.name}, seed {seed}, {what}", done, total),
        from_run=start,
    )
