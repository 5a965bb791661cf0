"""The learner's intake on a real broker: rewards that would stand in the way of later ones never reach a batch."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from learner.batches import BatchSettings
from learner.checkpoints import Manifest
from learner.claims import ClaimSettings
from learner.intake import Intake
from learner.learning import LearnerSettings
from services.local import Endpoints
from streams.clients import create_topics
from streams.codec import content_sha256, encode_event
from streams.delivery import DeliverySettings, Outbox
from streams.events import DeadLetter, PolicyRef, Position, Reward
from streams.ids import group_id, prompt_sha256
from streams.kafka_settings import KafkaSettings
from streams.ranges import read_events
from streams.topics import topic_name
from tests.outboxes import opened_outbox
from tests.stored_events import policy, request, reward

DELIVERY = DeliverySettings()
LEARNER = LearnerSettings(claims=ClaimSettings(share=0.0))


@pytest.fixture
def kafka(local_services: Endpoints, unique_name: str) -> KafkaSettings:
    """Give a broker with a run's topics."""
    settings = KafkaSettings(bootstrap=local_services.kafka, partitions=1)
    create_topics(settings, unique_name)
    return settings


@pytest.fixture
def outbox(kafka: KafkaSettings, unique_name: str) -> Iterator[Outbox]:
    """Give a way to write to the run, which has four requests."""
    with opened_outbox(kafka, unique_name, stage="learner") as outbox:
        for number in range(4):
            outbox.send(msgspec.structs.replace(request(number), run=unique_name))
        outbox.flush()
        yield outbox


def answer(run: str, offset: int) -> Reward:
    """Return a reward for the request at this offset, in which every hash and name agrees."""
    made = reward(0)
    source = Position(topic=topic_name(run, "requests"), partition=0, offset=offset)
    group = msgspec.structs.replace(
        made.generation,
        group_id=group_id(run, source),
        source=source,
        request=msgspec.structs.replace(made.generation.request, run=run),
        prompt_sha256=prompt_sha256(made.generation.prompt_token_ids),
    )
    return msgspec.structs.replace(
        made,
        generation=group,
        group_id=group.group_id,
        source=Position(topic=topic_name(run, "generations"), partition=0, offset=0),
        content_sha256=content_sha256(encode_event(group)),
    )


@pytest.mark.parametrize("beyond", [4, 10**12])
def test_a_reward_for_a_request_that_does_not_exist_uses_up_no_other_request(
    kafka: KafkaSettings, outbox: Outbox, unique_name: str, beyond: int
) -> None:
    for offset in (beyond, 0):
        outbox.send(answer(unique_name, offset))
    outbox.flush()
    versions: set[PolicyRef] = {policy(0)}
    begun = Manifest(policy=policy(0), parent=None)
    settings = BatchSettings(groups=1)
    with Intake(
        unique_name, kafka, DELIVERY, settings, LEARNER, begun, outbox, versions=versions, origin="", member="test"
    ) as intake:
        intake.grant(None)
        while not intake.ready():
            intake.read(step=0)
        batch = intake.take(step=0)
    assert [each.generation.source.offset for each in batch.fresh] == [0]
    assert batch.requests_consumed == {0: 1}
    assert batch.positions == {0: 2}
    (letter,) = read_events(kafka, unique_name, DeadLetter)
    place = f"{topic_name(unique_name, 'requests')}[0]@{beyond}"
    assert letter.error == f"expected a request that the log holds, got {place}, which lies beyond its end"
