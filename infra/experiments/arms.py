"""Running an experiment: make the missing policies and rankings, and continue where it stopped.

Every finished part is a file under `experiments/NAME`: the plan, the record of each policy, and one TREC run file per
arm, seed and query set. A file is written completely or not at all, so an existing file marks a finished part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from infra.app.app import App
from infra.app.home import Home
from infra.app.layers import assignments_layer
from infra.app.progress import Report
from infra.app.run_settings import read_run_settings
from infra.experiments.making import Job, Made, by_hand, make
from infra.experiments.measuring import rank_run, without_run
from infra.experiments.plan import Arm, Plan
from infra.experiments.rankings import keep_rankings, row_file, set_names
from infra.recipes.recipe import GIVEN, Judged, Recipe, load_recipe
from search_env.catalogue.corpora import write_whole
from streams.errors import SettingsError

PLAN_FILE = "plan.json"


class Begun(msgspec.Struct, frozen=True, kw_only=True):
    """The start of an experiment; a folder never holds two experiments.

    plan: the plan of the last call; the arms of earlier calls follow its arms. judged: hash of the user's queries and
    judgments, "" if there are none; files: the two files of these.
    """

    plan: Plan
    index: str
    judged: str = ""
    files: tuple[str, ...] = ()


def begin(folder: Path, plan: Plan, *, index: str, given: Judged | None, files: tuple[str, ...] = ()) -> None:
    """Write the start of the experiment, or check that an existing one matches this call.

    given, files: the user's judged queries, and their files. A later call may add seeds, arms or judged queries. It
    must not change an arm that the folder already holds. Raises SettingsError if it does.
    """
    path = folder / PLAN_FILE
    judged = hashlib.sha256(msgspec.json.encode(given, order="deterministic")).hexdigest() if given else ""
    if path.is_file():
        before = read_begun(folder)
        kept = {arm.slug: arm for arm in before.plan.arms}  # The slug is in the names of the arm's files.
        changed = [arm.name for arm in plan.arms if _but_seeds(kept.get(arm.slug, arm)) != _but_seeds(arm)]
        same = (before.index, *_fixed(before.plan))
        if changed or same != (index, *_fixed(plan)):
            what = f"arm {changed[0]!r} differs" if changed else "index, recipe, updates, top or ranker differ"
            raise SettingsError(f"{folder} holds an experiment of that name in which {what}; choose another --into")
        if judged and before.judged not in ("", judged):
            raise SettingsError(f"{folder} holds an experiment with other judged queries; choose another --into")
        judged, files = (judged, files) if judged else (before.judged, before.files)
        earlier = [arm for slug, arm in kept.items() if slug not in {each.slug for each in plan.arms}]
        plan = msgspec.structs.replace(plan, arms=(*plan.arms, *earlier))
    begun = Begun(plan=plan, index=index, judged=judged, files=files)
    write_whole(path, msgspec.json.format(msgspec.json.encode(begun)))


def _fixed(plan: Plan) -> tuple[object, ...]:
    return plan.recipe, plan.updates, plan.top, plan.ranker


def _but_seeds(arm: Arm) -> Arm:
    return msgspec.structs.replace(arm, seeds=None)


def read_begun(folder: Path) -> Begun:
    """Return the start of the experiment in this folder."""
    return msgspec.json.decode((folder / PLAN_FILE).read_bytes(), type=Begun)


def run_arms(app: App, plan: Plan, *, name: str, index: str, given: Judged | None, report: Report) -> None:
    """Make and rank every unfinished arm with every seed. app: has the recipe's settings.

    given: the user's judged queries, which are also ranked and train nothing.
    """
    folder = app.home.experiment(name)
    for job in jobs(plan, name=name, index=index):
        if not made_file(folder, job).is_file():
            made = make(app, job, held_out=given[0] if given else (), report=report)
            write_whole(made_file(folder, job), msgspec.json.format(msgspec.json.encode(made)))
    rows = [(arm, seed) for arm in plan.arms for seed in plan.seeds_of(arm)]
    recipe = load_recipe(app.settings.train.recipe)
    for number, (arm, seed) in enumerate(rows):
        report("rankings", number, len(rows))
        if not _is_ranked(folder / "rankings", arm, seed, given):
            _rank(app, plan, arm, seed, recipe=recipe, name=name, index=index, given=given, report=report)
    report("rankings", len(rows), len(rows))


def jobs(plan: Plan, *, name: str, index: str) -> Iterator[Job]:
    """Yield a job for every policy that the plan needs."""
    for arm in plan.arms:
        if arm.train:
            for seed in plan.seeds_of(arm):
                yield Job(plan=plan, arm=arm, name=name, index=index, seed=seed)


def made_file(folder: Path, job: Job) -> Path:
    """Return the path of a policy's record."""
    return folder / "made" / f"{job.arm.slug}.{job.seed}.json"


def read_made(home: Home, job: Job) -> Made:
    """Return a policy's record."""
    return msgspec.json.decode(made_file(home.experiment(job.name), job).read_bytes(), type=Made)


def row_name(arm: Arm, seed: int) -> str:
    """Return the name of an arm's rankings with a seed."""
    return f"{arm.slug}.{seed}"


def commands(home: Home, plan: Plan, *, name: str, index: str) -> list[str]:
    """Return, in order, the commands that repeat the experiment by hand."""
    queries, *qrels = read_begun(home.experiment(name)).files or ("",)
    held_out = f" --held-out {queries}" if queries else ""
    judged = f" --queries {queries} --qrels {qrels[0]}" if queries else ""
    lines = [by_hand(job, held_out) for job in jobs(plan, name=name, index=index)]
    for arm in plan.arms:
        trainer = plan.trainer(arm)
        for seed in plan.seeds_of(arm):
            if trainer is None:
                run, change = "", (*arm.change, *plan.ranked_with)
                options = f" --recipe {plan.recipe} --index {index} --seed {seed}"
            else:
                made = read_made(home, Job(plan=plan, arm=trainer, name=name, index=index, seed=seed))
                run, change, options = (
                    made.run_with(home, arm.search),
                    (*made.change, *arm.change, *plan.ranked_with),
                    "",
                )
            options += "".join(f" --set {each}" for each in change)
            options += f" --temperature {arm.temperature:g}" if arm.temperature else ""
            options += judged
            lines.append(
                f"searchloop measure {run}:{arm.search}{options} --top {plan.top} --into {name} "
                f"--row {row_name(arm, seed)}"
            )
    base = plan.arm(plan.baseline)
    for set_name in set_names(home.experiment(name) / "rankings"):
        place = f"{name}/{set_name.replace(' ', '-')}"
        lines.append(
            f"searchloop evaluate {place}/*.run --qrels {place}/qrels.tsv "
            f"--baseline {place}/{row_name(base, plan.seeds_of(base)[0])}.run"
        )
    return lines


def _is_ranked(rankings: Path, arm: Arm, seed: int, given: Judged | None) -> bool:
    sets = set_names(rankings)
    if not sets or (given and GIVEN not in sets):
        return False
    return all(row_file(rankings, each, row_name(arm, seed)).is_file() for each in sets)


def _rank(
    app: App,
    plan: Plan,
    arm: Arm,
    seed: int,
    *,
    recipe: Recipe,
    name: str,
    index: str,
    given: Judged | None,
    report: Report,
) -> None:
    trainer, needed = plan.trainer(arm), tuple[str, ...]()
    if trainer is None:
        kept = without_run(app, recipe=plan.recipe, index=index, seed=seed)
    else:
        made = read_made(app.home, Job(plan=plan, arm=trainer, name=name, index=index, seed=seed))
        kept, needed = read_run_settings(app.home.run(made.run_with(app.home, arm.search))), made.change
    ranked = rank_run(
        app,
        kept,
        policy=arm.search,
        given=given,
        changes=assignments_layer((*needed, *arm.change, *plan.ranked_with)),
        temperature=arm.temperature,
        top=plan.top,
        report=report,
        recipe=recipe,
    )
    keep_rankings(app.home.experiment(name) / "rankings", row_name(arm, seed), ranked)
