"""The seam between the loop and a recipe: what a task has to give, and how a task is found by its name.

A recipe is a TOML file whose `[train] task` names a task: a prompt, a parser, a reward, an evaluation. Workers, log,
learner, replay, proof and monitor carry any of them and know none (infra/RECIPES.md has an example of one's own).
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import msgspec

from infra.app.progress import Report
from learner.generation import Encode
from search_env.catalogue.corpora import Qrels, Query
from search_env.environments import Environment
from streams.errors import SettingsError
from streams.events import Request

if TYPE_CHECKING:
    from infra.app.app import App
    from infra.app.run_settings import RunSettings
    from infra.app.settings import Settings

BUILT_IN = {
    "expansion": "infra.recipes.leser.recipe:Expansion",
    "summary": "infra.recipes.relsum.recipe:Summary",
    "resume": "infra.recipes.resume.recipe:Resume",
}


TOP = 100
GIVEN = "judged queries"
"""What `rank` calls the queries that a user gave."""


class NewRun(msgspec.Struct, frozen=True, kw_only=True):
    """What a run is begun with. queries_file: training queries of the user's own; made from the index without.

    held_out: queries whose text must train nothing.
    """

    run: str
    index: str
    seed: int = 0
    queries_file: Path | None = None
    held_out: Sequence[Query] = ()


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """What a run asks, without request ids, which the run's order gives; index is the versioned name."""

    run: str
    index: str
    asked: Sequence[Request]


Judged = tuple[Sequence[Query], Qrels]


class Ranked(msgspec.Struct, frozen=True, kw_only=True):
    """One held-out set of queries, ranked: {query id: {document id: score}} and its judgments."""

    name: str
    run: dict[str, dict[str, float]]
    qrels: Qrels


class Task(Protocol):
    """What the loop asks of a task; it is made without arguments, in any process, and what it keeps only saves time.

    carried: files of a run's folder, beside checkpoint 0, that a run begun from its policy needs too.
    methods: names that `rank` takes in place of a policy version, and for which no run has to be there.
    """

    carried: Sequence[str]
    methods: Sequence[str]

    def prepare(self, app: App, new: NewRun, report: Report) -> Prepared:
        """Make or find the requests and, in the run's folder, checkpoint 0; a run that has one keeps it."""

    def encoder(self, settings: Settings) -> Encode:
        """Return the prompt: from a tokenizer and a request to token ids. The same always gives the same."""

    def open_environment(self, app: App, run: RunSettings, report: Report) -> AbstractContextManager[Environment]:
        """Give what scores this run's groups, and close it after. app: with the run's own settings."""

    def rank(
        self,
        app: App,
        run: RunSettings,
        *,
        policy: str,
        given: Judged | None,
        report: Report,
        temperature: float = 0.0,
        top: int = TOP,
    ) -> list[Ranked]:
        """Return how a policy version, decoded as it is served, ranks each held-out set. app: as above.

        policy: a version, or the name of a method that learns nothing; of a run that was never made, for `methods`.
        given: judged queries of the user's own, ranked too, as the set `GIVEN`. temperature: above 0 texts are sampled.
        top: documents a query, where it searches.
        """


def load_task(name: str) -> Task:
    """Return a task by its built-in name, or one's own by `package.module:Class`.

    Raises SettingsError if there is none of that name, or if what is there lacks a part of `Task`.
    """
    where = BUILT_IN.get(name, name)
    module, _, attribute = where.partition(":")
    if not attribute:
        known = ", ".join(sorted(BUILT_IN))
        raise SettingsError(f"train.task: expected one of {known}, or package.module:Class, got {name!r}")
    try:
        made = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise SettingsError(f"train.task: cannot load {name!r} ({error}); is its package installed here?") from error
    parts = ("carried", "methods", "prepare", "encoder", "open_environment", "rank")
    if missing := [part for part in parts if not hasattr(made, part)]:
        raise SettingsError(
            f"train.task: {name!r} has no {', '.join(missing)}; infra/RECIPES.md says what a task gives"
        )
    return cast(Task, made() if inspect.isclass(made) else made)
