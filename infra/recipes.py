"""Recipes: named TOML files that a training run starts from; a user's own file works like ours."""

from __future__ import annotations

from pathlib import Path

from streams.errors import SettingsError
from streams.names import is_name

RECIPES = Path(__file__).parent / "recipes"


def recipe_path(name: str) -> Path:
    """Return the file of a recipe: one of ours by name, or a path to one's own.

    Raises SettingsError if there is neither, naming ours.
    """
    own = Path(name)
    if own.suffix == ".toml":
        if not own.is_file():
            raise SettingsError(f"--recipe: expected a TOML file, found none at {own}")
        return own
    path = RECIPES / f"{name}.toml"
    if not is_name(name) or not path.is_file():
        known = ", ".join(sorted(file.stem for file in RECIPES.glob("*.toml")))
        raise SettingsError(f"--recipe: expected one of {known}, or a path to a TOML file, got {name!r}")
    return path
