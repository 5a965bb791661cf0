"""A run's dev queries: those of the index, and those that a user gave, which lie in the run's folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec

from infra.app.home import RunFolder
from infra.app.run_settings import RunSettings
from infra.app.settings import Settings
from infra.recipes.recipe import Judged, measures_dev
from learner.checkpoints import CheckpointError
from learner.versions import check_version
from search_env.catalogue.corpora import load_qrels, load_queries
from storage.evaluation.measures import is_measure
from storage.monitor.best import BestVersion
from streams.epochs import counted
from streams.errors import SettingsError
from streams.events import DevScore, PolicyRef, PolicyVersion
from streams.kafka_settings import KafkaSettings
from streams.names import is_version_name
from streams.ranges import read_events
from streams.topics import version_name
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
    """Copy a user's dev queries and judgments into the folder of a prepared run; a run that has some keeps them."""
    folder = run_dir.dev
    if files is None or folder.exists():
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    with whole_folder(folder) as aside:
        shutil.copyfile(files.queries, aside / f"{QUERIES}{files.queries.suffix}")
        shutil.copyfile(files.qrels, aside / f"{QRELS}{files.qrels.suffix}")


def dev_of(run_dir: RunFolder, files: DevFiles | None) -> Judged | None:
    """Return the user's dev queries of a run: those that it has, or else those of these files, or None.

    Raises SettingsError for files that hold something else than those that the run has.
    """
    kept = given_dev(run_dir)
    if files is None:
        return kept
    given = load_queries(files.queries), load_qrels(files.qrels)
    if kept is not None and given != kept:
        raise SettingsError(
            f"--dev-queries: expected the queries and judgments that run {run_dir.name!r} began with, which lie in "
            f"{run_dir.dev}, got others. Leave the two options out, or choose a new name with --run"
        )
    return given


def given_dev(run_dir: RunFolder) -> Judged | None:
    """Return the user's dev queries of a run, or None if it has none.

    Raises SettingsError if the run's folder of them holds other files than the two.
    """
    folder = run_dir.dev
    if not folder.is_dir():
        return None
    queries, qrels = list(folder.glob(f"{QUERIES}*")), list(folder.glob(f"{QRELS}*"))
    if len(queries) != 1 or len(qrels) != 1:
        found = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise SettingsError(
            f"{folder}: expected one file {QUERIES}… and one {QRELS}…, found {found}. Take away what does not "
            "belong there"
        )
    return load_queries(queries[0]), load_qrels(qrels[0])


def is_due(policy: PolicyRef, run: RunSettings) -> bool:
    """Return whether a version is to be measured: the first policy, every `dev.every`-th, and the last."""
    every = run.settings.dev.every
    return every > 0 and (policy.step % every == 0 or policy.step == run.updates)


class RunScores:
    """Tells which dev scores in the log are those of this run's evaluator, by the run's settings of now.

    Another run's, another index's or another measure's says nothing about this run's versions, nor does the score of a
    version that nobody announced.
    """

    def __init__(self, kafka: KafkaSettings, *, run: str, index: str, measure: str) -> None:
        self._kafka = kafka
        self._run = run
        self._ours = (run, index, measure)
        self._announced: set[PolicyRef] = set()

    def has(self, score: DevScore) -> bool:
        """Return whether a score counts; an unknown version is looked up among the announcements."""
        if (score.run, score.index, score.measure) != self._ours or not score.sets:
            return False
        if score.policy not in self._announced:
            announced = counted(read_events(self._kafka, self._run, PolicyVersion), run=self._run)
            self._announced = {event.policy for event in announced if event.run == self._run}
        return score.policy in self._announced


def why_unmeasurable(run_dir: RunFolder, policy: PolicyRef) -> str:
    """Return why no evaluator can measure a version, "" if one can: its checkpoint is gone, damaged or another's."""
    name = version_name(policy)
    if not is_version_name(name):
        return f"expected a version's name, got {name[:100]!r}"
    try:
        check_version(run_dir.checkpoints / name, policy)
    except CheckpointError as error:
        return str(error)
    return ""


def best_version(settings: Settings) -> BestVersion:
    """Return a count of dev scores, with nothing counted yet, by a run's settings."""
    return BestVersion(gain_min=settings.dev.gain_min, patience=settings.dev.patience)
