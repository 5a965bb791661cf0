"""Ownership on a cluster: our indexes carry an installation's id, and all other indexes stay untouched.

The mapping's `_meta` of each index that searchloop creates names the installation, the index's own name, its alias and
its purpose. Only an index whose mark agrees in all of these is listed, taken from the alias or deleted. The mark
includes the index's own name, because a clone or a restored copy under another name carries the mark along and is not
ours.

We may use a name if nothing else on the cluster has it. `claim` checks that before anything is created. It checks again
before the alias moves, which may be an hour later. `search_env.engine.index_changes` holds every call that changes the
cluster.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec
from elasticsearch import Elasticsearch

from streams.errors import SearchloopError

META = "searchloop"  # The key of the mark in a mapping's `_meta`.
Kind = Literal["documents", "vectors"]
IsVersion = Callable[[str], bool]
ALL = "all"  # Includes closed and hidden indexes, since they also belong to somebody.
# An API key may have the right to index but not to read templates, and a serverless cluster has no legacy templates.
# The effects of a template are checked again when the index exists.
NO_TEMPLATES = (400, 401, 403, 404, 405, 410)

BRIEF = "*.mappings._meta,*.mappings.dynamic"  # Enough to read a mark; another owner's mapping may be large.
WHOLE = "*.mappings"
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,99}")


class IndexingError(SearchloopError, RuntimeError):
    """An index could not be built, found or read."""


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """Our mark in an index's `_meta`. installation: the id of the home that created it. index: its own name."""

    installation: str
    index: str
    alias: str
    kind: Kind


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A name for indexing by one installation: the fields of `Mark` without the index."""

    installation: str
    alias: str
    kind: Kind

    def mark(self, index: str) -> Mark:
        """Return the mark of an index of this name."""
        return Mark(installation=self.installation, index=index, alias=self.alias, kind=self.kind)


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """One index as the cluster described it. mark: None if it has no readable mark."""

    name: str
    uuid: str
    aliases: frozenset[str]
    mark: Mark | None
    mappings: dict[str, Any]


def meta(mark: Mark) -> dict[str, Any]:
    """Return a mapping's `_meta` with this mark."""
    return {META: msgspec.to_builtins(mark)}


def claim(client: Elasticsearch, place: Place, is_version: IsVersion, *, new: str = "") -> list[Seen]:
    """Return our own indexes of a place, after checking that nothing in it belongs to somebody else.

    is_version: tells whether an index of this name would be a version of this place. new: the name of the index to
    create; "" if that is the alias and a number.
    Raises IndexingError, before any change, for a name that no alias can have, for an index, a data stream or a
    template that has the name, and for an alias that points to anything other than our indexes.
    """
    if not _NAME.fullmatch(place.alias):
        raise IndexingError(
            "expected an index name of lower-case letters, digits, '_', '.' and '-', not beginning with '-', got "
            f"'{place.alias}'"
        )
    ours, strangers = survey(client, place, is_version)
    if strangers:
        raise _refusal(place, strangers)
    _refuse_templates(client, place, new or f"{place.alias}-1")
    return ours


def survey(
    client: Elasticsearch, place: Place, is_version: IsVersion, *, mappings: str = BRIEF
) -> tuple[list[Seen], list[tuple[str, Seen | None]]]:
    """Return our indexes of a place, and others' objects in it: a description each, and the index if it is one."""
    found = client.indices.resolve_index(name=f"{place.alias}*", expand_wildcards=ALL).body
    strangers: list[tuple[str, Seen | None]] = []
    behind: set[str] = set()
    for alias in found["aliases"]:
        pointed = alias["indices"] if isinstance(alias["indices"], list) else [alias["indices"]]
        if alias["name"] == place.alias:
            behind |= set(pointed)
        elif is_version(alias["name"]):
            strangers.append((f"'{alias['name']}' is an alias (of {', '.join(pointed)})", None))
    for stream in found["data_streams"]:
        if stream["name"] == place.alias or is_version(stream["name"]):
            strangers.append((f"'{stream['name']}' is a data stream", None))
    seen = {each.name: each for each in _look(client, f"{place.alias}*", mappings)}
    # An index that vanished while we looked belongs to nobody. An index behind the alias that we may not see is not
    # ours.
    for name in sorted({name for name in seen if name == place.alias or is_version(name)} | behind):
        each = seen.get(name)
        if each is not None and name != place.alias and each.mark == place.mark(name):
            continue
        what = f"the alias '{place.alias}' points to '{name}'" if name in behind else f"'{name}' is an index"
        strangers.append((f"{what}{_whose(each, place)}", each))
    ours = [each for each in seen.values() if each.name != place.alias and each.mark == place.mark(each.name)]
    return ours, strangers


def look(client: Elasticsearch, index: str, *, mappings: str = BRIEF) -> Seen | None:
    """Return an index as it is now; None if none has exactly this name. mappings: the parts of them to read."""
    return next((each for each in _look(client, index, mappings) if each.name == index), None)


def adopt(client: Elasticsearch, place: Place, is_version: IsVersion, properties: Mapping[str, Any]) -> list[str]:
    """Put our mark on the indexes that a searchloop without marks made under this name; return their names.

    An index is adopted only if it has no mark and its mapping has exactly our fields: `properties`, or some of them. It
    must also be behind the alias or have a version's name.
    Raises IndexingError, before any index is marked, if anything else has the name.
    """
    _, strangers = survey(client, place, is_version, mappings=WHOLE)
    old = [
        each for _, each in strangers if each is not None and is_unmarked(each, properties) and is_version(each.name)
    ]
    if others := [item for item in strangers if item[1] is None or item[1] not in old]:
        raise _refusal(place, others)
    for each in old:
        now = look(client, each.name, mappings=WHOLE)
        if now is not None and now.uuid == each.uuid and is_unmarked(now, properties):
            kept = now.mappings.get("_meta") or {}
            client.indices.put_mapping(index=each.name, meta=kept | meta(place.mark(each.name)))
    return [each.name for each in old]


def looks_ours(mappings: Mapping[str, Any], properties: Mapping[str, Any]) -> bool:
    """Return whether an older searchloop may have written a mapping: strict, with our fields and no others."""
    found = mappings.get("properties", {})
    shape = ("type", "analyzer", "copy_to", "dims", "similarity")

    def told(field: Mapping[str, Any]) -> list[Any]:
        copied = field.get("copy_to")
        return [[copied] if key == "copy_to" and isinstance(copied, str) else field.get(key) for key in shape]

    return (
        mappings.get("dynamic") == "strict"
        and {"id"} < set(found) <= set(properties)
        and all(
            told({"type": "object"} | field) == told({"type": "object"} | properties[name])
            for name, field in found.items()
        )
    )


def is_unmarked(seen: Seen, properties: Mapping[str, Any]) -> bool:
    """Return whether an index has our mapping but no mark, so that an older searchloop without marks made it."""
    return META not in (seen.mappings.get("_meta") or {}) and looks_ours(seen.mappings, properties)


def _look(client: Elasticsearch, pattern: str, mappings: str) -> list[Seen]:
    found = client.options(ignore_status=404).indices.get(
        index=pattern,
        expand_wildcards=ALL,
        features=["aliases", "mappings", "settings"],
        filter_path=["*.aliases", *mappings.split(","), "*.settings.index.uuid"],
    )
    if found.meta.status == 404:
        return []
    return [
        Seen(
            name=name,
            uuid=body.get("settings", {}).get("index", {}).get("uuid", ""),
            aliases=frozenset(body.get("aliases", {})),
            mark=_read_mark(body.get("mappings", {})),
            mappings=body.get("mappings", {}),
        )
        for name, body in sorted(found.body.items())
    ]


def _read_mark(mappings: Mapping[str, Any]) -> Mark | None:
    try:
        return msgspec.convert((mappings.get("_meta") or {})[META], Mark)
    except (KeyError, TypeError, msgspec.ValidationError):
        return None


def _whose(seen: Seen | None, place: Place) -> str:
    if seen is None or seen.mark is None:
        return ""
    if seen.mark.installation != place.installation:
        return f" of another installation of searchloop ({seen.mark.installation})"
    if seen.mark.index != seen.name:
        return f", a copy of '{seen.mark.index}'"
    return f", which holds the {seen.mark.kind} of '{seen.mark.alias}'"


def _refusal(place: Place, strangers: list[tuple[str, Seen | None]]) -> IndexingError:
    what, first = strangers[0]
    more = f" (and {len(strangers) - 1} more like it)" if len(strangers) > 1 else ""
    hint = "."
    if first is not None and first.mark is not None and first.mark.installation != place.installation:
        hint = (
            ", or work from the home that made it. If that home is lost, infra/SAFETY.md explains how to take over its "
            "indexes."
        )
    if (
        first is not None
        and META not in (first.mappings.get("_meta") or {})
        and first.mappings.get("dynamic") == "strict"
    ):
        hint = f"; if an older searchloop made it, adopt it with: searchloop index CORPUS --name {place.alias} --adopt."
        if place.kind == "vectors":
            hint = "; if an older searchloop made it, delete it yourself: vectors are made anew from the documents."
    return IndexingError(
        f"the name '{place.alias}' is taken: {what}{more}. searchloop never touches an index that it did not make. "
        f"Nothing was changed. Choose another name{hint}"
    )


def _refuse_templates(client: Elasticsearch, place: Place, index: str) -> None:
    """Raise IndexingError if a template matches an index of this name: it would change our index, or claims the name.

    A template for all indexes claims no name.
    """
    asked = client.options(ignore_status=NO_TEMPLATES).indices
    composable, legacy = asked.get_index_template(), asked.get_template()
    patterns: list[tuple[str, str]] = []
    if composable.meta.status == 200:
        for each in composable.body["index_templates"]:
            patterns += [(each["name"], pattern) for pattern in each["index_template"]["index_patterns"]]
    if legacy.meta.status == 200:
        for name, body in legacy.body.items():
            patterns += [(name, pattern) for pattern in body["index_patterns"]]
    for name, pattern in patterns:
        if set(pattern) != {"*"} and re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), index):
            raise IndexingError(
                f"the name '{place.alias}' is taken: the template '{name}' of this cluster is meant for indexes named "
                f"'{pattern}', as '{index}' would be. Nothing was changed. Choose another name."
            )
