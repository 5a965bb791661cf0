"""The DPO arm: a new run whose policy learns from preferences among another run's logged groups."""

from __future__ import annotations

import shutil

import msgspec

from infra.app.app import App
from infra.app.home import RunFolder
from infra.app.progress import Report
from infra.app.run_settings import read_run_settings, write_run_settings
from infra.recipes.recipe import load_recipe
from infra.runs.bases import carry_base
from learner.learning import write_first_checkpoint
from learner.policy import load_policy
from learner.preference import PreferenceSettings, prefer, preferences
from learner.versions import find_version
from storage.log import open_log
from streams.errors import SettingsError
from streams.events import Reward
from streams.whole_file import whole_folder


def prefer_run(app: App, *, run: str, into: str, report: Report) -> int:
    """Train the run's checkpoint 0 on preferences among its logged groups, and return the number of pairs.

    The result is checkpoint 0 of a new run, which is there whole or not at all.
    Raises SettingsError if the new run exists already, PreferenceError if no group has a best and a worst text.
    """
    source, target = app.home.existing_run(run), app.home.run(into)
    if target.exists():
        raise SettingsError(f"run {into!r}: expected a new run, got one that is there already. Give another name")
    kept = read_run_settings(source)
    asked = app.settings.preference
    settings = kept.settings.preference if asked == PreferenceSettings() else asked
    folder, _ = find_version(source.checkpoints, "0")
    with open_log(source) as log:
        pairs = preferences((event for _, event in log.events(Reward)), settings)
    with whole_folder(target) as aside:
        policy = prefer(load_policy(folder), pairs, settings, aside / "preferred", report)
        for name in load_recipe(kept.settings.train.recipe).carried:
            if (source / name).exists():
                shutil.copy2(source / name, aside / name)
        carry_base(folder, source, aside)
        write_first_checkpoint(RunFolder(aside).checkpoints, policy)
        write_run_settings(aside, msgspec.structs.replace(kept, run=into, updates=0))
    return len(pairs)
