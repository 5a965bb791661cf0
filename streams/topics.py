"""One table: which event lies in which topic, how it is keyed, and how long it stays.

Every run has its own topics, named `<run>.<kind>`: runs never mix, and removing a run removes its topics. A group keeps
its partition number from request to reward, so order within a partition is the requests' order all the way down.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec

from streams.errors import SettingsError
from streams.events import DeadLetter, Event, Generation, PolicyVersion, Request, Reward, Update

FOREVER = -1
WEEK_MS = 7 * 24 * 3600 * 1000


class Topic(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of topic.

    kind: the part of the name after the run. key: the record's key, from the event.
    partitioned: False keeps the topic at one partition, whatever the run's setting (a total order is part of its
    meaning).
    retention_ms: FOREVER (-1) or milliseconds.
    """

    kind: str
    event: type[Event]
    key: Callable[[Event], str]
    partitioned: bool
    retention_ms: int


TOPICS: tuple[Topic, ...] = (
    Topic(kind="requests", event=Request, key=lambda e: e.request_id, partitioned=True, retention_ms=WEEK_MS),  # type: ignore[union-attr]
    Topic(kind="generations", event=Generation, key=lambda e: e.group_id, partitioned=True, retention_ms=WEEK_MS),  # type: ignore[union-attr]
    Topic(kind="rewards", event=Reward, key=lambda e: e.group_id, partitioned=True, retention_ms=WEEK_MS),  # type: ignore[union-attr]
    Topic(kind="updates", event=Update, key=lambda e: version_name(e.policy), partitioned=False, retention_ms=FOREVER),  # type: ignore[union-attr]
    Topic(
        kind="policy-versions",
        event=PolicyVersion,
        key=lambda e: version_name(e.policy),  # type: ignore[union-attr]
        partitioned=False,
        retention_ms=FOREVER,
    ),
    Topic(
        kind="dead-letters",
        event=DeadLetter,
        key=lambda e: f"{e.source.topic}/{e.source.partition}/{e.source.offset}",  # type: ignore[union-attr]
        partitioned=False,
        retention_ms=FOREVER,
    ),
)

BY_KIND = {topic.kind: topic for topic in TOPICS}
BY_EVENT = {topic.event: topic for topic in TOPICS}

RUN_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


def version_name(policy: object) -> str:
    """Return the name of a policy version as it stands in keys, folders and tables: `<lineage>-<step>`."""
    return f"{policy.lineage}-{policy.step:06d}"  # type: ignore[attr-defined]


def topic_name(run: str, kind: str) -> str:
    """Return a topic's full name.

    Raises SettingsError if the run's name could not be a topic's name, KeyError if there is no such kind.
    """
    if not RUN_NAME.fullmatch(run):
        raise SettingsError(
            f"run: expected 1 to 63 of a-z, 0-9 and '-', not beginning with '-', got {run!r}; choose another --run NAME"
        )
    return f"{run}.{BY_KIND[kind].kind}"


def kind_of(name: str) -> str:
    """Return the kind of a topic from its full name."""
    return name.rsplit(".", 1)[-1]
