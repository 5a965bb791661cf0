"""One learner and one sink for a run, on any number of machines: the second is refused, and a zombie is ignored."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from services.local import Endpoints
from streams.clients import create_topics
from streams.delivery import DeliverySettings, Outbox
from streams.epochs import Epochs, counted
from streams.events import PolicyRef, PolicyVersion
from streams.kafka_settings import KafkaSettings
from streams.lease import Lease, LeaseError
from streams.ranges import read_events
from tests.outboxes import opened_outbox

DELIVERY = DeliverySettings()


@pytest.fixture
def kafka(local_services: Endpoints, unique_name: str) -> KafkaSettings:
    """Give a broker on which the run's topics are made; it forgets a silent member after six seconds."""
    settings = KafkaSettings(bootstrap=local_services.kafka, session_timeout_seconds=6)
    create_topics(settings, unique_name)
    return settings


@pytest.fixture
def outbox(kafka: KafkaSettings, unique_name: str) -> Iterator[Outbox]:
    """Give an outbox of the run."""
    with opened_outbox(kafka, unique_name) as outbox:
        yield outbox


def version(run: str, step: int, lease: Lease | None = None) -> PolicyVersion:
    """Return an announcement, by this holder if one is given."""
    policy = PolicyRef(lineage="1-ab12cd", step=step, sha256="0" * 64)
    event = PolicyVersion(run=run, policy=policy, parent=None, path=f"checkpoints/1-ab12cd-{step:06d}")
    if lease is None:
        return event
    return PolicyVersion(run=run, policy=policy, parent=None, path=event.path, epoch=lease.epoch, holder=lease.holder)


def lease_of(run: str, machine: str, kafka: KafkaSettings, role: str = "learner") -> Lease:
    """Return the lease that a machine asks for."""
    return Lease(run, role, machine=machine, kafka=kafka, delivery=DELIVERY)


def announce(outbox: Outbox, *events: PolicyVersion) -> None:
    """Write announcements."""
    for event in events:
        outbox.send(event)
    outbox.flush()


@pytest.mark.parametrize("role", ["learner", "sink"])
def test_a_second_machine_is_refused_while_the_first_one_lives(
    kafka: KafkaSettings, unique_name: str, role: str
) -> None:
    with lease_of(unique_name, "a", kafka, role) as first:
        with pytest.raises(LeaseError, match=rf"its only {role}, but {unique_name}-{role}-a is its {role}"):
            lease_of(unique_name, "b", kafka, role).__enter__()
        first.keep()
    with lease_of(unique_name, "b", kafka, role) as second:
        second.keep()


def test_a_killed_holder_goes_on_at_once_and_in_a_new_epoch(
    kafka: KafkaSettings, unique_name: str, outbox: Outbox
) -> None:
    first = lease_of(unique_name, "a", kafka).__enter__()
    announce(outbox, version(unique_name, 0), version(unique_name, 1, first))
    first.keep()
    with lease_of(unique_name, "a", kafka) as again:  # Its old consumer was never closed, as after kill -9.
        assert (first.epoch, again.epoch) == (1, 2)
        assert again.last is not None
        assert again.last.policy.step == 1
        again.keep()
    first.__exit__(None, None, None)


def test_a_zombie_hears_that_another_one_has_begun_and_nobody_listens_to_it(
    kafka: KafkaSettings, unique_name: str, outbox: Outbox
) -> None:
    with lease_of(unique_name, "a", kafka) as zombie:
        announce(outbox, version(unique_name, 1, zombie))
        zombie.keep()
        heir = lease_of(unique_name, "b", kafka)
        heir.epoch = zombie.epoch + 1  # The broker had forgotten the zombie, whose machine stood still.
        announce(outbox, version(unique_name, 2, heir), version(unique_name, 9, zombie))
        with pytest.raises(LeaseError, match=rf"{unique_name}-learner-b has begun epoch 2"):
            while True:
                zombie.keep()
    told = list(read_events(kafka, unique_name, PolicyVersion))
    assert [event.policy.step for event in told] == [1, 2, 9]
    assert [event.policy.step for event in counted(told, run=unique_name)] == [1, 2]


def test_a_sink_keeps_its_right_whatever_the_learners_announce(
    kafka: KafkaSettings, unique_name: str, outbox: Outbox
) -> None:
    with lease_of(unique_name, "a", kafka, "sink") as sink, lease_of(unique_name, "a", kafka) as learner:
        announce(outbox, version(unique_name, 1, learner))
        while sink.last is None:
            sink.keep()
        learner.keep()
        sink.keep()
        assert sink.last.policy.step == 1


def test_two_that_begin_the_same_epoch_count_by_the_order_of_the_log(unique_name: str, kafka: KafkaSettings) -> None:
    one, two = lease_of(unique_name, "a", kafka), lease_of(unique_name, "b", kafka)
    one.epoch = two.epoch = 3
    epochs = Epochs()
    said = [version(unique_name, 0), version(unique_name, 1, two), version(unique_name, 2, one)]
    assert [epochs.admits(event) for event in [*said, version(unique_name, 3), version(unique_name, 4, two)]] == [
        True,
        True,
        False,
        False,
        True,
    ]


def test_an_announcement_of_another_run_in_this_runs_topic_fences_nobody(
    kafka: KafkaSettings, unique_name: str, outbox: Outbox
) -> None:
    with lease_of(unique_name, "a", kafka) as learner:
        foreign = msgspec.structs.replace(version("another-run", 7, learner), epoch=99, holder="somebody")
        announce(outbox, version(unique_name, 1, learner), foreign, version(unique_name, 2, learner))
        while learner.last is None or learner.last.policy.step < 2:
            learner.keep()
    told = list(read_events(kafka, unique_name, PolicyVersion))
    assert [event.policy.step for event in told] == [1, 7, 2]
    assert [event.policy.step for event in counted(told, run=unique_name)] == [1, 2]


def test_a_copied_home_ends_the_older_learner_by_its_epoch(
    kafka: KafkaSettings, unique_name: str, outbox: Outbox
) -> None:
    """The copy has the same identity, so the broker takes it for the same member."""
    older = lease_of(unique_name, "a", kafka).__enter__()
    announce(outbox, version(unique_name, 1, older))
    with lease_of(unique_name, "a", kafka) as newer:
        announce(outbox, version(unique_name, 2, newer))
        with pytest.raises(LeaseError, match="has begun epoch 2") as fenced:
            while True:
                older.keep()
        older.__exit__(LeaseError, fenced.value, None)
        newer.keep()


def test_a_holder_that_works_for_longer_than_the_session_keeps_its_right(
    kafka: KafkaSettings, unique_name: str
) -> None:
    with lease_of(unique_name, "a", kafka) as first:
        with pytest.raises(LeaseError):  # It takes longer than a session, and the holder does not look meanwhile.
            lease_of(unique_name, "b", kafka).__enter__()
        first.keep()
