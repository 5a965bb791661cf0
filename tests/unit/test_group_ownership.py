"""Whose a consumer group is, from what the broker tells of it."""

from __future__ import annotations

from typing import Any

import pytest
from kafka import TopicPartition

from streams.group_ownership import why_not_ours

TOPIC = "shop.requests"
OURS = TopicPartition(TOPIC, 0)


def member(**changes: Any) -> dict[str, Any]:
    return {
        "client_id": "shop-generator-1",
        "group_instance_id": "shop-generator-1",
        "client_host": "/10.0.0.7",
        "member_metadata": {"topics": [TOPIC], "user_data": ""},
    } | changes


def group(*members: dict[str, Any], kind: str = "consumer") -> dict[str, Any]:
    return {"protocol_type": kind, "members": list(members)}


@pytest.mark.parametrize(
    "described",
    [{}, group(kind=""), group(), group(member(), member(client_id="b", group_instance_id="b"))],
    ids=["unknown", "dead", "empty", "two workers"],
)
def test_a_group_of_our_workers_is_ours(described: dict[str, Any]) -> None:
    assert why_not_ours(described, [TOPIC], [OURS]) == ""


def test_a_worker_whose_subscription_is_not_shown_is_ours() -> None:
    assert why_not_ours(group(member(member_metadata=b"")), [TOPIC], []) == ""


@pytest.mark.parametrize(
    ("described", "committed", "reason"),
    [
        (group(), [OURS, TopicPartition("orders", 3)], "committed offsets of orders[3]"),
        (group(member(group_instance_id=None)), [], "shop-generator-1 at /10.0.0.7 is in it"),
        (group(member(), member(client_id="kcat", group_instance_id=None)), [OURS], "kcat at /10.0.0.7 is in it"),
        (group(member(member_metadata={"topics": [TOPIC, "orders"]})), [OURS], "shop-generator-1 reads orders"),
        (group(kind="connect"), [], "a group of kind 'connect'"),
    ],
)
def test_any_other_group_is_somebody_elses(
    described: dict[str, Any], committed: list[TopicPartition], reason: str
) -> None:
    assert reason in why_not_ours(described, [TOPIC], committed)
