"""A broker's refusals as one line: which question was refused, and what to do."""

from __future__ import annotations

import pytest
from kafka.errors import (
    InvalidReplicationFactorError,
    KafkaError,
    KafkaTimeoutError,
    LeaderNotAvailableError,
    MessageSizeTooLargeError,
    NotEnoughReplicasError,
    TopicAuthorizationFailedError,
)

from streams.errors import DeliveryError
from streams.kafka_errors import asked, explain_kafka_error, told


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (TopicAuthorizationFailedError("x.rewards"), "an administrator must allow it"),
        (NotEnoughReplicasError(), "start the brokers that are down"),
        (MessageSizeTooLargeError(), "max.message.bytes"),
        (InvalidReplicationFactorError("3 > 1"), "kafka.replication"),
        (KafkaTimeoutError("30 s"), "searchloop status"),
    ],
)
def test_a_refusal_says_what_to_do(error: KafkaError, remedy: str) -> None:
    assert remedy in explain_kafka_error(error)
    with pytest.raises(DeliveryError, match=r"^could not do it: ") as raised, told("could not do it"):
        raise error
    assert "\n" not in str(raised.value) and remedy in str(raised.value)


def test_a_question_is_asked_again_while_a_leader_is_elected() -> None:
    answers: list[KafkaError | int] = [LeaderNotAvailableError(), LeaderNotAvailableError(), 7]

    def ask() -> int:
        answer = answers.pop(0)
        if isinstance(answer, KafkaError):
            raise answer
        return answer

    assert asked("where", ask) == 7


def test_patience_ends_and_a_refusal_is_not_asked_again() -> None:
    tries: list[int] = []

    def ask(error: KafkaError) -> None:
        tries.append(1)
        raise error

    with pytest.raises(DeliveryError, match="LeaderNotAvailable"):
        asked("where", lambda: ask(LeaderNotAvailableError()), patience_seconds=0)
    with pytest.raises(DeliveryError, match="must allow it"):
        asked("where", lambda: ask(TopicAuthorizationFailedError()))
    assert len(tries) == 2
