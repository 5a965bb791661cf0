"""Recipes and plans by name: TOML files in the wings. A path to a TOML file of your own works the same way."""

from __future__ import annotations

from pathlib import Path

from streams.errors import SettingsError
from streams.names import is_name

WINGS = Path(__file__).parent
RECIPE_FILE = "recipe.toml"


def recipes() -> dict[str, Path]:
    """Return the built-in recipes by name.

    A wing's `recipe.toml` has the name of the wing; every other file has its own.
    """
    found = sorted(WINGS.glob("*/*.toml"))
    named = {path.parent.name if path.name == RECIPE_FILE else path.stem: path for path in found}
    return {name: named[name] for name in sorted(named) if named[name].parent.name != "models"}


def plans() -> dict[str, Path]:
    """Return the built-in plans of experiments by name."""
    return {path.stem: path for path in sorted(WINGS.glob("*/plans/*.toml"), key=lambda path: path.stem)}


def recipe_path(name: str) -> Path:
    """Return the file of a recipe: a built-in one by its name, or your own by its path.

    Raises SettingsError, which lists the built-in ones, if there is neither.
    """
    return _path("--recipe", name, recipes())


def plan_path(name: str) -> Path:
    """Return the file of a plan: a built-in one by its name, or your own by its path.

    Raises SettingsError, which lists the built-in ones, if there is neither.
    """
    return _path("plan", name, plans())


def _path(what: str, name: str, ours: dict[str, Path]) -> Path:
    own = Path(name)
    if own.suffix == ".toml":
        if not own.is_file():
            raise SettingsError(f"{what}: expected a TOML file, found none at {own}")
        return own
    if not is_name(name) or name not in ours:
        raise SettingsError(f"{what}: expected one of {', '.join(ours)}, or a path to a TOML file, got {name!r}")
    return ours[name]
