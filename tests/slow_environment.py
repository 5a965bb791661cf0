"""LESER's recipe with an environment of a given pace: for benchmarks of what overlaps with what.

It scores, and then waits until its time is over. The wait is no work, as that for a distant search engine is none.
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


SCORED: list[float] = []
"""Seconds that each call of this process took to score, without the wait."""


class Waiting:
    """An environment that takes a given time for each group, or longer if it must."""

    def __init__(self, environment: Environment, seconds: float) -> None:
        self._environment = environment
        self._seconds = seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._environment, name)

    def score_many(self, inputs: Sequence[Any]) -> list[Reward]:
        """Return the rewards after `SECONDS_PER_GROUP` for each of them, in which they are computed."""
        began = time.perf_counter()
        rewards = self._environment.score_many(inputs)
        SCORED.append(time.perf_counter() - began)
        time.sleep(max(self._seconds * len(inputs) - SCORED[-1], 0.0))
        return rewards


class SlowLeser(Leser):
    """LESER, whose environment has the pace that the environment variable says."""

    @contextmanager
    def open_environment(self, app: App, run: RunSettings, report: Report) -> Iterator[Environment]:
        """Yield the environment with its pace."""
        with super().open_environment(app, run, report) as environment:
            yield Waiting(environment, float(os.environ.get(SECONDS_PER_GROUP, "0")))  # type: ignore[misc]
