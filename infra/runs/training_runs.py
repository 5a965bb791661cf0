"""A run from its preparation to its summary: prepare, keep the settings, stream."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Sequence

import msgspec

from infra.app.app import App
from infra.app.home import SETTINGS_FILE, RunFolder
from infra.app.progress import Report
from infra.app.run_settings import RunSettings, read_run_settings, write_run_settings
from infra.app.settings import Settings
from infra.recipes.recipe import NewRun, Prepared, load_recipe
from infra.runs.bases import carry_base
from infra.runs.dev import DevFiles, check_dev, dev_of, keep_dev_files
from infra.runs.environments import open_environment
from infra.runs.loop import run_loop
from infra.runs.serving import check_backend
from infra.runs.sharing import fetch_ledger, fetch_policy, fetch_run, is_shared
from infra.runs.training import TrainingSummary, stream
from learner.checkpoints import CURRENT
from learner.lock import only_learner
from learner.objectives import check_objective
from learner.versions import find_version
from storage.archive import ARCHIVE
from storage.ledger import LEDGER
from streams.errors import SettingsError
from streams.events import Update
from streams.provisioning import WITNESS
from streams.requests import RequestSequence
from streams.topics import version_name
from streams.whole_file import whole_folder


def check_trainable(settings: Settings) -> None:
    """Raise SettingsError for settings with which no run can train, before anything is made for one."""
    check_backend(settings)
    check_dev(settings)
    check_objective(settings.learner.objective)


def train_run(
    app: App,
    new: NewRun,
    *,
    recipe: str,
    updates: int,
    report: Report,
    from_run: str | None = None,
    dev_files: DevFiles | None = None,
    elsewhere: Collection[str] = (),
) -> TrainingSummary:
    """Train one run up to `updates` steps; the same name goes on where it stopped.

    from_run: the run whose warmed-up policy and carried files the new run begins with, instead of making new ones (for
    arms of one experiment that differ only in GRPO).
    dev_files: the user's own judged queries. The evaluator measures them beside the index's dev queries, and they train
    nothing either.
    elsewhere: as in `stream`.
    """
    recipe_of_run = load_recipe(app.settings.train.recipe)
    check_trainable(app.settings)
    run_dir = app.home.run(new.run)
    # Each fetches only what this machine lacks. A machine that has worked for the run has its folder, and no policy.
    if app.store is not None and is_shared(app, new.run):
        fetch_run(app, new.run, report)
        fetch_policy(app, new.run)
        fetch_ledger(app, new.run, report)
    _check_kind(run_dir, streamed=True)
    if from_run is not None and not run_dir.exists():
        read_run_settings(app.home.run(from_run))  # If there is no such run, the error lists the existing ones.
        copy_warmed_up(app.home.run(from_run), run_dir, carried=recipe_of_run.carried)
    if (given := dev_of(run_dir, dev_files)) is not None:
        new = msgspec.structs.replace(new, held_out=[*new.held_out, *given[0]])
    prepared = recipe_of_run.prepare(app, new, report)
    keep_dev_files(run_dir, dev_files)
    _keep_settings(app, prepared, new, recipe=recipe, updates=updates)
    return stream(app, prepared, updates=updates, seed=new.seed, report=report, elsewhere=elsewhere)


def loop_run(app: App, new: NewRun, *, recipe: str, updates: int, report: Report) -> Iterator[Update]:
    """Train a run in this process, one update after the other, and yield each update; nothing reaches Kafka or a log.

    Raises SettingsError for a policy at a vLLM server, which only a run with workers starts, and for a run that was
    streamed: its next updates would be missing from its log. Raises DeliveryError if another process trains this run.
    """
    settings = app.settings
    check_trainable(settings)
    run_dir = app.home.run(new.run)
    _check_kind(run_dir, streamed=False)
    if settings.generation.backend == "vllm":
        raise SettingsError("generation.backend: expected transformers for a loop in one process, got vllm")
    made = load_recipe(settings.train.recipe)
    prepared = made.prepare(app, new, report)
    kept = _keep_settings(app, prepared, new, recipe=recipe, updates=updates, streamed=False)
    sequence = RequestSequence(prepared.asked, run=new.run, seed=new.seed)
    with only_learner(run_dir), open_environment(app, kept, report) as environment:
        yield from run_loop(
            [sequence[number] for number in range(updates * settings.batch.groups)],
            run=new.run,
            run_dir=run_dir,
            environment=environment,
            generation=settings.generation,
            encode_prompt=made.encoder(settings),
            batch=settings.batch,
            learner=settings.learner,
            seed=new.seed,
        )


def _check_kind(run_dir: RunFolder, *, streamed: bool) -> None:
    """Raise SettingsError if the folder holds a run of the other kind, or a log that no training made."""
    log = [name for name in (WITNESS, LEDGER, ARCHIVE) if (run_dir / name).exists()]
    if log and not (run_dir / SETTINGS_FILE).exists():
        raise SettingsError(
            f"run {run_dir.name!r} holds a log and no policy ({', '.join(log)} in {run_dir}): it was imported or "
            "copied. Choose a new name with --run"
        )
    if not (run_dir / SETTINGS_FILE).exists() or read_run_settings(run_dir).streamed == streamed:
        return
    if streamed:
        was, verb = "run by `searchloop loop`, which keeps no log to go on from", "loop"
    else:
        was, verb = "streamed, and its next updates would be missing from its log", "train"
    raise SettingsError(
        f"run {run_dir.name!r} was {was}. Choose a new name with --run, or go on with: searchloop {verb} "
        f"--run {run_dir.name}"
    )


def copy_warmed_up(source: RunFolder, target: RunFolder, *, carried: Sequence[str]) -> None:
    """Copy a run's beginning, its recipe's files and checkpoint 0, as the whole of a new run.

    Raises CheckpointError if the source has no checkpoint 0.
    """
    first, manifest = find_version(source.checkpoints, "0")
    with whole_folder(target) as aside:
        made = RunFolder(aside)
        carry_base(first, source, made)
        shutil.copytree(first, made.checkpoints / first.name)
        (made.checkpoints / CURRENT).write_text(version_name(manifest.policy) + "\n")
        for name in carried:
            shutil.copy2(source / name, aside / name)


def _keep_settings(
    app: App, prepared: Prepared, new: NewRun, *, recipe: str, updates: int, streamed: bool = True
) -> RunSettings:
    """Write the settings of a prepared run into its folder, and return them."""
    kept = RunSettings(
        run=prepared.run,
        recipe=recipe,
        index=new.index,
        index_version=prepared.index,
        seed=new.seed,
        updates=updates,
        settings=prepared.settings or app.settings,
        streamed=streamed,
    )
    write_run_settings(app.home.run(prepared.run), kept)
    return kept
