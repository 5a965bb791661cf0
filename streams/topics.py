"""One table of the topics: the event of each topic, its key, and its retention.

Every run has its own topics, named `<run>.<kind>`: runs never mix, and removing a run removes its topics. A group keeps
its partition number from request to reward, so the order within a partition is the requests' order in every topic.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec

from streams.errors import SettingsError
from streams.events import (
    DeadLetter,
    DevScore,
    Event,
    Generation,
    MonitorState,
    PolicyVersion,
    Request,
    Reward,
    StageWindow,
    Update,
    VersionWindow,
    WindowEvent,
)
from streams.serving_events import Decision
from streams.traffic_events import Feedback, Impression, ImpressionOutcome, UserAction

FOREVER = -1
WEEK_MS = 7 * 24 * 3600 * 1000


class Topic(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of topic.

    kind: the part of the name after the run. key: the record's key, from the event.
    partitioned: False keeps the topic at one partition, whatever the run's setting (a total order is part of its
    meaning).
    retention_ms: FOREVER (-1) or milliseconds. live: it holds what people saw and did, so a setting decides on its
    retention (kafka.live_retention_hours).
    """

    kind: str
    event: type[Event]
    key: Callable[[Event], str]
    partitioned: bool
    retention_ms: int
    live: bool = False


class DerivedTopic(msgspec.Struct, frozen=True, kw_only=True):
    """A topic that can be derived anew from the others: no worker of the loop reads it, and no ledger holds it.

    It has one partition, and is compacted: only the last record of each key stays.
    """

    kind: str
    events: tuple[type[WindowEvent], ...]
    key: Callable[[WindowEvent], str]


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
        kind="dev-scores",
        event=DevScore,
        key=lambda e: version_name(e.policy),  # type: ignore[union-attr]
        partitioned=False,
        retention_ms=FOREVER,
    ),
    Topic(
        kind="feedback",
        event=Feedback,
        key=lambda e: e.feedback_id,  # type: ignore[union-attr]
        partitioned=True,
        retention_ms=WEEK_MS,
        live=True,
    ),
    Topic(
        kind="impressions",
        event=Impression,
        key=lambda e: e.impression_id,  # type: ignore[union-attr]
        partitioned=True,
        retention_ms=WEEK_MS,
        live=True,
    ),
    Topic(
        kind="actions",
        event=UserAction,
        key=lambda e: e.impression_id,  # type: ignore[union-attr]
        partitioned=True,
        retention_ms=WEEK_MS,
        live=True,
    ),
    Topic(
        kind="impression-outcomes",
        event=ImpressionOutcome,
        key=lambda e: e.impression.impression_id,  # type: ignore[union-attr]
        partitioned=True,
        retention_ms=WEEK_MS,
        live=True,
    ),
    Topic(
        kind="decisions",
        event=Decision,
        key=lambda e: e.version,  # type: ignore[union-attr]
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


def window_key(event: WindowEvent) -> str:
    """Return a window's name; a later record of the same name replaces the earlier one."""
    if isinstance(event, VersionWindow):
        return f"version/{event.start_ms}/{version_name(event)}"
    if isinstance(event, StageWindow):
        return f"stage/{event.start_ms}/{event.stage}"
    return "state"


WINDOWS = DerivedTopic(kind="windows", events=(VersionWindow, StageWindow, MonitorState), key=window_key)
DERIVED: tuple[DerivedTopic, ...] = (WINDOWS,)

BY_KIND = {topic.kind: topic for topic in TOPICS}
BY_EVENT = {topic.event: topic for topic in TOPICS}

KINDS = frozenset(BY_KIND) | {topic.kind for topic in DERIVED}

RUN_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


def version_name(policy: object) -> str:
    """Return the name of a policy version in keys, folders and tables: `<lineage>-<step>`."""
    return f"{policy.lineage}-{policy.step:06d}"  # type: ignore[attr-defined]


def topic_name(run: str, kind: str) -> str:
    """Return a topic's full name.

    Raises SettingsError if the run's name cannot be a topic's name, KeyError if there is no such kind.
    """
    if not RUN_NAME.fullmatch(run):
        raise SettingsError(
            f"run: expected 1 to 63 of a-z, 0-9 and '-', not beginning with '-', got {run!r}; choose another --run NAME"
        )
    if kind not in KINDS:
        raise KeyError(kind)
    return f"{run}.{kind}"


def kind_of(name: str) -> str:
    """Return the kind of a topic from its full name."""
    return name.rsplit(".", 1)[-1]
