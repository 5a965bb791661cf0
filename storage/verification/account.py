"""The account that `searchloop verify` gives: what was counted per partition and stage, and what does not add up."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

Partition = tuple[str, int]  # topic, partition


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """Something that breaks the contract: which rule, where, and what was found."""

    rule: str
    where: str
    what: str


class PartitionRow(msgspec.Struct, frozen=True, kw_only=True):
    """One partition of a topic: next_offset - gaps = rows + dead_letters, or there is a residual.

    start, end: what Kafka holds; None without Kafka. next_offset: how far the ledger has stored. behind: records that
    Kafka holds beyond that. gaps: offsets below it at which Kafka never had a record. rows: records in the ledger's
    tables. dead_letters: records that the sink could not decode. archived: of all of them, those in closed segments.
    """

    topic: str
    partition: int
    start: int | None
    end: int | None
    next_offset: int
    behind: int
    gaps: int
    rows: int
    dead_letters: int
    archived: int
    residual: int


class StageRow(msgspec.Struct, frozen=True, kw_only=True):
    """What went into a stage below its checked end, and what became of it: taken - ended = residual.

    unit: what is counted. fates: each terminal fate with its count. waiting: beyond the checked end, not due yet.
    """

    stage: str
    unit: str
    taken: int
    fates: dict[str, int]
    waiting: int
    residual: int


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """A run's whole account.

    live: a sink held the ledger, so the archive's closed segments were checked instead. kafka: whether topics were
    compared too. policy: the version that CURRENT names, None before the first. uses_max: the most gradients that any
    candidate gave along its lineage. tables: each table's content hash if the ledger was built anew and compared.
    """

    run: str
    live: bool
    kafka: bool
    policy: str | None
    partitions: tuple[PartitionRow, ...]
    stages: tuple[StageRow, ...]
    uses_max: int
    tables: dict[str, str]
    findings: tuple[Finding, ...]

    @property
    def sound(self) -> bool:
        """Return whether nothing was found that breaks the contract."""
        return not self.findings


def place(topic: str, partition: int, offset: object) -> str:
    """Return a record's place as every message writes it: `topic[partition]@offset`."""
    return f"{topic}[{partition}]@{offset}"


def spans(offsets: Iterable[int]) -> list[tuple[int, int]]:
    """Return rising offsets as closed ranges: [3, 4, 5, 9] gives [(3, 5), (9, 9)]."""
    found: list[tuple[int, int]] = []
    for offset in offsets:
        if found and offset == found[-1][1] + 1:
            found[-1] = (found[-1][0], offset)
        else:
            found.append((offset, offset))
    return found


def span_text(first: int, last: int) -> str:
    """Return a closed range of offsets for a person to read: "7" or "7-12"."""
    return str(first) if first == last else f"{first}-{last}"
