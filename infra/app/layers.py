"""Settings from layers: defaults, a recipe, a TOML file, the environment; later layers win, unknown keys are errors.

Every layer is checked by itself, so an error names the file or variable that it stands in, and the path of the key.
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
from infra.services.private_variables import PREFIX
from infra.services.secret_files import FILE_SUFFIX, read_secret
from streams.errors import SettingsError
from streams.secrets import Secret, redact, reveal, secret_fields, secret_paths, sounds_secret

T = TypeVar("T", bound=msgspec.Struct)

# The lists among the settings, checked by every verb, also one that reads none of their tables. A test holds this to
# the tree.
LIST_SETTINGS = ("policy.lora.targets", "vllm_server.arguments")
_LISTS = (msgspec.inspect.ListType, msgspec.inspect.VarTupleType, msgspec.inspect.TupleType)
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

    Values stay the texts that they are; `combine`, which knows each setting's type, reads a list from JSON.
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
                raise SettingsError(f"{name}: expected a key of a table, but {part!r} is set to a value beside it")
            table = inner
        if ".".join([*tables, key]) in LIST_SETTINGS and value.startswith("["):
            try:
                json.loads(value)
            except (ValueError, RecursionError) as error:
                raise SettingsError(f"{name}: expected a list in JSON, got {value!r} ({error})") from error
        table[key] = value
    return layer


def assignments_layer(assignments: Sequence[str]) -> dict[str, Any]:
    """Return the settings in `table.key=value` texts, as `--set` takes them; lists are given as JSON.

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
                f"--set: expected no secret on the command line, which every user may read, got {name.strip()}. Set "
                f"the variable {variable}, or {variable}_FILE"
            )
        variables[PREFIX + name.strip().replace(".", "__").upper()] = value.strip()
    return environment_layer(variables)


def combine(kind: type[T], layers: list[tuple[str, dict[str, Any]]]) -> T:
    """Return settings of this kind from (source, tables) layers, the last one winning.

    A secret may stand in a file that `NAME_file` points at; the later layer's way of giving it wins.
    Raises SettingsError naming source, path, what was expected and what came, unless that is, or may hold, a secret.
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
    except msgspec.ValidationError as error:  # Each layer was sound, and together they are not.
        raise SettingsError(_explain(kind, merged, str(error), "all sources together")) from None


def revealed_builtins(settings: msgspec.Struct) -> dict[str, Any]:
    """Return settings as tables, their secrets too: for another layer on top, and for nothing that is kept."""
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


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        merged[key] = (
            _merge(merged[key], value) if isinstance(value, dict) and isinstance(merged.get(key), dict) else value
        )
    return merged


def _read_lists(kind: type[msgspec.Struct], layer: dict[str, Any], source: str, path: str = "") -> dict[str, Any]:
    """Return the layer with the lists that came as JSON text: a variable has no other way to give one."""
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
    """Return whether a setting of this type is a list, with limits or a description about it, or absent."""
    return _lists(msgspec.inspect.type_info(hint))


def _lists(kind: msgspec.inspect.Type) -> bool:
    while isinstance(kind, msgspec.inspect.Metadata):
        kind = kind.type
    if isinstance(kind, msgspec.inspect.UnionType):
        return any(_lists(each) for each in kind.types)
    return isinstance(kind, _LISTS)


def _table_in(kind: Any) -> type[msgspec.Struct] | None:
    """Return the table that a setting of this type is, also one that may be absent; None if it is none."""
    choices = typing.get_args(kind) or (kind,)
    return next((each for each in choices if isinstance(each, type) and issubclass(each, msgspec.Struct)), None)


def _one_way_to_give(path: str, layer: dict[str, Any], below: dict[str, Any], source: str) -> None:
    """Drop from below how a secret was given there if this layer gives it in the other way."""
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
    """Return the settings with every secret that stands in a file."""
    changes: dict[str, Any] = {}
    for name in type(settings).__struct_fields__:
        value = getattr(settings, name)
        if isinstance(value, msgspec.Struct):
            if (read := _with_secret_files(value, f"{path}{name}.")) is not value:
                changes[name] = read
        elif name in secret_fields(type(settings)) and (place := getattr(settings, name + FILE_SUFFIX, "")):
            secret = read_secret(Path(place), setting=path + name + FILE_SUFFIX)
            changes[name] = secret
            changes[name + FILE_SUFFIX] = ""  # It has been read; what both give would contradict itself later.
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
    if path and re.match(r"[a-z_]+: ", reason):  # Said by the table itself, of one of its settings.
        return f"{path}.{reason}, in {source}"
    reason = reason[0].lower() + reason[1:]
    return f"{path or 'settings'}: {reason}, {_shown(kind, path, value)}, in {source}"


def _shown(kind: type[msgspec.Struct], path: str, value: Any) -> str:
    """Return what came, as an error may tell it: the value of one setting, and nothing that is or holds a secret."""
    setting = path.partition("[")[0]
    secrets = list(secret_paths(kind))
    if setting in secrets:
        return "got a value that is not shown, as it is secret"
    if isinstance(value, dict | list) or any(not setting or secret.startswith(f"{setting}.") for secret in secrets):
        names = {dict: "a table", list: "a list", str: "a text", bool: "true or false", int: "a number"}
        return f"got {names.get(type(value), 'something else')}"
    return f"got {redact(repr(value))}"
