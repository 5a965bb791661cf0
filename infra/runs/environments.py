"""The environment of a run: its recipe opens it with everything that it needs, and closes it after."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from infra.app.app import App
from infra.app.progress import Report
from infra.app.run_settings import RunSettings
from infra.recipes.recipe import load_recipe
from search_env.environments import Environment, ShuffledRewards, ShuffledWaitingRewards, WaitingEnvironment


def silent(what: str, done: int, total: int) -> None:
    """Report nothing."""


@contextmanager
def open_environment(app: App, run: RunSettings, report: Report = silent) -> Iterator[Environment]:
    """Yield the environment that scores a run's groups as when the run began; in a control it shuffles the rewards."""
    recipe = load_recipe(run.settings.train.recipe)
    with recipe.open_environment(app.with_settings(run.settings), run, report) as environment:
        if not run.settings.train.shuffle_rewards:
            yield environment
        elif isinstance(environment, WaitingEnvironment):
            yield ShuffledWaitingRewards(environment)
        else:
            yield ShuffledRewards(environment)
