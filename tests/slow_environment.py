"""LESER's recipe with an environment that waits: for benchmarks of what overlaps with what.

The wait is no work, as that for a distant search engine is none.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from infra.app.app import App
from infra.app.progress import Report
from infra.app.run_settings import RunSettings
from infra.recipes.leser.recipe import Leser
from search_env.environments import Environment
from streams.events import Reward

SECONDS_PER_GROUP = "BENCH_WAIT_SECONDS_PER_GROUP"


class Waiting:
    """An environment that scores, and then waits for each group."""

    def __init__(self, environment: Environment, seconds: float) -> None:
        self._environment = environment
        self._seconds = seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._environment, name)

    def score_many(self, inputs: Sequence[Any]) -> list[Reward]:
        """Return the rewards, `SECONDS_PER_GROUP` later for each of them."""
        rewards = self._environment.score_many(inputs)
        time.sleep(self._seconds * len(inputs))
        return rewards


class SlowLeser(Leser):
    """LESER, whose environment waits as long as the environment variable says."""

    @contextmanager
    def open_environment(self, app: App, run: RunSettings, report: Report) -> Iterator[Environment]:
        """Yield the environment with its wait."""
        with super().open_environment(app, run, report) as environment:
            yield Waiting(environment, float(os.environ.get(SECONDS_PER_GROUP, "0")))  # type: ignore[misc]
