"""A run's dev queries: those of the index, and those that a user gave, which lie in the run's folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec

from infra.app.home import RunFolder
from infra.app.run_settings import RunSettings
from infra.app.settings import Settings
from infra.recipes.recipe import Judged, measures_dev
from search_env.catalogue.corpora import load_qrels, load_queries
from storage.evaluation.measures import is_measure
from storage.monitor.best import BestVersion
from streams.errors import SettingsError
from streams.events import PolicyRef
from streams.whole_file import whole_folder

QUERIES, QRELS = "queries", "qrels"  # Their endings are those of the user's files, which say how they are packed.


class DevFiles(msgspec.Struct, frozen=True, kw_only=True):
    """The files of a user's own judged dev queries."""

    queries: Path
    qrels: Path


def check_dev(settings: Settings) -> None:
    """Raise SettingsError for settings by which no version could be measured, before anything is made for a run."""
    dev = settings.dev
    if not dev.every:
        if dev.patience:
            raise SettingsError(
                f"dev.patience: expected 0 while dev.every is 0, got {dev.patience}: nothing is measured. Set dev.every"
            )
        return
    if dev.every % settings.learner.keep_every:
        raise SettingsError(
            f"dev.every: expected a multiple of learner.keep_every ({settings.learner.keep_every}), got {dev.every}: "
            "the learner deletes the other versions, perhaps before they are measured. Set both to the same number"
        )
    measures_dev(settings.train.recipe)
    if not is_measure(dev.measure):
        raise SettingsError(
            f"dev.measure: expected a measure as `evaluate` names it, such as nDCG@10, got {dev.measure!r}"
        )


def keep_dev_files(run_dir: RunFolder, files: DevFiles | None) -> None:
    """Copy a user's dev queries and judgments into the run's folder; a run that has some keeps them."""
    folder = run_dir.dev
    if files is None or folder.exists():
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    with whole_folder(folder) as aside:
        shutil.copyfile(files.queries, aside / f"{QUERIES}{files.queries.suffix}")
        shutil.copyfile(files.qrels, aside / f"{QRELS}{files.qrels.suffix}")


def given_dev(run_dir: RunFolder) -> Judged | None:
    """Return the user's dev queries of a run, or None if it has none."""
    folder = run_dir.dev
    if not folder.is_dir():
        return None
    (queries,), (qrels,) = folder.glob(f"{QUERIES}*"), folder.glob(f"{QRELS}*")
    return load_queries(queries), load_qrels(qrels)


def is_due(policy: PolicyRef, run: RunSettings) -> bool:
    """Return whether a version is to be measured: the first policy, every `dev.every`-th, and the last."""
    every = run.settings.dev.every
    return every > 0 and (policy.step % every == 0 or policy.step == run.updates)


def best_version(settings: Settings) -> BestVersion:
    """Return a count of dev scores, with nothing counted yet, by a run's settings."""
    return BestVersion(gain_min=settings.dev.gain_min, patience=settings.dev.patience)
