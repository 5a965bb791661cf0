"""The reference of all settings, generated from the code: `python -m infra.app.reference > infra/SETTINGS.md`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple, get_type_hints

import msgspec

from infra.app.settings import Settings
from streams.descriptions import choices_of, description_of, is_common, marks
from streams.secrets import is_secret


class Described(NamedTuple):
    """One setting: its path, its default in the tree, and its type with all marks."""

    path: str
    default: Any
    hint: Any


def described_settings(defaults: msgspec.Struct, path: str = "") -> Iterator[Described]:
    """Yield every setting of the tree, depth first, in the order of definition."""
    hints = get_type_hints(type(defaults), include_extras=True)
    for field in msgspec.structs.fields(type(defaults)):
        where = f"{path}.{field.name}" if path else field.name
        value = getattr(defaults, field.name)
        if isinstance(value, msgspec.Struct):
            yield from described_settings(value, where)
        else:
            yield Described(where, value, hints[field.name])


def settings_reference() -> str:
    """Return SETTINGS.md: the common settings, then every table with its settings, their ranges and descriptions."""
    lines = [
        "# Settings",
        "",
        "`python -m infra.app.reference` writes this page from the code, and a test compares the two. TOML tables and",
        "keys have the names below. In the environment `[batch] groups` is `SEARCHLOOP_BATCH__GROUPS`, and",
        "`[policy.tiny] layers` is `SEARCHLOOP_POLICY__TINY__LAYERS`. An unknown key is an error that names its path.",
        "",
        "The name of a key contains its unit. A recipe (`--recipe`) changes some defaults; your values win over it.",
        "",
        "## The settings to know first",
        "",
        "These settings connect searchloop to your services, choose the policy, and control the cost and the stability",
        "of learning. The recipe and the number of updates are options of `searchloop train`. Credentials for Kafka",
        "stand in [SECURITY.md](SECURITY.md), and a vLLM of your own in [MODELS.md](MODELS.md).",
        "",
        *_head("setting"),
    ]
    lines += [_row(each, each.path) for each in described_settings(Settings()) if is_common(each.hint)]
    lines.append("")
    for field in msgspec.structs.fields(Settings):
        lines += _table(field.name, field.type, field.default)
    return "\n".join(lines).rstrip() + "\n"


def _table(path: str, kind: type[msgspec.Struct], defaults: Any) -> list[str]:
    lines = [f"## [{path}]", "", _about(kind), ""]
    rows: list[str] = []
    nested: list[str] = []
    hints = get_type_hints(kind, include_extras=True)
    for field in msgspec.structs.fields(kind):
        value = getattr(defaults, field.name)
        if isinstance(value, msgspec.Struct):
            nested += _table(f"{path}.{field.name}", type(value), value)
        else:
            rows.append(_row(Described(f"{path}.{field.name}", value, hints[field.name]), field.name))
    if rows:
        lines += [*_head("key"), *rows, ""]
    return [*lines, *nested]


def _head(name: str) -> tuple[str, str]:
    return f"| {name} | default | range | description |", "|---|---|---|---|"


def _row(setting: Described, name: str) -> str:
    default = msgspec.json.encode(setting.default).decode()
    return f"| `{name}` | `{default}` | {_range(setting.hint)} | {_cell(description_of(setting.hint))} |"


def _about(kind: type[msgspec.Struct]) -> str:
    return _cell(inspect.cleandoc(kind.__doc__ or ""))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _range(hint: Any) -> str:
    parts = ["secret"] if is_secret(hint) else []
    for mark in marks(hint):
        limits = [(">", mark.gt), ("≥", mark.ge), ("<", mark.lt), ("≤", mark.le)]
        parts += [f"{sign} {value:g}" for sign, value in limits if value is not None]
    if choices := choices_of(hint):
        parts.append(" or ".join(choices))
    return _cell(", ".join(parts))


if __name__ == "__main__":
    print(settings_reference(), end="")
