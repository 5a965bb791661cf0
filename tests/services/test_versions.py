"""Policy versions followed over a real topic: the newest that is there is loaded, and one that is gone stops nobody."""

from __future__ import annotations

from pathlib import Path

from learner.checkpoints import Manifest
from learner.following import VersionFollower
from learner.learning import write_policy_checkpoint
from learner.policy import TinySettings, build_tiny
from streams.clients import KafkaSettings, connect_producer, create_topics
from streams.delivery import DeliverySettings, Outbox
from streams.events import PolicyRef, PolicyVersion


def test_a_generator_that_begins_late_passes_over_the_versions_that_are_gone(
    local_services: object, unique_name: str, tmp_path: Path
) -> None:
    kafka = KafkaSettings(bootstrap=local_services.kafka)  # type: ignore[attr-defined]
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
    assert not announce(gone, "checkpoints/1-a-000002")
    assert follower.loaded.reference == kept.policy
    producer.close()
