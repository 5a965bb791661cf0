"""Settings from layers: defaults, a recipe, a TOML file, the environment; later layers win, unknown keys are errors.

Every layer is checked by itself, so an error names the file or variable that it stands in, and the path of the key.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from streams.errors import SettingsError

T = TypeVar("T", bound=msgspec.Struct)

PREFIX = "SEARCHLOOP_"
NOT_SETTINGS = frozenset({"SEARCHLOOP_HOME", "SEARCHLOOP_CONFIG", "SEARCHLOOP_CACHE"})


def read_toml(path: Path) -> dict[str, Any]:
    """Return a TOML file's tables.

    Raises SettingsError if there is no such file, or with the line where it is not TOML.
    """
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError as error:
        raise SettingsError(f"--config: expected a TOML file, found nothing at {path}") from error
    # Not only tomllib's own errors: a number of 5,000 digits is a ValueError, and a list a thousand deep recurses.
    except (ValueError, RecursionError, IsADirectoryError) as error:
        raise SettingsError(f"{path}: expected TOML, got: {error}") from error


def environment_layer(environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings among environment variables: `SEARCHLOOP_BATCH__GROUPS=32` is `batch.groups = 32`.

    Lists are given as JSON; everything else is read as the setting's own type.
    Raises SettingsError for a list that is no JSON, and for a variable that names a table and a setting at once.
    """
    layer: dict[str, Any] = {}
    for name, value in sorted(environment.items()):
        if not name.startswith(PREFIX) or name in NOT_SETTINGS:
            continue
        *tables, key = name.removeprefix(PREFIX).lower().split("__")
        table = layer
        for part in tables:
            inner = table.setdefault(part, {})
            if not isinstance(inner, dict):
                raise SettingsError(f"{name}: expected a key of a table, but {part!r} is set to {inner!r} beside it")
            table = inner
        try:
            table[key] = json.loads(value) if value.startswith("[") else value
        except ValueError as error:
            raise SettingsError(f"{name}: expected a list in JSON, got {value!r} ({error})") from error
    return layer


def assignments_layer(assignments: Sequence[str]) -> dict[str, Any]:
    """Return the settings in `table.key=value` texts, as `--set` takes them; lists are given as JSON.

    Raises SettingsError for a text without a table, a key or a value.
    """
    variables = {}
    for text in assignments:
        name, equals, value = text.partition("=")
        if not equals or "." not in name:
            raise SettingsError(f"--set: expected TABLE.KEY=VALUE, such as batch.groups=32, got {text!r}")
        variables[PREFIX + name.strip().replace(".", "__").upper()] = value.strip()
    return environment_layer(variables)


def combine(kind: type[T], layers: list[tuple[str, dict[str, Any]]]) -> T:
    """Return settings of this kind from (source, tables) layers, the last one winning.

    Raises SettingsError naming source, path, what was expected and what came.
    """
    merged: dict[str, Any] = {}
    for source, layer in layers:
        try:
            msgspec.convert(layer, kind, strict=False)
        except msgspec.ValidationError as error:
            raise SettingsError(_explain(kind, layer, str(error), source)) from error
        merged = _merge(merged, layer)
    return msgspec.convert(merged, kind, strict=False)


def known_keys(kind: type[msgspec.Struct], path: str = "") -> dict[str, Any]:
    """Return every setting of the tree as `path → default`, depth first, in the order of definition."""
    keys: dict[str, Any] = {}
    for field in msgspec.structs.fields(kind):
        where = f"{path}.{field.name}" if path else field.name
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            keys |= known_keys(field.type, where)
        else:
            keys[where] = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    return keys


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        merged[key] = (
            _merge(merged[key], value) if isinstance(value, dict) and isinstance(merged.get(key), dict) else value
        )
    return merged


def _explain(kind: type[msgspec.Struct], layer: dict[str, Any], message: str, source: str) -> str:
    found = re.search(r" - at `\$\.?([^`]*)`", message)
    path = found.group(1) if found else ""
    reason = message[: found.start()] if found else message
    if unknown := re.search(r"unknown field `([^`]*)`", reason):
        where = f"{path}.{unknown.group(1)}" if path else unknown.group(1)
        near = [key for key in known_keys(kind) if key.startswith(f"{path}." if path else "")]
        tables = sorted({key[len(path) + 1 if path else 0 :].split(".")[0] for key in near})
        return f"{where}: unknown setting, in {source}; expected one of: {', '.join(tables)}"
    value: Any = layer
    for part in path.split(".") if path else ():
        value = value.get(part, "?") if isinstance(value, dict) else "?"
    reason = reason[0].lower() + reason[1:]
    return f"{path or 'settings'}: {reason}, got {value!r}, in {source}"
