"""Settings from layers: defaults, a recipe, a TOML file, the environment. Later layers win; unknown keys are errors.

Every layer is checked separately, so an error names its file or variable and the path of the key.
"""

from __future__ import annotations

import json
import re
import tomllib
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from infra.app.renamed import with_new_names
from services.private_variables import PREFIX
from services.secret_files import FILE_SUFFIX, read_secret
from streams.descriptions import choices_of, description_of
from streams.errors import SettingsError
from streams.secrets import Secret, redact, reveal, secret_fields, secret_paths, sounds_secret

T = TypeVar("T", bound=msgspec.Struct)

# The settings that are lists. Every verb checks them, even a verb that reads none of their tables. A test compares this
# list with the tree.
LIST_SETTINGS = (
    "join.bots.clicks",
    "leser.clicks.examination",
    "policy.lora.targets",
    "ramp.stages",
    "serve.origins",
    "ui.names",
    "vllm_server.arguments",
)
_LISTS = (msgspec.inspect.ListType, msgspec.inspect.VarTupleType, msgspec.inspect.TupleType)
NOT_SETTINGS = frozenset({"SEARCHLOOP_HOME", "SEARCHLOOP_CONFIG", "SEARCHLOOP_CACHE"})


def read_toml(path: Path) -> dict[str, Any]:
    """Return the tables of a TOML file.

    Raises SettingsError if the file does not exist or, with the line, if it is not valid TOML.
    """
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError as error:
        raise SettingsError(f"--config: expected a TOML file, found nothing at {path}") from error
    # Not only tomllib's errors: a number of 5,000 digits is a ValueError, and a list nested 1,000 deep is a
    # RecursionError.
    except (ValueError, RecursionError, IsADirectoryError) as error:
        raise SettingsError(f"{path}: expected TOML, got: {error}") from error


def environment_layer(environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings from environment variables: `SEARCHLOOP_BATCH__GROUPS=32` is `batch.groups = 32`.

    Values stay texts; `combine` knows each setting's type and reads lists from JSON.
    Raises SettingsError if a list is not valid JSON, or if a name is both a table and a setting.
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
                raise SettingsError(f"{name}: expected a key of a table, but {part!r} is also set to a value")
            table = inner
        if ".".join([*tables, key]) in LIST_SETTINGS and value.startswith("["):
            try:
                json.loads(value)
            except (ValueError, RecursionError) as error:
                raise SettingsError(f"{name}: expected a list in JSON, got {value!r} ({error})") from error
        table[key] = value
    return layer


def assignments_layer(assignments: Sequence[str]) -> dict[str, Any]:
    """Return the settings from `table.key=value` texts, the form of `--set`; lists are written as JSON.

    Raises SettingsError for a text without a table, a key or a value, and for a secret.
    """
    variables = {}
    for text in assignments:
        name, equals, value = text.partition("=")
        if not equals or "." not in name:
            shown = f"{name}={'…' if value else ''}" if equals else name
            raise SettingsError(f"--set: expected TABLE.KEY=VALUE, such as batch.groups=32, got {shown!r}")
        if sounds_secret(name.strip()):
            variable = PREFIX + name.strip().replace(".", "__").upper()
            raise SettingsError(
                f"--set: expected no secret on the command line, which every user can read, got {name.strip()}. Set "
                f"the variable {variable}, or {variable}_FILE"
            )
        variables[PREFIX + name.strip().replace(".", "__").upper()] = value.strip()
    return environment_layer(variables)


def combine(kind: type[T], layers: list[tuple[str, dict[str, Any]]]) -> T:
    """Return settings of this kind from (source, tables) layers; the last layer wins.

    A secret may be in a file that `NAME_file` names; of the two forms, the one in the later layer wins.
    Raises SettingsError with the source, the path, the expected and the given value. A value that is or may hold a
    secret is not shown.
    """
    merged: dict[str, Any] = {}
    for source, given in layers:
        layer = _read_lists(kind, with_new_names(given, source), source)
        try:
            msgspec.convert(layer, kind, strict=False)
        except msgspec.ValidationError as error:
            # Not chained: msgspec's own message repeats nothing, but a debugger would show the value that failed.
            raise SettingsError(_explain(kind, layer, str(error), source)) from None
        for path in secret_paths(kind):
            _one_way_to_give(path, layer, merged, source)
        merged = _merge(merged, layer)
    try:
        return _with_secret_files(msgspec.convert(merged, kind, strict=False))
    except msgspec.ValidationError as error:  # Each layer is valid, but their combination is not.
        raise SettingsError(_explain(kind, merged, str(error), "all sources together")) from None


def revealed_builtins(settings: msgspec.Struct) -> dict[str, Any]:
    """Return settings as tables, secrets included. Use them only as a layer, and never store them."""
    tables: dict[str, Any] = msgspec.to_builtins(settings, enc_hook=_reveal_hook)
    return tables


def _reveal_hook(value: Any) -> str:
    if isinstance(value, Secret):
        return reveal(value)
    raise NotImplementedError(f"a setting of the type {type(value).__name__}")


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


def _hint_at(kind: type[msgspec.Struct], path: str) -> Any:
    """Return the type of the setting at a path, which may end in a place of a list; None if there is no setting."""
    *tables, key = path.partition("[")[0].split(".")
    table: type[msgspec.Struct] | None = kind
    for name in tables:
        table = _table_in(typing.get_type_hints(table).get(name)) if table else None
    return typing.get_type_hints(table, include_extras=True).get(key) if table else None


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        merged[key] = (
            _merge(merged[key], value) if isinstance(value, dict) and isinstance(merged.get(key), dict) else value
        )
    return merged


def _read_lists(kind: type[msgspec.Struct], layer: dict[str, Any], source: str, path: str = "") -> dict[str, Any]:
    """Return the layer with all lists parsed from their JSON text, the only form that a variable can give."""
    read = dict(layer)
    for field in msgspec.structs.fields(kind):
        value = layer.get(field.name)
        where = f"{path}.{field.name}" if path else field.name
        table = _table_in(field.type)
        if table is not None:
            if isinstance(value, dict):
                read[field.name] = _read_lists(table, value, source, where)
        elif isinstance(value, str) and is_list(field.type):
            try:
                read[field.name] = json.loads(value) if value.startswith("[") else value
            except (ValueError, RecursionError) as error:
                raise SettingsError(
                    f"{where}: expected a list in JSON, got {value!r} ({error}), in {source}"
                ) from error
    return read


def is_list(hint: Any) -> bool:
    """Return whether a setting of this type is a list; it may be annotated or optional."""
    return _lists(msgspec.inspect.type_info(hint))


def _lists(kind: msgspec.inspect.Type) -> bool:
    while isinstance(kind, msgspec.inspect.Metadata):
        kind = kind.type
    if isinstance(kind, msgspec.inspect.UnionType):
        return any(_lists(each) for each in kind.types)
    return isinstance(kind, _LISTS)


def _table_in(kind: Any) -> type[msgspec.Struct] | None:
    """Return the table type of a setting, which may be optional; None if the setting is not a table."""
    choices = typing.get_args(kind) or (kind,)
    return next((each for each in choices if isinstance(each, type) and issubclass(each, msgspec.Struct)), None)


def _one_way_to_give(path: str, layer: dict[str, Any], below: dict[str, Any], source: str) -> None:
    """Drop a secret from the layers below if this layer gives it in the other form."""
    *tables, key = path.split(".")
    for name in tables:
        layer, below = layer.get(name, {}), below.get(name, {})
    ways = (key, key + FILE_SUFFIX)
    here = [way for way in ways if layer.get(way)]
    if len(here) == 2:
        raise SettingsError(f"{path}: expected it or {path}{FILE_SUFFIX}, got both, in {source}; keep one")
    for way in ways:
        if here and way not in here:
            below.pop(way, None)


def _with_secret_files(settings: T, path: str = "") -> T:
    """Return the settings with every secret read from its file."""
    changes: dict[str, Any] = {}
    for name in type(settings).__struct_fields__:
        value = getattr(settings, name)
        if isinstance(value, msgspec.Struct):
            if (read := _with_secret_files(value, f"{path}{name}.")) is not value:
                changes[name] = read
        elif name in secret_fields(type(settings)) and (place := getattr(settings, name + FILE_SUFFIX, "")):
            secret = read_secret(Path(place), setting=path + name + FILE_SUFFIX)
            changes[name] = secret
            changes[name + FILE_SUFFIX] = ""  # The file has been read; both forms together would be an error later.
    return msgspec.structs.replace(settings, **changes) if changes else settings


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
    if path and re.match(r"[a-z_]+: ", reason):  # The table's own check wrote this, about one of its settings.
        return f"{path}.{reason}, in {source}"
    reason = reason[0].lower() + reason[1:]
    hint = _hint_at(kind, path)
    if choices := choices_of(hint):  # msgspec names only the wrong value.
        reason = f"expected {' or '.join(choices)}"
    meaning = f". Meaning: {described}" if (described := description_of(hint)) else ""
    return f"{path or 'settings'}: {reason}, {_shown(kind, path, value)}, in {source}{meaning}"


def _shown(kind: type[msgspec.Struct], path: str, value: Any) -> str:
    """Return the given value in a form that an error may show: one setting's value, never a secret."""
    setting = path.partition("[")[0]
    secrets = list(secret_paths(kind))
    if setting in secrets:
        return "got a secret value, which is not shown"
    if isinstance(value, dict | list) or any(not setting or secret.startswith(f"{setting}.") for secret in secrets):
        names = {dict: "a table", list: "a list", str: "a text", bool: "true or false", int: "a number"}
        return f"got {names.get(type(value), 'something else')}"
    return f"got {redact(repr(value))}"
