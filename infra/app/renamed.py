"""Renamed settings. Files, variables and recorded runs with the old names work for one more release."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from streams.errors import SettingsError

log = logging.getLogger(__name__)

# Old path → new path, tables first.
RENAMED = {
    "environment": "leser",
    "summary_environment": "relsum",
    "train.task": "train.recipe",
    "cross_encoder.tuning_rate": "cross_encoder.adapting_rate",
}
# By the new path: old value → new value.
RENAMED_VALUES = {"train.recipe": {"expansion": "leser", "summary": "relsum"}}

# Baselines, as `measure`, `search --texts` and plans name them; ReLSum's and ReSuMe's have one name now.
RENAMED_ARMS = {
    "first-tokens": "lead",
    "documents": "description",
    "titles": "title",
    "key-prior": "key-counts",
    "log-counts": "key-counts",
    "log-counts-per-word": "key-counts-per-word",
    "log-rates": "key-rates",
}
ADAPTED, OLD_ADAPTED = "adapted-", "tuned-"


def arm_name(name: str) -> str:
    """Return the name of a baseline or version by which recipes know it, and warn of an old one."""
    prefix, of = "", name
    for each in (ADAPTED, OLD_ADAPTED):
        if name.startswith(each):
            prefix, of = ADAPTED, name.removeprefix(each)
    new = prefix + RENAMED_ARMS.get(of, of)
    if new != name:
        log.warning("the arm %s has the new name %s: please rename it", name, new)
    return new


def with_new_names(tables: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return one layer of settings with the new names, and warn of each old name.

    source: the layer's name in messages; "" means a recorded run and logs no warning.
    Raises SettingsError if a layer sets a setting under both names.
    """
    renamed = _copy(tables)
    for old, new in RENAMED.items():
        *parents, key = old.split(".")
        table = _table(renamed, parents)
        if table is None or key not in table:
            continue
        value, new_key = table.pop(key), new.split(".")[-1]
        if new_key not in table:
            table[new_key] = value
        elif isinstance(value, dict) and isinstance(table[new_key], dict) and not value.keys() & table[new_key].keys():
            table[new_key] |= value
        else:
            raise SettingsError(f"{old}: expected its new name {new} alone, got both, in {source or 'a recorded run'}")
        if source:
            log.warning("%s has the new name %s: please rename it in %s", old, new, source)
    for path, values in RENAMED_VALUES.items():
        *parents, key = path.split(".")
        table = _table(renamed, parents)
        if table is not None and isinstance(table.get(key), str):
            table[key] = values.get(table[key], table[key])
    return renamed


def _copy(tables: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _copy(value) if isinstance(value, dict) else value for name, value in tables.items()}


def _table(tables: dict[str, Any], parents: list[str]) -> dict[str, Any] | None:
    for name in parents:
        inner = tables.get(name)
        if not isinstance(inner, dict):
            return None
        tables = inner
    return tables
