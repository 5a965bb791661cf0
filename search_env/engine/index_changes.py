"""All calls that create, move or delete an index of a cluster; each checks the cluster first.

Every index that we create carries our mark. We delete an index only if it carries our mark and is still the index that
we looked at. An index is filled through an alias that nobody else has. If somebody deletes the index meanwhile and
creates another one in its place, that index gets none of our documents and never our alias.
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Iterable
from typing import Any

from elastic_transport import TransportError
from elasticsearch import ApiError, Elasticsearch

from search_env.engine.ownership import IndexingError, Place, Seen, look

log = logging.getLogger(__name__)

WRITING_BYTES = 6  # Random bytes, in hex, at the end of the alias through which an index is filled.


def create_marked(
    client: Elasticsearch, place: Place, index: str, *, mappings: dict[str, Any], settings: dict[str, Any]
) -> tuple[Seen, str]:
    """Create an empty index; return the index as seen on the cluster, and the alias for writing.

    It has one shard, if the settings name no number.

    Raises IndexingError if a template of the cluster has put it behind other aliases.
    """
    through = f"{index}.{secrets.token_hex(WRITING_BYTES)}"
    try:
        client.indices.create(
            index=index,
            mappings=mappings,
            aliases={through: {}},
            settings={
                "number_of_shards": 1,
                "refresh_interval": "-1",
                # A template may give every index a pipeline, which could send documents elsewhere.
                "index.default_pipeline": "_none",
                "index.final_pipeline": "_none",
                **settings,
            },
        )
    except ApiError:
        # The first try created it but its answer was lost; the client's second try was refused.
        now = look(client, index)
        if now is None or through not in now.aliases:
            raise
    return _made(client, index, place, aliases=frozenset({through})), through


def switch_alias(client: Elasticsearch, place: Place, new: Seen, through: str, older: Iterable[Seen]) -> None:
    """Point a place's alias to its new index and to none of our older ones, in one step or not at all.

    through: the alias by which the new index was written; "" if it was finished earlier. This alias must still exist.
    That proves that the index is the one that we created, and not another one that has taken its name.
    """
    actions: list[dict[str, Any]] = []
    if through:
        actions.append({"remove": {"index": new.name, "alias": through, "must_exist": True}})
    actions += [{"remove": {"index": each.name, "alias": place.alias}} for each in older if place.alias in each.aliases]
    actions.append({"add": {"index": new.name, "alias": place.alias}})
    try:
        client.indices.update_aliases(actions=actions)
    except (ApiError, TransportError):
        # The answer may have been lost: the client's retry cannot repeat a step that has already been taken.
        now = look(client, new.name)
        if now is None or now.uuid != new.uuid or place.alias not in now.aliases:
            raise


def delete_ours(client: Elasticsearch, seen: Seen) -> bool:
    """Delete an index if it is still the one that was seen, by uuid and by mark; return whether it is gone.

    Elasticsearch takes no uuid with a deletion, so some milliseconds pass between the check and the deletion.
    """
    now = look(client, seen.name)
    if now is None:
        return True
    if now.uuid != seen.uuid or now.mark is None or now.mark != seen.mark:
        log.warning("index '%s' has been replaced by one that is not ours; it stays", seen.name)
        return False
    client.options(ignore_status=404).indices.delete(index=seen.name)
    return True


def delete_superseded(client: Elasticsearch, seen: Seen, place: Place) -> bool:
    """Delete a version of ours, unless somebody has put another alias on it; return whether it is gone."""
    now = look(client, seen.name)
    kept = sorted(
        alias
        for alias in (now.aliases if now else ())
        if alias != place.alias and not _is_for_writing(alias, seen.name)
    )
    if kept:
        log.warning(
            "index '%s' is kept: the alias '%s' still points to it, and is not ours. Delete the index when that alias "
            "no longer needs it",
            seen.name,
            "', '".join(kept),
        )
        return False
    return delete_ours(client, seen)


def discard(client: Elasticsearch, seen: Seen, place: Place) -> None:
    """Delete an unfinished index of ours, but never one behind the alias; log a warning if that fails."""
    try:
        now = look(client, seen.name)
        if now is not None and place.alias not in now.aliases:
            delete_ours(client, seen)
    except (ApiError, TransportError) as error:
        log.warning(
            "the unfinished index '%s' could not be deleted (%s); the next indexing deletes it", seen.name, error
        )


def _made(client: Elasticsearch, index: str, place: Place, *, aliases: frozenset[str]) -> Seen:
    """Return an index that was just created, after checking that no template of the cluster has added aliases to it.

    Raises IndexingError if one has, or if the index is not ours; an index of ours is deleted again while it is empty.
    """
    seen = look(client, index)
    if seen is None or seen.mark != place.mark(index):
        raise IndexingError(f"index '{index}' was replaced during its creation and is not ours. Choose another name")
    if seen.aliases != aliases:
        delete_ours(client, seen)
        more = ", ".join(sorted(seen.aliases - aliases)) or "none of ours"
        raise IndexingError(
            f"index '{index}': a template of this cluster puts it behind aliases ({more}), where it would change "
            "somebody's searches. Choose another name"
        )
    return seen


def is_filled(seen: Seen) -> bool:
    """Return whether an index is still being filled: its writer is at work or was killed."""
    return any(_is_for_writing(alias, seen.name) for alias in seen.aliases)


def _is_for_writing(alias: str, index: str) -> bool:
    """Return whether an alias has the form of ours for filling an index; a user's alias may begin the same way."""
    return re.fullmatch(rf"{re.escape(index)}\.[0-9a-f]{{{2 * WRITING_BYTES}}}", alias) is not None
