"""The reference of all settings, generated from the code: `python -m infra.app.reference > infra/SETTINGS.md`."""

from __future__ import annotations

import inspect
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import msgspec

from infra.app.settings import Settings


def settings_reference() -> str:
    """Return SETTINGS.md: every table with its description, and every setting with its default and range."""
    lines = [
        "# Settings",
        "",
        "`python -m infra.app.reference` writes this page from the code, and a test compares the two. TOML tables and",
        "keys have the names below. In the environment `[batch] groups` is `SEARCHLOOP_BATCH__GROUPS`, and",
        "`[policy.tiny] layers` is `SEARCHLOOP_POLICY__TINY__LAYERS`. An unknown key is an error that names its path.",
        "",
    ]
    for field in msgspec.structs.fields(Settings):
        lines += _table(field.name, field.type, field.default)
    return "\n".join(lines).rstrip() + "\n"


def _table(path: str, kind: type[msgspec.Struct], defaults: Any) -> list[str]:
    lines = [f"## [{path}]", "", _about(kind), "", "| key | default | range |", "|---|---|---|"]
    nested: list[str] = []
    hints = get_type_hints(kind, include_extras=True)
    for field in msgspec.structs.fields(kind):
        value = getattr(defaults, field.name)
        if isinstance(value, msgspec.Struct):
            nested += _table(f"{path}.{field.name}", type(value), value)
            continue
        lines.append(f"| `{field.name}` | `{msgspec.json.encode(value).decode()}` | {_range(hints[field.name])} |")
    return [*lines, "", *nested]


def _about(kind: type[msgspec.Struct]) -> str:
    return inspect.cleandoc(kind.__doc__ or "").replace("|", "\\|")


def _range(hint: Any) -> str:
    parts = []
    if get_origin(hint) is Annotated:
        for meta in hint.__metadata__:
            limits = [(">", meta.gt), ("≥", meta.ge), ("<", meta.lt), ("≤", meta.le)]
            parts += [f"{sign} {value:g}" for sign, value in limits if value is not None]
            if meta.description:
                parts.append(meta.description)
        hint = get_args(hint)[0]
    if "Literal" in str(hint):
        parts.insert(0, " or ".join(str(choice) for choice in get_args(hint)))
    return ", ".join(parts).replace("|", "\\|")


if __name__ == "__main__":
    print(settings_reference(), end="")
