"""The loop in one process: it goes on by its name, and it never takes the place of a run that has a log."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest

from infra.app.app import App
from infra.recipes.recipe import NewRun, Prepared
from infra.runs.training_runs import loop_run, train_run
from learner.checkpoints import load_current
from learner.lock import only_learner
from streams.errors import DeliveryError, SettingsError
from tests.loop.conftest import SMALL, quiet

Make = Callable[..., Prepared]


def updates_of(app: App, run: str, updates: int) -> list[int]:
    made = loop_run(app, NewRun(run=run, index="small"), recipe="leser", updates=updates, report=quiet)
    return [update.policy.step for update in made]


@pytest.fixture
def fresh(small_world: App, unique_name: str) -> str:
    """Give the name of a run that is warmed up and has neither settings nor updates."""
    shutil.copytree(small_world.home.run("first"), small_world.home.run(unique_name))
    return unique_name


def test_the_same_name_goes_on_and_a_streamed_run_cannot_follow_it(small_world: App, fresh: str) -> None:
    assert updates_of(small_world, fresh, 1) == [1]
    assert updates_of(small_world, fresh, 3) == [2, 3]
    with pytest.raises(SettingsError, match=r"run by `searchloop loop`, which keeps no log .* new name with --run"):
        train_run(
            small_world,
            NewRun(run=fresh, index="small", seed=0),
            recipe="leser",
            updates=4,
            report=quiet,
        )


def test_a_streamed_run_is_refused_and_keeps_its_checkpoint(small_world: App, new_run: Make) -> None:
    prepared = new_run(SMALL)
    checkpoints = small_world.home.run(prepared.run) / "checkpoints"
    before, _ = load_current(checkpoints)
    with pytest.raises(SettingsError, match=r"was streamed, .* go on with: searchloop train --run"):
        updates_of(small_world, prepared.run, 1)
    assert load_current(checkpoints)[0] == before


def test_a_run_that_somebody_trains_is_not_trained_twice(small_world: App, fresh: str) -> None:
    with only_learner(small_world.home.run(fresh)), pytest.raises(DeliveryError, match="another learner of run"):
        updates_of(small_world, fresh, 1)
