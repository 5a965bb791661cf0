"""Recipes: named TOML files that a training run starts from; a user's own file works like ours."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from infra.config import load_settings
from infra.context import App
from streams.errors import SettingsError

RECIPES = Path(__file__).parent / "recipes"


def recipe_path(name: str) -> Path:
    """Return the file of a recipe: one of ours by name, or a path to one's own.

    Raises SettingsError if there is neither, naming ours.
    """
    own = Path(name)
    if own.suffix == ".toml":
        return own
    path = RECIPES / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in RECIPES.glob("*.toml")))
        raise SettingsError(f"--recipe: expected one of {known}, or a path to a TOML file, got {name!r}")
    return path


def with_recipe(app: App, name: str) -> App:
    """Return the app with the recipe's settings under those of the user's file and environment."""
    settings = load_settings(app.config, os.environ, recipe=recipe_path(name))
    return msgspec.structs.replace(app, settings=settings)
