"""What a topic must be like: each setting that does not do is named, with what was expected and what was found."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from kafka import codec

from streams.topic_plans import (
    COMPRESSION,
    FoundTopic,
    TopicPlan,
    can_read,
    differences,
    insync_min,
    plan_derived_topics,
    plan_topics,
    unequal_partitions,
)

PLANS = {plan.kind: plan for plan in plan_topics("shop", partitions=4, replication=3)}
WINDOWS = plan_derived_topics("shop", replication=3)[0]


def as_planned(plan: TopicPlan, **changes: str) -> FoundTopic:
    """A topic as the plan makes it, with some settings changed; `_` in a name stands for a dot."""
    settings = plan.required() | {name.replace("_", "."): value for name, value in changes.items()}
    return FoundTopic(
        name=plan.name,
        topic_id="id",
        partitions=plan.partitions,
        replication=plan.replication,
        used=False,
        settings=settings,
    )


@pytest.mark.parametrize("plan", [*PLANS.values(), WINDOWS], ids=lambda plan: plan.kind)
def test_a_topic_as_we_make_it_fits(plan: TopicPlan) -> None:
    assert differences(plan, as_planned(plan), ours=False) == []
    assert differences(plan, as_planned(plan), ours=True) == []


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        (
            "requests",
            {"cleanup_policy": "compact"},
            "cleanup.policy: expected delete, because every record counts, found",
        ),
        ("updates", {"cleanup_policy": "compact,delete"}, "cleanup.policy: expected delete"),
        ("rewards", {"retention_ms": "60000"}, "retention.ms: expected at least 604800000, or -1, found 60000"),
        ("updates", {"retention_ms": "604800000"}, "retention.ms: expected -1 (forever), found 604800000"),
        ("rewards", {"retention_bytes": "1000"}, "retention.bytes: expected -1"),
        ("rewards", {"max_message_bytes": "1048588"}, "max.message.bytes: expected at least 8454144, found 1048588"),
        ("dead-letters", {"max_message_bytes": "8454144"}, "max.message.bytes: expected at least 16842752"),
        ("requests", {"min_insync_replicas": "4"}, "min.insync.replicas: expected at most its 3 replicas"),
        ("requests", {"min_insync_replicas": "1"}, "min.insync.replicas: expected 2 of 3 replicas, found 1"),
        ("requests", {"unclean_leader_election_enable": "true"}, "unclean.leader.election.enable: expected false"),
        ("requests", {"compression_type": "snappy"}, "compression.type: expected gzip or producer"),
    ],
)
def test_each_setting_that_does_not_do_is_named(kind: str, changes: dict[str, str], said: str) -> None:
    plan = PLANS[kind]
    (line,) = differences(plan, as_planned(plan, **changes), ours=False)
    assert line.startswith(f"shop.{kind}: {said}")


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("requests", {"partitions": 2}, "shop.requests: partitions: expected 4 (kafka.partitions), found 2"),
        ("updates", {"partitions": 2}, "shop.updates: partitions: expected 1, because its records are in total order"),
        ("requests", {"replication": 2}, "shop.requests: replication: expected 3 (kafka.replication), found 2"),
    ],
)
def test_too_few_partitions_or_replicas_are_named(kind: str, changes: dict[str, int], said: str) -> None:
    plan = PLANS[kind]
    (line,) = differences(plan, msgspec.structs.replace(as_planned(plan), **changes), ours=False)
    assert line.startswith(said)


def test_of_a_topic_of_our_own_only_what_would_break_the_run_is_said() -> None:
    plan = PLANS["rewards"]
    altered = as_planned(plan, retention_ms="60000", min_insync_replicas="1", unclean_leader_election_enable="true")
    altered = msgspec.structs.replace(altered, partitions=2, replication=1)
    assert differences(plan, altered, ours=True) == []
    compacted = as_planned(plan, cleanup_policy="compact", max_message_bytes="1000", min_insync_replicas="4")
    assert len(differences(plan, compacted, ours=True)) == 3


def test_a_derived_topic_that_is_not_compacted_is_refused() -> None:
    (line,) = differences(WINDOWS, as_planned(WINDOWS, cleanup_policy="delete"), ours=True)
    assert line == "shop.windows: cleanup.policy: expected compact, found delete"


def test_partitions_that_differ_between_topics_are_refused_with_what_to_add() -> None:
    found = [(plan, as_planned(plan)) for plan in PLANS.values()]
    assert unequal_partitions(found, ours=False) == []
    more = [
        (plan, msgspec.structs.replace(topic, partitions=6) if plan.kind == "requests" else topic)
        for plan, topic in found
    ]
    (line,) = unequal_partitions(more, ours=True)
    assert "add partitions to shop.generations, shop.rewards up to 6" in line
    # Feedback does not travel with the groups: of our own run it may stay as it is.
    chain = [
        (plan, msgspec.structs.replace(topic, partitions=6) if plan.partitioned and plan.kind != "feedback" else topic)
        for plan, topic in found
    ]
    assert unequal_partitions(chain, ours=True) == []
    assert unequal_partitions(chain, ours=False) != []


def test_an_acknowledged_record_lies_on_two_brokers_at_least_where_there_are_replicas() -> None:
    assert [insync_min(replicas) for replicas in range(1, 8)] == [1, 2, 2, 3, 3, 4, 4]


def test_only_what_this_python_can_read_is_readable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert can_read("gzip") and can_read("producer") and can_read("uncompressed") and not can_read("brotli")
    for has in (False, True):
        monkeypatch.setattr(codec, "has_zstd", lambda has=has: has)
        assert can_read("zstd") is has


def test_every_setting_of_a_topic_is_documented() -> None:
    page = (Path(__file__).parents[2] / "infra" / "DURABILITY.md").read_text()
    settings = {name for plan in (*PLANS.values(), WINDOWS) for name in plan.required()} | set(COMPRESSION)
    assert {name for name in settings if f"`{name}`" not in page} == set()
