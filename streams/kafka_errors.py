"""Broker errors as one line of ours: kafka-python's own errors never reach the caller.

While the cluster elects a leader or a coordinator, a question to it is repeated. An election takes a few seconds after
a broker has died, and longer if the cluster has just started.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from kafka.errors import (
    AuthorizationError,
    InvalidReplicationFactorError,
    InvalidTopicError,
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    NodeNotReadyError,
    NotEnoughReplicasAfterAppendError,
    NotEnoughReplicasError,
    PolicyViolationError,
    RecordListTooLargeError,
    UnknownTopicOrPartitionError,
    UnsupportedCodecError,
)

from streams.errors import DeliveryError

T = TypeVar("T")
PATIENCE_SECONDS = 30.0
PAUSE_SECONDS = 0.2

# The first match is used. The remedies stand here once for all callers.
REMEDIES: tuple[tuple[type[KafkaError] | tuple[type[KafkaError], ...], str], ...] = (
    (AuthorizationError, "the principal of kafka.sasl_username may not do this; an administrator must allow it"),
    (
        (NotEnoughReplicasError, NotEnoughReplicasAfterAppendError),
        "fewer replicas are in sync than the topic's min.insync.replicas requires; start the brokers that are down",
    ),
    (
        (MessageSizeTooLargeError, RecordListTooLargeError),
        "the record is larger than the topic's max.message.bytes allows; raise that, or lower generation.candidates",
    ),
    (InvalidReplicationFactorError, "the cluster has fewer brokers than kafka.replication requires; lower that"),
    (PolicyViolationError, "the cluster's own policy forbids these settings; an administrator must make the topics"),
    (InvalidTopicError, "choose another --run NAME"),
    (UnsupportedCodecError, "set compression.type of the topic to gzip or producer"),
    (UnknownTopicOrPartitionError, "the topic does not exist; searchloop train makes it"),
    (
        (KafkaTimeoutError, KafkaConnectionError, NodeNotReadyError),
        "no broker answered in time; look at it with: searchloop status",
    ),
)


def explain_kafka_error(error: KafkaError) -> str:
    """Return the broker's refusal, and the remedy if it is known."""
    said = str(error)
    for kinds, remedy in REMEDIES:
        if isinstance(error, kinds):
            return f"{said}: {remedy}"
    return said


@contextmanager
def told(what: str) -> Iterator[None]:
    """Turn an error of kafka-python into a DeliveryError; what: the attempted action, which begins the message."""
    try:
        yield
    except KafkaError as error:
        raise DeliveryError(f"{what}: {explain_kafka_error(error)}") from error


def asked(what: str, ask: Callable[[], T], *, patience_seconds: float = PATIENCE_SECONDS) -> T:
    """Return the cluster's answer to a read-only question; repeat the question while the cluster cannot answer.

    what: begins the message if no answer comes. patience_seconds: how long leaders and coordinators may be in election.
    Raises DeliveryError.
    """
    deadline = time.monotonic() + patience_seconds
    while True:
        with told(what):
            try:
                return ask()
            except KafkaError as error:
                if not error.retriable or time.monotonic() > deadline:
                    raise
        time.sleep(PAUSE_SECONDS)
