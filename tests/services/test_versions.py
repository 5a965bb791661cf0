"""Policy versions followed over a real topic: the newest that is there is loaded, and one that is gone stops nobody."""

from __future__ import annotations

from pathlib import Path

from kafka import TopicPartition

from learner.batches import BatchSettings
from learner.checkpoints import Manifest
from learner.following import VersionFollower
from learner.learning import write_policy_checkpoint
from learner.policy import build_tiny
from learner.policy_settings import TinySettings
from streams.clients import connect_producer, create_topics
from streams.codec import decode
from streams.delivery import DeliverySettings, Outbox
from streams.events import DeadLetter, PolicyRef, PolicyVersion
from streams.kafka_settings import KafkaSettings
from streams.ranges import log_bounds, read_range
from streams.topics import topic_name, version_name


def test_a_generator_that_begins_late_passes_over_the_versions_that_are_gone(
    local_services: object, unique_name: str, tmp_path: Path
) -> None:
    kafka = KafkaSettings(bootstrap=local_services.kafka, partitions=1)  # type: ignore[attr-defined]
    create_topics(kafka, unique_name)
    producer = connect_producer(kafka, client_id="test")
    outbox = Outbox(producer, unique_name, stage="learner", settings=DeliverySettings())
    checkpoints = tmp_path / "checkpoints"
    policy = build_tiny(["red patch cable"] * 4, TinySettings(vocabulary_size=300, layers=1))
    first = Manifest(policy=PolicyRef(lineage="1-a", step=1, sha256=""), parent=None)
    folder, kept = write_policy_checkpoint(checkpoints, policy, first, None)
    follower = VersionFollower(kafka, unique_name, checkpoints, DeliverySettings())

    def announce(policy: PolicyRef, path: str) -> bool:
        outbox.send(PolicyVersion(run=unique_name, policy=policy, parent=None, path=path, made_at_ms=0))
        outbox.flush()
        return follower.follow(outbox, wait_seconds=30.0)

    gone = PolicyRef(lineage="1-a", step=0, sha256="0" * 64)
    assert not announce(gone, "checkpoints/1-a-000000")
    assert follower.loaded is None
    assert announce(kept.policy, f"checkpoints/{folder.name}")
    assert follower.loaded is not None and follower.loaded.reference == kept.policy
    assert not announce(PolicyRef(lineage="1-a", step=2, sha256="0" * 64), "checkpoints/1-a-000002")
    assert follower.loaded.reference == kept.policy
    producer.close()


def test_an_announcement_that_leads_out_of_the_run_is_a_dead_letter_and_the_version_before_stays(
    local_services: object, unique_name: str, tmp_path: Path
) -> None:
    kafka = KafkaSettings(bootstrap=local_services.kafka, partitions=1)  # type: ignore[attr-defined]
    create_topics(kafka, unique_name)
    producer = connect_producer(kafka, client_id="test")
    outbox = Outbox(producer, unique_name, stage="generator", settings=DeliverySettings())
    policy = build_tiny(["red patch cable"] * 4, TinySettings(vocabulary_size=300, layers=1))
    checkpoints = {run: tmp_path / run / "checkpoints" for run in ("mine", "other")}
    written = {
        run: write_policy_checkpoint(
            root, policy, Manifest(policy=PolicyRef(lineage="1-a", step=step, sha256=""), parent=None), None
        )
        for step, (run, root) in enumerate(checkpoints.items(), start=1)
    }
    follower = VersionFollower(kafka, unique_name, checkpoints["mine"], DeliverySettings())

    def announce(policy: PolicyRef, *paths: str) -> bool:
        for path in paths:
            outbox.send(PolicyVersion(run=unique_name, policy=policy, parent=None, path=path, made_at_ms=0))
        outbox.flush()
        return follower.follow(outbox, wait_seconds=30.0)

    mine, others = (manifest.policy for _, manifest in written.values())
    assert announce(mine, "checkpoints/1-a-000001")
    folder, _ = written["other"]  # A whole checkpoint of the announced weights, elsewhere: it must not be opened.
    for path in (str(folder), "../other/checkpoints/1-a-000002", "checkpoints/../../other/checkpoints/1-a-000002"):
        assert not announce(others, path)
        assert follower.loaded is not None and follower.loaded.reference == mine
    assert not announce(PolicyRef(lineage="../../other/checkpoints/1-a", step=2, sha256=others.sha256), "x")
    outbox.flush()
    partition = TopicPartition(topic_name(unique_name, "dead-letters"), 0)
    ((first, end),) = log_bounds(kafka, [partition]).values()
    letters = [decode(record.value) for record in read_range(kafka, partition, first, end, client_id="test")]
    assert [(letter.source.offset, letter.stage) for letter in letters if isinstance(letter, DeadLetter)] == [
        (offset, "generator") for offset in (1, 2, 3, 4)
    ]
    assert all("expected " in letter.error for letter in letters if isinstance(letter, DeadLetter))
    producer.close()


def test_an_announcement_of_nobody_takes_neither_the_version_nor_the_grants_from_a_generator(
    local_services: object, unique_name: str, tmp_path: Path
) -> None:
    kafka = KafkaSettings(bootstrap=local_services.kafka, partitions=1)  # type: ignore[attr-defined]
    create_topics(kafka, unique_name)
    producer = connect_producer(kafka, client_id="test")
    outbox = Outbox(producer, unique_name, stage="learner", settings=DeliverySettings())
    checkpoints = tmp_path / "checkpoints"
    policy = build_tiny(["red patch cable"] * 4, TinySettings(vocabulary_size=300, layers=1))
    first = Manifest(policy=PolicyRef(lineage="1-a", step=1, sha256=""), parent=None)
    _, kept = write_policy_checkpoint(checkpoints, policy, first, None)
    future = PolicyRef(lineage="9-ffffff", step=10**6, sha256="0" * 64)

    def announce(policy: PolicyRef, admitted: dict[int, int]) -> None:
        path = f"checkpoints/{version_name(policy)}"
        outbox.send(PolicyVersion(run=unique_name, policy=policy, parent=None, path=path, requests_admitted=admitted))
        outbox.flush()

    def admitted(follower: VersionFollower) -> list[int]:
        return [follower.admitted(partition, BatchSettings()) for partition in (0, 1)]

    announce(kept.policy, {0: 2, 1: 1})
    announce(future, {0: 3000})
    follower = VersionFollower(kafka, unique_name, checkpoints, DeliverySettings())
    assert follower.follow(outbox, wait_seconds=30.0), "all that came in one look was forgotten with the last"
    assert admitted(follower) == [2, 1]
    announce(kept.policy, {7: 5})
    assert not follower.follow(outbox, wait_seconds=30.0)
    announce(kept.policy, {0: 3})
    announce(future, {0: 3000})
    assert not follower.follow(outbox, wait_seconds=30.0)
    assert admitted(follower) == [3, 1]
    producer.close()
