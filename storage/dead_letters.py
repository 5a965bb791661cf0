"""The dead letters of a run, each once, found by source, stage, reason and time."""

from __future__ import annotations

import msgspec

from storage.log import Log
from streams.events import DeadLetter, Position


class LetterFilter(msgspec.Struct, frozen=True, kw_only=True):
    """A filter for letters; an empty field matches any letter.

    topic: a topic's kind ("requests") or its full name. error: a part of the reason. since_ms: the oldest time, by the
    broker's clock. places: exactly these records.
    """

    topic: str = ""
    stage: str = ""
    error: str = ""
    since_ms: int | None = None
    places: tuple[Position, ...] = ()


def find_letters(log: Log, wanted: LetterFilter) -> list[DeadLetter]:
    """Return the letters, oldest first; if several workers gave up on one record, each worker's letter is listed."""
    rows = log.rows(
        """
        SELECT * FROM dead_letter
        WHERE ($1 = '' OR source_topic = $1 OR source_topic LIKE '%.' || $1) AND ($2 = '' OR stage = $2)
            AND ($3 = '' OR contains(lower(error), lower($3))) AND ($4 IS NULL OR record_time_ms >= $4)
        ORDER BY record_time_ms, source_topic, source_partition, source_offset, stage
        """,
        (wanted.topic, wanted.stage, wanted.error, wanted.since_ms),
    )
    letters = [
        DeadLetter(
            source=Position(topic=row["source_topic"], partition=row["source_partition"], offset=row["source_offset"]),
            key=row["key"],
            value=row["value"],
            headers=tuple((header["name"], header["value"]) for header in row["headers"]),
            stage=row["stage"],
            error=row["error"],
            attempts=row["attempts"],
            made_at_ms=row["made_at_ms"] or row["record_time_ms"],
        )
        for row in rows
    ]
    return [letter for letter in letters if not wanted.places or letter.source in wanted.places]
