"""The account that `searchloop verify` gives: the counts per partition and stage, and the findings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import msgspec

from storage.verification.rules import RULES

Partition = tuple[str, int]  # topic, partition
Severity = Literal["broken", "unfinished"]
Verdict = Literal["sound", "unfinished", "broken"]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """A breach of a rule: the rule (of `rules.RULES`), the place, and the value found.

    severity: "broken" for a state that the contract excludes. "unfinished" for work that is still owed although nobody
    is working; continuing the run completes it.
    """

    rule: str
    where: str
    what: str
    severity: Severity = "broken"

    def __post_init__(self) -> None:
        """Require a rule that the documentation explains."""
        assert self.rule in RULES, self.rule


class PartitionRow(msgspec.Struct, frozen=True, kw_only=True):
    """One partition of a topic: next_offset - gaps = rows + dead_letters; otherwise there is a residual.

    start, end: the offsets that Kafka holds; None without Kafka. next_offset: the end of the ledger's stored offsets.
    behind: records that Kafka holds beyond that. gaps: offsets below it at which Kafka never had a record. rows:
    records in the ledger's tables. dead_letters: records that the sink could not decode. archived: those of all these
    records that are in closed segments.
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
    """The inputs of a stage below its checked end, and their fates: taken - ended = residual.

    unit: the counted items. fates: each terminal fate with its count. waiting: items beyond the checked end, not due
    yet. not_asked: requests that lie ready but that the learner has not granted; nobody may answer them yet.
    """

    stage: str
    unit: str
    taken: int
    fates: dict[str, int]
    waiting: int
    residual: int
    not_asked: int = 0


class Trust(msgspec.Struct, frozen=True, kw_only=True):
    """The result for a value that the user kept elsewhere.

    version: the version that the value names, None if it is not in the chain. later: the number of updates made since.
    """

    value: str
    version: str | None
    later: int


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """A run's whole account.

    verdict: "broken" if the contract does not hold, "unfinished" if it holds so far and something is still owed.
    mode: the checked sources: kafka or offline, rebuild, live. unseen: the things that this mode cannot see.
    live: a sink held the ledger, so the archive's closed segments were checked instead. kafka: whether topics were
    compared too. policy: the version that CURRENT names, None before the first. seal: one value to keep elsewhere, None
    while the chain of hashes is not recorded. manifest_sha256: of the newest checkpoint. trusted: see `Trust`.
    uses_max: the most gradients that any candidate gave along its lineage. unchecked: claims of the learner that the
    log can neither prove nor refute, counted by kind. tables: each table's content hash if the ledger was rebuilt and
    compared.
    """

    run: str
    verdict: Verdict
    mode: str
    live: bool
    kafka: bool
    policy: str | None
    seal: str | None
    manifest_sha256: str | None
    trusted: Trust | None
    partitions: tuple[PartitionRow, ...]
    stages: tuple[StageRow, ...]
    uses_max: int
    unchecked: dict[str, int]
    tables: dict[str, str]
    unseen: tuple[str, ...]
    findings: tuple[Finding, ...]

    @property
    def sound(self) -> bool:
        """Return whether the contract holds and nothing is still owed."""
        return self.verdict == "sound"


def verdict_of(findings: Sequence[Finding]) -> Verdict:
    """Return the verdict for the findings."""
    if any(finding.severity == "broken" for finding in findings):
        return "broken"
    return "unfinished" if findings else "sound"


def place(topic: str, partition: int, offset: object) -> str:
    """Return a record's place in the form that every message uses: `topic[partition]@offset`."""
    return f"{topic}[{partition}]@{offset}"


def spans(offsets: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Yield rising offsets as closed ranges: 3, 4, 5, 9 gives (3, 5), (9, 9)."""
    first = last = None
    for offset in offsets:
        if last is None or first is None:
            first = offset
        elif offset != last + 1:
            yield first, last
            first = offset
        last = offset
    if first is not None and last is not None:
        yield first, last


def span_text(first: int, last: int) -> str:
    """Return a closed range of offsets as text for a person: "7" or "7-12"."""
    return str(first) if first == last else f"{first}-{last}"


def one_line(error: BaseException) -> str:
    """Return an error's text in one line of bounded length."""
    said = " ".join(str(error).split()) or type(error).__name__
    return said if len(said) <= 400 else f"{said[:400]}…"
