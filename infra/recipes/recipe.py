"""The interface between the loop and a recipe, and the look-up of a recipe by its name.

A recipe is a TOML file whose `[train] recipe` names a class: a prompt, a parser, a reward, an evaluation. Workers, log,
learner, replay, proof and monitor carry any recipe and know none. infra/RECIPES.md has an example of your own recipe.
Every recipe has the parts of `Recipe`. `WritesCatalogue`, `ChecksPremise` and `TakesTurns` are further verbs, which a
recipe may offer.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast, runtime_checkable

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

BUILT_IN = {name: f"infra.recipes.{name}.recipe:{name.capitalize()}" for name in ("leser", "relsum", "resume")}


TOP = 100
GIVEN = "judged queries"
"""Name of the set that `rank` returns for a user's own queries."""


class NewRun(msgspec.Struct, frozen=True, kw_only=True):
    """The inputs of a new run.

    queries_file: the user's own training queries; None takes those generated from the index.
    held_out: queries whose text must train nothing.
    """

    run: str
    index: str
    seed: int = 0
    queries_file: Path | None = None
    held_out: Sequence[Query] = ()


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """The requests of a run. index: the versioned name. asked: without request ids, which the run's order gives.

    settings: those of the run, with the versions of the models that it keeps; None leaves the given ones as they are.
    """

    run: str
    index: str
    asked: Sequence[Request]
    settings: Settings | None = None


Judged = tuple[Sequence[Query], Qrels]


class Ranked(msgspec.Struct, frozen=True, kw_only=True):
    """One held-out set of queries, ranked: {query id: {document id: score}} and its judgments."""

    name: str
    run: dict[str, dict[str, float]]
    qrels: Qrels


class Recipe(Protocol):
    """The interface of a recipe. It is made without arguments, in any process; state that it keeps may only save time.

    carried: names of files in a run's folder, beside checkpoint 0, that a run begun from its policy needs, too.
    methods: names that `rank` takes in place of a policy version; they need no run.
    """

    carried: Sequence[str]
    methods: Sequence[str]

    def prepare(self, app: App, new: NewRun, report: Report) -> Prepared:
        """Make or find the requests and, in the run's folder, checkpoint 0. A run that has checkpoint 0 keeps it."""

    def encoder(self, settings: Settings) -> Encode:
        """Return the prompt: a function from a tokenizer and a request to token ids. Equal inputs give equal ids."""

    def open_environment(self, app: App, run: RunSettings, report: Report) -> AbstractContextManager[Environment]:
        """Open the environment that scores this run's groups, and close it after. app: with the run's own settings."""

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
        """Rank each held-out set with a policy version, decoded as it is served.

        app: with the run's own settings. policy: a version, or the name of a method that learns nothing. For one of
        `methods`, no such run has to exist.
        given: the user's own judged queries; they are ranked, too, as the set `GIVEN`. temperature: above 0, texts are
        sampled.
        top: number of documents for each query, if the recipe searches.
        """


class CatalogueTexts(msgspec.Struct, frozen=True, kw_only=True):
    """One policy version's texts about every product.

    policy: the version's name. by_document: text by document id. path: the file that keeps them, as JSON lines.
    """

    policy: str
    by_document: dict[str, str]
    path: Path


class PremiseOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The size of a premise check; each recipe reads the options that it needs.

    queries_max: number of dev queries. candidates: number of texts for each product. seed: of every random draw.
    """

    queries_max: int = 200
    candidates: int = 32
    seed: int = 0


class PremiseFound(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a premise check: a table, the lines above and below it, and the same as a value for scripts."""

    value: msgspec.Struct
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    above: str = ""
    below: str = ""


@runtime_checkable
class WritesCatalogue(Protocol):
    """A recipe whose policy writes a text for each product of a catalogue."""

    def write_catalogue(self, app: App, run: RunSettings, *, policy: str, report: Report) -> CatalogueTexts:
        """Write the texts that a policy version lacks, and return all of them. app: with the run's own settings."""


@runtime_checkable
class ChecksPremise(Protocol):
    """A recipe that can check, before any training, whether its reward leads to better search."""

    def check_premise(self, app: App, index: str, options: PremiseOptions, report: Report) -> PremiseFound:
        """Check the premise on an index, and return the result. app: with the recipe's settings."""


class Partner(Protocol):
    """The model that reads summaries: it rewards them, and it is adapted to them.

    setting: the setting that names the partner's version, as TABLE.KEY. measure: of dev queries.
    """

    setting: str
    measure: str

    def first(self, app: App, index: str, *, held_out: Sequence[Query], seed: int, report: Report) -> str:
        """Return the version that rewards the first turn. Raises SettingsError for settings that it cannot follow."""

    def original(self, app: App, index: str) -> str:
        """Return the version that no summaries have adapted; `alternation.adapt_from = "first"` adapts this one."""

    def settle(self, app: App, new: NewRun, report: Report) -> App:
        """Measure everything that a turn needs beforehand, and return the app with the results in its settings.

        From turn 2 on, the run has its first policy already.
        """

    def told(self, settings: Settings) -> dict[str, float]:
        """Return the values that `settle` measured, by name."""

    def texts(self, app: App, run: RunSettings, report: Report) -> Mapping[str, str]:
        """Return the texts of the run's latest policy by document id: all that `adapt` and `measured` read."""

    def adapt(
        self,
        app: App,
        index: str,
        *,
        parent: str,
        texts: Mapping[str, str],
        held_out: Sequence[Query],
        turn: int,
        seed: int,
        report: Report,
    ) -> str:
        """Adapt a version to these texts, and return the new version. Queries with a held-out text are left out."""

    def measured(
        self, app: App, index: str, version: str, texts: Mapping[str, str], *, name: str, report: Report
    ) -> float:
        """Return the measure of dev queries on these texts. name: of the alternation."""


RankDev = Callable[[str], Sequence[Ranked]]
"""A function from the name of a policy version to what it finds for each set of dev queries."""


@runtime_checkable
class MeasuresDev(Protocol):
    """A recipe whose policy can be measured on dev queries while a run learns."""

    def open_dev(
        self, app: App, run: RunSettings, *, queries_max: int, given: Judged | None, report: Report
    ) -> AbstractContextManager[RankDev]:
        """Give the function that ranks dev queries, decoded as served, and close what it needs after.

        app: with the run's own settings. queries_max: of the index's dev queries. given: the user's own, ranked too, as
        the set `GIVEN`. Raises SettingsError if there is no dev query.
        """


@runtime_checkable
class TakesTurns(Protocol):
    """A recipe whose policy takes turns with the model that reads its texts."""

    def partner(self) -> Partner:
        """Return the partner."""


def load_recipe(name: str) -> Recipe:
    """Return a recipe: a built-in one by its name, or your own by `package.module:Class`.

    Raises SettingsError if there is none of that name, or if the class lacks a part of `Recipe`.
    """
    where = BUILT_IN.get(name, name)
    module, _, attribute = where.partition(":")
    if not attribute:
        known = ", ".join(sorted(BUILT_IN))
        raise SettingsError(f"train.recipe: expected one of {known}, or package.module:Class, got {name!r}")
    try:
        made = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise SettingsError(f"train.recipe: cannot load {name!r} ({error}); is its package installed here?") from error
    parts = ("carried", "methods", "prepare", "encoder", "open_environment", "rank")
    if missing := [part for part in parts if not hasattr(made, part)]:
        raise SettingsError(
            f"train.recipe: {name!r} has no {', '.join(missing)}; infra/RECIPES.md lists the parts of a recipe"
        )
    return cast(Recipe, made() if inspect.isclass(made) else made)


def writer_of(name: str) -> WritesCatalogue:
    """Return a recipe as one that writes a text for each product. Raises SettingsError if it does not."""
    recipe = load_recipe(name)
    if not isinstance(recipe, WritesCatalogue):
        raise _lacks(name, "write_catalogue", "writes no texts about products. For query expansions: searchloop expand")
    return recipe


def premise_of(name: str) -> ChecksPremise:
    """Return a recipe as one that checks its premise. Raises SettingsError if it does not."""
    recipe = load_recipe(name)
    if not isinstance(recipe, ChecksPremise):
        raise _lacks(name, "check_premise", "has no premise to check")
    return recipe


def measures_dev(name: str) -> MeasuresDev:
    """Return a recipe that measures dev queries. Raises SettingsError if this one does not."""
    recipe = load_recipe(name)
    if not isinstance(recipe, MeasuresDev):
        raise _lacks(name, "open_dev", "measures no dev queries: set dev.every = 0")
    return recipe


def partner_of(name: str) -> Partner:
    """Return a recipe's partner. Raises SettingsError if it takes no turns."""
    recipe = load_recipe(name)
    if not isinstance(recipe, TakesTurns):
        raise _lacks(name, "partner", "takes no turns")
    return recipe.partner()


def _lacks(name: str, part: str, said: str) -> SettingsError:
    able = [each for each in BUILT_IN if hasattr(load_recipe(each), part)]
    return SettingsError(f"recipe {name!r} {said}. Recipes that offer it: {', '.join(able)}")
