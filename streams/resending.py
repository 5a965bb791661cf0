"""Resend dead letters: their original bytes, key and headers go back to their original place, once.

A resent record carries its old place in a header, so the log itself shows which letters were already resent. Anybody
may have written the place in a letter. So a letter goes only to topics and partitions of its own run, or nowhere.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec
from kafka import TopicPartition

from streams.codec import decode, encode_event
from streams.delivery import Outbox
from streams.errors import EventError
from streams.events import DeadLetter, Generation, Position
from streams.kafka_settings import KafkaSettings
from streams.ranges import log_bounds, read_range
from streams.topics import BY_KIND, topic_name

PLACE_CHARACTERS_MAX = 200  # The length of a topic's name in an error; Kafka's own limit is 249.
RESENT = "searchloop-resent"  # The header's name; its value is the place of the buried record.


class Resent(msgspec.Struct, frozen=True, kw_only=True):
    """A letter in the form in which it is sent again.

    after: it can only have been resent beyond this offset of its partition.
    asked_again: its group has ended as `failed`, and a group ends only once; so its request is repeated as a new one.
    """

    letter: DeadLetter
    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    after: int
    asked_again: bool


def prepare_resending(letter: DeadLetter) -> Resent:
    """Return the record to send for a letter: its own bytes, or the request of a group that has ended as `failed`."""
    headers = (*letter.headers, (RESENT, place_text(letter.source).encode()))
    try:
        event = decode(letter.value)
    except EventError:
        event = None
    if letter.stage == "environment" and isinstance(event, Generation):
        return Resent(
            letter=letter,
            topic=event.source.topic,
            partition=event.source.partition,
            key=event.request.request_id.encode(),
            value=encode_event(event.request),
            headers=headers,
            after=event.source.offset,
            asked_again=True,
        )
    return Resent(
        letter=letter,
        topic=letter.source.topic,
        partition=letter.source.partition,
        key=letter.key,
        value=letter.value,
        headers=headers,
        after=letter.source.offset,
        asked_again=False,
    )


def topics_of(run: str) -> list[str]:
    """Return the topics to which a run's letters may go back."""
    return [topic_name(run, kind) for kind in BY_KIND]


def reason_to_refuse(resent: Resent, run: str, partitions: Collection[TopicPartition]) -> str:
    """Return why a letter must not be resent in this run, or "" if it may be.

    partitions: the existing partitions of the run's topics.
    """
    allowed = [topic_name(run, "requests")] if resent.asked_again else topics_of(run)
    if resent.topic not in allowed:
        what = "its request would go to" if resent.asked_again else "it came from"
        wanted = f"the topic {allowed[0]!r}" if resent.asked_again else f"a topic of run {run!r}"
        return f"expected {wanted}, and {what} {resent.topic[:PLACE_CHARACTERS_MAX]!r}"
    if TopicPartition(resent.topic, resent.partition) not in partitions:
        return f"{resent.topic!r} has no partition {resent.partition}"
    return ""


def resend(resent: Sequence[Resent], outbox: Outbox) -> None:
    """Send these letters, and return when the broker has acknowledged all of them.

    Raises DeliveryError if the broker does not acknowledge all; the header identifies those that it took.
    """
    for each in resent:
        outbox.forward(topic=each.topic, partition=each.partition, key=each.key, value=each.value, headers=each.headers)
    outbox.flush()


def places_resent(kafka: KafkaSettings, resent: Sequence[Resent], *, client_id: str) -> set[str]:
    """Return the places of those letters that the log shows as already resent, in the form of `place_text`.

    The function reads each target topic from the oldest record that could be a resent letter.
    """
    wanted = {place_text(each.letter.source) for each in resent}
    targets: dict[TopicPartition, int] = {}
    for each in resent:
        target = TopicPartition(each.topic, each.partition)
        targets[target] = min(targets.get(target, each.after), each.after)
    found: set[str] = set()
    for target, (start, end) in log_bounds(kafka, sorted(targets)).items():
        for record in read_range(kafka, target, max(start, targets[target] + 1), end, client_id=client_id):
            found |= {value.decode(errors="replace") for name, value in record.headers if name == RESENT}
    return found & wanted


def place_text(position: Position) -> str:
    """Return a record's place in the form that every message uses: `topic[partition]@offset`."""
    return f"{position.topic}[{position.partition}]@{position.offset}"
