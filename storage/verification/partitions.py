"""Offsets: every record that Kafka had lies in the ledger once, and in the archive or beside it byte for byte."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from storage.archive import file_sha256
from storage.log import Log
from storage.verification.account import Finding, Partition, PartitionRow, place, span_text, spans

Offsets = npt.NDArray[np.int64]
Held = Callable[[Partition, int, int], list[int]]
"""Called with (partition, first, last): the offsets in this closed range at which Kafka holds a record."""

# Each record gives exactly one row in exactly one of these.
TABLES = ("requests", "generations", "rewards", "updates", "policy_versions", "feedback", "dead_letters")
# The sink's own dead letters stand at the place of the record that it could not decode.
OWN_LETTER = (
    "stage = 'sink' AND source_topic = topic AND source_partition = partition AND source_offset = record_offset"
)


def partition_rows(
    log: Log, ends: Mapping[Partition, tuple[int, int]] | None, held: Held | None
) -> tuple[list[PartitionRow], list[Finding]]:
    """Return the account of every partition, and what does not add up.

    ends: what Kafka holds of each partition, (start, end); None without Kafka, and then held is not called.
    """
    stored = {
        (row["topic"], row["partition"]): row
        for row in log.rows("SELECT * FROM sink_offsets ORDER BY topic, partition")
    }
    archived, findings = _archived(log)
    raw = _offsets(log, "SELECT topic, partition, record_offset FROM records")
    rows = _offsets(
        log,
        " UNION ALL ".join(
            f"SELECT topic, partition, record_offset FROM {name}"
            + (f" WHERE NOT coalesce({OWN_LETTER}, false)" if name == "dead_letters" else "")
            for name in TABLES
        ),
    )
    letters = _offsets(log, f"SELECT topic, partition, record_offset FROM dead_letters WHERE {OWN_LETTER}")
    account = []
    for partition in sorted({*stored, *(ends or {}), *rows, *letters}):
        row, found = _account(
            partition,
            known=np.union1d(archived.get(partition, NONE), raw.get(partition, NONE)),
            archived=archived.get(partition, NONE),
            rows=rows.get(partition, NONE),
            letters=letters.get(partition, NONE),
            said=int(stored[partition]["records"]) if partition in stored else 0,
            next_offset=int(stored[partition]["next_offset"]) if partition in stored else 0,
            ends=ends.get(partition) if ends is not None else None,
            held=held if ends is not None else None,
        )
        account.append(row)
        findings += found
    return account, findings


NONE: Offsets = np.empty(0, dtype=np.int64)


def _account(
    partition: Partition,
    *,
    known: Offsets,
    archived: Offsets,
    rows: Offsets,
    letters: Offsets,
    said: int,
    next_offset: int,
    ends: tuple[int, int] | None,
    held: Held | None,
) -> tuple[PartitionRow, list[Finding]]:
    findings: list[Finding] = []

    def find(rule: str, offsets: Offsets, what: str) -> None:
        findings.extend(
            Finding(rule=rule, where=place(*partition, span_text(first, last)), what=what)
            for first, last in spans(offsets.tolist())
        )

    entries, times = np.unique(np.concatenate([rows, letters]), return_counts=True)
    find("one row a record", np.setdiff1d(known, entries), "the record is kept, but has no row in the ledger's tables")
    find("one row a record", entries[times > 1], "the record has more than one row in the ledger's tables")
    find("bytes are kept", np.setdiff1d(entries, known), "the record's row is there, its bytes are not (nor archived)")
    find("offsets", entries[entries >= next_offset], f"stored beyond the ledger's own position, {next_offset}")
    missing = np.setdiff1d(np.arange(next_offset), np.union1d(known, entries))
    start, end = ends if ends is not None else (None, None)
    gaps = 0
    for first, last in spans(missing.tolist()):
        lost, why = _lost(partition, first, last, start, held)
        gaps += last - first + 1 - len(lost)
        find("nothing lost", np.array(lost, dtype=np.int64), why)
    if len(known) != said:
        findings.append(
            Finding(
                rule="offsets",
                where=f"{partition[0]}[{partition[1]}]",
                what=f"the ledger counted {said} records, {len(known)} are kept",
            )
        )
    if end is not None and end < next_offset:
        findings.append(
            Finding(
                rule="offsets",
                where=place(*partition, end),
                what=f"Kafka's log ends here, but the ledger has stored up to {next_offset}: the topic was made anew, "
                "or the broker lost what it had acknowledged",
            )
        )
    row = PartitionRow(
        topic=partition[0],
        partition=partition[1],
        start=start,
        end=end,
        next_offset=next_offset,
        behind=max((end or 0) - next_offset, 0),
        gaps=gaps,
        rows=len(rows),
        dead_letters=len(letters),
        archived=len(archived),
        residual=next_offset - gaps - len(rows) - len(letters),
    )
    return row, findings


def _lost(partition: Partition, first: int, last: int, start: int | None, held: Held | None) -> tuple[list[int], str]:
    """Return the offsets of a hole that had a record, as far as can be known, and what to say of them.

    Kafka leaves offsets out (a transaction's marker takes one). So a hole is a gap if Kafka holds nothing there; what
    has fallen out of its retention, or cannot be asked, is taken for lost.
    """
    everything = list(range(first, last + 1))
    if held is None or start is None:
        return everything, "neither in the ledger nor in the archive; without Kafka nobody knows what stood there"
    if last < start:
        return everything, f"neither in the ledger nor in the archive, and Kafka's log begins only at {start}"
    lost = [*range(first, min(start, last + 1)), *held(partition, max(first, start), last)]
    return lost, "Kafka holds a record here; it is neither in the ledger nor in the archive"


def _offsets(log: Log, sql: str) -> dict[Partition, Offsets]:
    """Return each partition's offsets, rising; an offset that comes twice stays twice."""
    grouped = log.rows(
        "SELECT topic, partition, array_agg(record_offset ORDER BY record_offset) AS offsets "
        f"FROM ({sql}) GROUP BY topic, partition"
    )
    return {(row["topic"], row["partition"]): np.array(row["offsets"], dtype=np.int64) for row in grouped}


def _archived(log: Log) -> tuple[dict[Partition, Offsets], list[Finding]]:
    """Return the offsets that the listed segments hold, each file checked against its hash."""
    found: dict[Partition, list[Offsets]] = {}
    findings = []
    for segment in log.rows("SELECT * FROM archive_segments ORDER BY topic, partition, first_offset"):
        partition = (segment["topic"], segment["partition"])
        where = place(*partition, span_text(segment["first_offset"], segment["last_offset"]))
        path = log.archive / segment["path"]
        if (wrong := _segment_error(path, segment["sha256"])) is not None:
            findings.append(Finding(rule="archive", where=where, what=wrong))
            continue
        offsets = pq.read_table(path, columns=["record_offset"]).column(0).to_numpy()
        found.setdefault(partition, []).append(offsets)
    return {partition: np.unique(np.concatenate(parts)) for partition, parts in found.items()}, findings


def _segment_error(path: Path, sha256: str) -> str | None:
    try:
        said = file_sha256(path)
    except OSError:
        return f"the segment {path} is missing: restore it from a copy"
    return (
        None if said == sha256 else f"the segment {path} has changed: expected sha256 {sha256[:12]}…, got {said[:12]}…"
    )
