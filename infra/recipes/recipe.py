"""The interface between the loop and a recipe: what a recipe gives, and how one is found by its name.

A recipe is a TOML file whose `[train] recipe` names a class: a prompt, a parser, a reward, an evaluation. Workers, log,
learner, replay, proof and monitor carry any recipe and know none (infra/RECIPES.md has an example of one's own).
`Recipe` is what every recipe gives. `WritesCatalogue`, `ChecksPremise` and `TakesTurns` are further verbs, which a
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


class Recipe(Protocol):
    """What the loop asks of a recipe. It is made without arguments, in any process; what it keeps only saves time.

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


class CatalogueTexts(msgspec.Struct, frozen=True, kw_only=True):
    """One policy version's texts about every product.

    policy: the version's name. by_document: text by document id. path: the file that keeps them, as JSON lines.
    """

    policy: str
    by_document: dict[str, str]
    path: Path


class PremiseOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How large a premise check is; each recipe reads the options that it needs.

    queries_max: dev queries. candidates: texts of each product. seed: of whatever is drawn.
    """

    queries_max: int = 200
    candidates: int = 32
    seed: int = 0


class PremiseFound(msgspec.Struct, frozen=True, kw_only=True):
    """What a premise check found: a table, a line above it, a line below it, and the same as a value for scripts."""

    value: msgspec.Struct
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    above: str = ""
    below: str = ""


@runtime_checkable
class WritesCatalogue(Protocol):
    """A recipe whose policy writes a text for each product of a catalogue."""

    def write_catalogue(self, app: App, run: RunSettings, *, policy: str, report: Report) -> CatalogueTexts:
        """Write what a policy version has not written yet, and return all of it. app: with the run's own settings."""


@runtime_checkable
class ChecksPremise(Protocol):
    """A recipe that can check, before any training, whether its reward leads to better search."""

    def check_premise(self, app: App, index: str, options: PremiseOptions, report: Report) -> PremiseFound:
        """Return what the check finds on an index. app: with the recipe's settings."""


class Partner(Protocol):
    """What reads summaries: it pays for them, and is adapted to them.

    setting: the setting that names the partner's version, as TABLE.KEY. measure: of dev queries.
    """

    setting: str
    measure: str

    def first(self, app: App, index: str, *, held_out: Sequence[Query], seed: int, report: Report) -> str:
        """Return the version that pays for the first turn. Raises SettingsError for settings that it cannot follow."""

    def original(self, app: App, index: str) -> str:
        """Return the version that was adapted to no summaries, which `alternation.adapt_from = "first"` adapts."""

    def settle(self, app: App, new: NewRun, report: Report) -> App:
        """Return the app with whatever has to be measured before a turn. From turn 2 on the first policy is there."""

    def told(self, settings: Settings) -> dict[str, float]:
        """Return by name what `settle` measured."""

    def texts(self, app: App, run: RunSettings, report: Report) -> Mapping[str, str]:
        """Return the texts of the run's latest policy by document id, for all documents that are read below."""

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
        """Adapt a version to these texts and return the new version. Queries with a held-out text are left out."""

    def measured(
        self, app: App, index: str, version: str, texts: Mapping[str, str], *, name: str, report: Report
    ) -> float:
        """Return how well dev queries find their documents by these texts. name: of the alternation."""


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
    """A recipe whose policy takes turns with what reads its texts."""

    def partner(self) -> Partner:
        """Return the partner."""


def load_recipe(name: str) -> Recipe:
    """Return a recipe by its built-in name, or one's own by `package.module:Class`.

    Raises SettingsError if there is none of that name, or if what is there lacks a part of `Recipe`.
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
            f"train.recipe: {name!r} has no {', '.join(missing)}; infra/RECIPES.md says what a recipe gives"
        )
    return cast(Recipe, made() if inspect.isclass(made) else made)


def writer_of(name: str) -> WritesCatalogue:
    """Return a recipe that writes a text for each product. Raises SettingsError if this one does not."""
    recipe = load_recipe(name)
    if not isinstance(recipe, WritesCatalogue):
        raise _lacks(name, "write_catalogue", "writes no texts about products. For query expansions: searchloop expand")
    return recipe


def premise_of(name: str) -> ChecksPremise:
    """Return a recipe that checks its premise. Raises SettingsError if this one does not."""
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
