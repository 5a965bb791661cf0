"""Lineage in both directions: the events that made a policy version, and the versions that an event trained.

Both are read from the views `version_events` and `event_versions`; this module gives their rows names.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from storage.errors import StorageError
from storage.log import Log

PLACE = re.compile(r"(?P<topic>[^\[\]]+)\[(?P<partition>\d+)\]@(?P<offset>\d+)")


class VersionMade(msgspec.Struct, frozen=True, kw_only=True):
    """The events and versions that made one policy version.

    ancestors: the versions before it in its lineage, newest first, without itself. events: the records of its own
    update, and of every group that gave this update a gradient. inherited: the number of groups that gave its ancestors
    a gradient.
    """

    version: str
    weights_sha256: str
    ancestors: tuple[str, ...]
    events: tuple[dict[str, Any], ...]
    inherited: int


class GroupTaught(msgspec.Struct, frozen=True, kw_only=True):
    """The fate of one group: the version whose update took it, its use there, and the versions that build on it.

    fate: trained, flat, expired, failed, or waiting if no update has taken it (version is None then). surviving:
    whether the newest policy builds on that version. lives_in: the number of versions along the surviving lineage that
    build on it, including that version.
    """

    group_id: str
    request_id: str | None
    query: str | None
    fate: str
    version: str | None
    surviving: bool
    lives_in: int


def version_made_of(log: Log, name: str) -> VersionMade:
    """Return the origins of a version: "latest", `<lineage>-<step>`, or a step's number on the surviving lineage.

    Raises StorageError if the log knows no such version.
    """
    found = log.rows(
        """
        SELECT u.*, s.record_offset IS NOT NULL AS surviving FROM updates u
        LEFT JOIN surviving_updates s USING (topic, partition, record_offset)
        WHERE $1 = u.lineage || '-' || lpad(u.step::VARCHAR, 6, '0')
            OR (s.record_offset IS NOT NULL AND ($1 = 'latest' OR $1 = u.step::VARCHAR))
        ORDER BY u.step DESC, u.record_offset LIMIT 1
        """,
        (name,),
    )
    if not found:
        (known,) = log.rows("SELECT count(*) AS n, min(step) AS first, max(step) AS last FROM surviving_updates")
        raise StorageError(
            f"--policy: expected latest, a step from {known['first']} to {known['last']} or a version's name, got "
            f"{name!r}; a warmed-up policy (step 0) was made of lessons, not of events"
            if known["n"]
            else f"--policy: this run has no update yet, got {name!r}"
        )
    (row,) = found
    chain = log.rows(
        """
        WITH RECURSIVE chain AS (
            SELECT lineage, step, weights_sha256, parent_lineage, parent_step, parent_sha256, 0 AS depth FROM updates
            WHERE lineage = $1 AND step = $2 AND weights_sha256 = $3
            UNION
            SELECT u.lineage, u.step, u.weights_sha256, u.parent_lineage, u.parent_step, u.parent_sha256, c.depth + 1
            FROM chain c JOIN updates u ON u.lineage = c.parent_lineage AND u.step = c.parent_step
                AND u.weights_sha256 = c.parent_sha256
        )
        SELECT c.*, count(DISTINCT g.group_id) FILTER (g.fate = 'trained') AS groups
        FROM chain c LEFT JOIN group_lineage g USING (lineage, step, weights_sha256)
        GROUP BY ALL ORDER BY depth
        """,
        (row["lineage"], row["step"], row["weights_sha256"]),
    )
    events = log.rows(
        "SELECT event, topic, partition, record_offset, group_id FROM version_events "
        "WHERE lineage = ? AND step = ? ORDER BY topic, partition, record_offset",
        (row["lineage"], row["step"]),
    )
    last = chain[-1]
    names = [_name(each["lineage"], each["step"]) for each in chain[1:]]
    return VersionMade(
        version=_name(row["lineage"], row["step"]),
        weights_sha256=row["weights_sha256"],
        ancestors=(*names, _name(last["parent_lineage"], last["parent_step"])),
        events=tuple(events),
        inherited=sum(each["groups"] for each in chain[1:]),
    )


def groups_taught(log: Log, event: str) -> list[GroupTaught]:
    """Return the fates of the groups of an event, which is named by its place in the log or by an id.

    event: `topic[partition]@offset` of a request, generation or reward (the topic's kind is enough), a group's or
    candidate's id, a request's id, or the text of a query.
    Raises StorageError if the log knows no such event.
    """
    groups = [row["group_id"] for row in _groups_of(log, event)]
    if not groups:
        raise StorageError(
            "--event: expected a place like 'requests[0]@17', a group, candidate or request id, or a query, got "
            f"{event!r}, which this run's log does not know"
        )
    rows = log.rows(
        """
        SELECT g.group_id, g.request_id, g.query, coalesce(l.fate, 'waiting') AS fate, l.lineage, l.step,
            coalesce(l.surviving, false) AS surviving,
            CASE WHEN l.surviving AND l.fate = 'trained'
                THEN (SELECT count(*) FROM surviving_updates s WHERE s.step >= l.step) ELSE 0 END AS lives_in
        FROM first_generations g LEFT JOIN group_lineage l ON l.run = g.run AND l.group_id = g.group_id
        WHERE list_contains($1, g.group_id) ORDER BY g.source_partition, g.source_offset, l.step, l.lineage
        """,
        (groups,),
    )
    return [
        GroupTaught(
            group_id=row["group_id"],
            request_id=row["request_id"],
            query=row["query"],
            fate=row["fate"],
            version=None if row["step"] is None else _name(row["lineage"], row["step"]),
            surviving=row["surviving"],
            lives_in=row["lives_in"],
        )
        for row in rows
    ]


def _groups_of(log: Log, event: str) -> list[dict[str, Any]]:
    if match := PLACE.fullmatch(event):
        place = (match["topic"], int(match["partition"]), int(match["offset"]))
        return log.rows(
            """
            WITH place AS (SELECT $1 AS topic, $2::INTEGER AS partition, $3::BIGINT AS record_offset)
            SELECT g.group_id FROM generations g JOIN place p ON g.partition = p.partition
                AND g.record_offset = p.record_offset AND (g.topic = p.topic OR g.topic LIKE '%.' || p.topic)
            UNION
            SELECT r.group_id FROM rewards r JOIN place p ON r.partition = p.partition
                AND r.record_offset = p.record_offset AND (r.topic = p.topic OR r.topic LIKE '%.' || p.topic)
            UNION
            SELECT g.group_id FROM generations g JOIN place p ON g.source_partition = p.partition
                AND g.source_offset = p.record_offset
                AND (g.source_topic = p.topic OR g.source_topic LIKE '%.' || p.topic)
            """,
            place,
        )
    return log.rows(
        "SELECT DISTINCT group_id FROM first_generations WHERE group_id = $1 OR request_id = $1 OR query = $1 "
        "OR (regexp_full_match($1, '.*:[0-9]+') AND group_id = regexp_replace($1, ':[0-9]+$', ''))",
        (event,),
    )


def _name(lineage: str, step: int) -> str:
    return f"{lineage}-{step:06d}"
