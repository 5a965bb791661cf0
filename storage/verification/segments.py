"""The archive's segments: each listed segment exists, is unchanged, and holds the records that its name gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage.archive import find_segments, read_segment
from storage.errors import StorageError
from storage.log import Log, raw_records
from storage.verification.account import Finding, Partition, one_line, place, span_text
from streams.records import Received
from streams.whole_file import file_sha256

UNREADABLE = (pa.ArrowException, OSError, KeyError, TypeError, ValueError, OverflowError)


def archived_offsets(log: Log) -> list[Finding]:
    """Make the temporary table `segment_offsets` of the listed segments' offsets; return the findings about them.

    A segment that is missing, has changed or cannot be read adds nothing to the table.
    """
    log.connection.execute(
        "CREATE OR REPLACE TEMP TABLE segment_offsets (topic VARCHAR, partition INTEGER, record_offset BIGINT)"
    )
    findings = []
    for segment in _listed(log):
        where = _where(segment)
        try:
            offsets = _offsets(log.archive / segment["path"], segment)
        except StorageError as error:
            findings.append(Finding(rule="archive", where=where, what=str(error)))
            continue
        arriving = pa.table({"record_offset": offsets})  # noqa: F841  DuckDB finds it by its name.
        log.connection.execute(
            "INSERT INTO segment_offsets SELECT $1, $2, record_offset FROM arriving",
            [segment["topic"], segment["partition"]],
        )
    return findings


def kept_records(log: Log, partition: Partition, first: int, findings: list[Finding]) -> Iterator[Received]:
    """Yield the records that archive and ledger keep of a partition from offset `first` on, each record once, in order.

    An unreadable segment is left out from the damaged place on; its fault is added to the findings once.
    """
    at = first
    for segment in _listed(log, partition):
        if segment["last_offset"] < at:
            continue
        try:
            for record in read_segment(log.archive / segment["path"]):
                if (record.position.topic, record.position.partition) == partition and record.position.offset >= at:
                    at = record.position.offset + 1
                    yield record
        except StorageError as error:
            where = _where(segment)
            if all((finding.rule, finding.where) != ("archive", where) for finding in findings):
                findings.append(Finding(rule="archive", where=where, what=one_line(error)))
    for record in raw_records(log.connection, partition):
        if record.position.offset >= at:
            yield record


def unlisted_findings(log: Log) -> list[Finding]:
    """Return the findings about segments that the ledger does not list; replays and rebuilds read these nevertheless.

    A killed sink leaves such segments; each record in them is also kept elsewhere, with the same content. In a live
    log, all segments were listed as they were found, and newer ones belong to the sink.
    """
    if log.live:
        return []
    findings: list[Finding] = []
    known = {segment["path"] for segment in _listed(log)}
    for path in find_segments(log.archive):
        name = str(path.relative_to(log.archive))
        if name in known:
            continue
        partition = (path.parts[-3], int(path.parent.name))
        try:
            strange = _strange_record(log, partition, read_segment(path))
        except StorageError as error:
            strange = str(error)
        if strange:
            what = f"no ledger lists this segment, and {strange}; remove it, because replays read it"
            findings.append(Finding(rule="archive", where=name, what=what))
    return findings


def _strange_record(log: Log, partition: Partition, records: Iterator[Received]) -> str:
    """Return the fault of the first record that differs from the kept record of its place, "" if there is none."""
    kept: Iterator[Received] | None = None
    ours: Received | None = None
    for record in records:
        at = record.position
        if (at.topic, at.partition) != partition:
            return f"it holds a record of {at.topic}[{at.partition}]"
        if kept is None:
            kept = kept_records(log, partition, at.offset, [])
            ours = next(kept, None)
        while ours is not None and ours.position.offset < at.offset:
            ours = next(kept, None)
        if ours != record:
            return f"its record at offset {at.offset} is not the one that is kept"
    return ""


def _listed(log: Log, partition: Partition | None = None) -> list[Mapping[str, Any]]:
    only = "WHERE topic = ? AND partition = ?" if partition else ""
    return list(
        log.rows(
            f"SELECT * FROM archive_segments {only} ORDER BY topic, partition, first_offset, last_offset DESC",
            partition or (),
        )
    )


def _offsets(path: Path, segment: Mapping[str, Any]) -> pa.ChunkedArray:
    """Return the offsets in a segment. Raises StorageError with the fault if the segment is not as listed."""
    try:
        said = file_sha256(path)
    except (OSError, ValueError) as error:
        raise StorageError(f"the segment {path} is missing: restore it from a copy") from error
    if said != segment["sha256"]:
        raise StorageError(
            f"the segment {path} has changed: expected sha256 {segment['sha256'][:12]}…, got {said[:12]}…"
        )
    try:
        with pq.ParquetFile(path) as file:
            rows = file.read(columns=["topic", "partition", "record_offset"])
            offsets = rows.column("record_offset")
            places = rows.column("topic").unique().to_pylist(), rows.column("partition").unique().to_pylist()
            bounds = (offsets[0].as_py(), offsets[-1].as_py(), len(offsets)) if len(offsets) else None
            numbers = offsets.to_numpy()
            rising = bool((numbers[1:] > numbers[:-1]).all())
    except UNREADABLE as error:
        raise StorageError(f"the segment {path} cannot be read ({one_line(error)}): restore it from a copy") from error
    expected = (segment["first_offset"], segment["last_offset"], segment["records"])
    if bounds != expected or places != ([segment["topic"]], [segment["partition"]]):
        raise StorageError(f"the segment {path} does not hold the records that the ledger lists: {expected}")
    if not rising:
        raise StorageError(f"the segment {path} holds its records twice or out of order: restore it from a copy")
    return offsets


def _where(segment: Mapping[str, Any]) -> str:
    return place(segment["topic"], segment["partition"], span_text(segment["first_offset"], segment["last_offset"]))
